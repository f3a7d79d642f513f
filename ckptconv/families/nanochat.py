"""nanochat: no weights in its norms, squared relu, a cap on the logits."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, IGNORED, attention
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

FAMILY = Family(
    name="nanochat",
    model_types=("nanochat",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *linear("layers.*.mlp.up", "model.layers.*.mlp.fc1", bias=False),
        *linear("layers.*.mlp.down", "model.layers.*.mlp.fc2", bias=False),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder("NanoChatForCausalLM", without=("head_dim",), fixed={"gated": False}, by_name=True),
)
