"""A.X-K1: DeepSeek-V3 with a norm after the experts (transformers 5.23, ``modeling_axk1.py``)."""

from ckptconv.families.base import Family
from ckptconv.families.deepseek import V3
from ckptconv.families.template import decoder
from ckptconv.slots import one

FAMILY = Family(
    name="axk1",
    model_types=("axk1",),
    entries=(*V3.entries, one("layers.*.moe.post_norm", "model.layers.*.post_mlp_layernorm.weight")),
    flags={**V3.flags, "first_k_dense_replace": 1},
    ignored=V3.ignored,
    slots={"layers.*.moe.post_norm": "hidden"},
    template=decoder("AXK1ForCausalLM", without=("head_dim",), by_name=True),
)
