"""PLM: latent attention whose query is not compressed, and an MLP without a gate (PLM-Team/PLM-1.8B)."""

from ckptconv.families.base import Family
from ckptconv.families.deepseek import LATENT
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS
from ckptconv.slots import linear

_AT = "model.layers.*.mlp"
FAMILY = Family(
    name="plm",
    model_types=("plm",),
    entries=(
        EMBED,
        *LATENT,
        *NORMS,
        *linear("layers.*.mlp.up", f"{_AT}.up_proj", bias=False),
        *linear("layers.*.mlp.down", f"{_AT}.down_proj", bias=False),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
)
