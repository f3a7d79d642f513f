"""DeepSeek-V3.2 and GLM-5: DeepSeek-V3 with an indexer that chooses the positions attention looks at."""

from dataclasses import replace

from ckptconv.families.base import Family
from ckptconv.families.deepseek import V3
from ckptconv.families.template import decoder
from ckptconv.slots import linear

_AT = "model.layers.*.self_attn.indexer"
# Layers that share another's choice have none (``indexer_types``).
INDEXER = tuple(
    replace(entry, optional=True)
    for slot, module in {"q_b": "wq_b", "k": "wk", "k_norm": "k_norm", "weights": "weights_proj"}.items()
    for entry in linear(f"layers.*.mla.indexer.{slot}", f"{_AT}.{module}", bias=slot == "k_norm")
)
assert V3.template is not None
_KEYS = {k: v for k, v in V3.template.keys.items() if k != "head_dim"}
FAMILY = Family(
    name="deepseek_v32",
    model_types=("deepseek_v32", "glm_moe_dsa"),
    entries=(*V3.entries, *INDEXER),
    flags=V3.flags,
    ignored=V3.ignored,
    template=decoder(
        "DeepseekV32ForCausalLM",
        _KEYS,
        without=("head_dim",),
        fixed=V3.template.fixed,
        assumed=V3.template.assumed,
        by_name=True,
    ),
)
