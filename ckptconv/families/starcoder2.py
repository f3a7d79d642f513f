"""StarCoder 2: biases everywhere, layer norms, an MLP without a gate."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, IGNORED, attention
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_AT = "model.layers.*"
FAMILY = Family(
    name="starcoder2",
    model_types=("starcoder2",),
    entries=(
        EMBED,
        *attention("use_bias", "use_bias"),
        *linear("layers.*.attn_norm", f"{_AT}.input_layernorm", bias=True),
        *linear("layers.*.mlp_norm", f"{_AT}.post_attention_layernorm", bias=True),
        *linear("layers.*.mlp.up", f"{_AT}.mlp.c_fc", bias="use_bias"),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.c_proj", bias="use_bias"),
        *linear("final_norm", "model.norm", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True, "use_bias": True},
    ignored=IGNORED,
    template=decoder(
        "Starcoder2ForCausalLM",
        {
            "use_bias": "linear_bias qkv_bias o_bias",
            "norm_epsilon": "norm_eps",
            "sliding_window": "window",
        },
        without=("rms_norm_eps", "head_dim"),
        fixed={"norm_kind": "LayerNorm", "gated": False},
        assumed={
            "use_bias": True,
            "norm_epsilon": 1e-5,
            "sliding_window": None,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        carried=True,
    ),
)
