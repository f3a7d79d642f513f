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
_KEYS = {
    **{k: v for k, v in V3.template.keys.items() if k != "head_dim"},
    "index_n_heads": "index_heads",
    "index_head_dim": "index_dim",
    "index_topk": "index_topk",
}


def _family(name: str, architecture: str, *, interleaved: bool) -> Family:
    """Declare one, by how its indexer rotates: neighbouring pairs, or halves."""
    assert V3.template is not None
    return Family(
        name=name,
        model_types=(name,),
        entries=(*V3.entries, *INDEXER),
        flags=V3.flags,
        ignored=V3.ignored,
        template=decoder(
            architecture,
            _KEYS,
            without=("head_dim",),
            fixed={**V3.template.fixed, "index_interleaved": interleaved},
            assumed=V3.template.assumed,
            carried=True,
            like=("deepseek_v3",),  # where no layer has an indexer
        ),
    )


V32 = _family("deepseek_v32", "DeepseekV32ForCausalLM", interleaved=False)
GLM5 = _family("glm_moe_dsa", "GlmMoeDsaForCausalLM", interleaved=True)
