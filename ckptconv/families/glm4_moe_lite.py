"""GLM-4.7-Flash: DeepSeek-V3's tensors."""

from ckptconv.families.base import Family
from ckptconv.families.deepseek import V3
from ckptconv.families.template import decoder

assert V3.template is not None
FAMILY = Family(
    name="glm4_moe_lite",
    model_types=("glm4_moe_lite",),
    entries=V3.entries,
    flags={**V3.flags, "first_k_dense_replace": 1},
    ignored=V3.ignored,
    template=decoder(
        "Glm4MoeLiteForCausalLM",
        {k: v for k, v in V3.template.keys.items() if k != "first_k_dense_replace"},
        without=("head_dim",),
        fixed=V3.template.fixed,
        assumed=V3.template.assumed,
        by_name=True,
    ),
)
