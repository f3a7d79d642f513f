"""BitNet: Llama with squared relu, and norms before the output and down projections (5.23)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import one

FAMILY = Family(
    name="bitnet",
    model_types=("bitnet",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        one("layers.*.attn.sub_norm", "model.layers.*.self_attn.attn_sub_norm.weight"),
        *NORMS,
        *MLP,
        one("layers.*.mlp.sub_norm", "model.layers.*.mlp.ffn_sub_norm.weight"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    slots={"layers.*.attn.sub_norm": "hidden", "layers.*.mlp.sub_norm": "inner"},
    template=decoder(
        "BitNetForCausalLM", without=("head_dim",), assumed={"rms_norm_eps": 1e-5}, by_name=True
    ),
)
