"""SmolLM3: Llama, some of whose layers have no rotary embedding."""

from ckptconv.families.base import Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder

FAMILY = Family(
    name="smollm3",
    model_types=("smollm3",),
    entries=(EMBED, *attention("attention_bias", "attention_bias"), *NORMS, *BIASED_MLP, *ENDS),
    flags={"tie_word_embeddings": True},
    ignored=IGNORED,
    template=decoder(
        "SmolLM3ForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "mlp_bias": "linear_bias",
            "no_rope_layers": "rotary_layers?",
            "sliding_window": "window?",
            "use_sliding_window": "has_window?",
        },
        assumed={
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        carried=True,
        like=("llama", "mistral", "qwen2"),
    ),
)
