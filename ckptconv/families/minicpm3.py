"""MiniCPM3 and Youtu: latent attention without experts; MiniCPM3 scales embedding, residuals, logits."""

from ckptconv.families.base import Family
from ckptconv.families.deepseek import LATENT
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS
from ckptconv.families.template import decoder

_FACTORS = ("scale_emb", "scale_depth", "dim_model_base")
FAMILY = Family(
    name="minicpm3",
    model_types=("minicpm3", "youtu"),
    entries=(EMBED, *LATENT, *NORMS, *BIASED_MLP, *ENDS),
    flags={"tie_word_embeddings": True},
    ignored=IGNORED,
    beyond=lambda config: [f"{n} ({config[n]})" for n in _FACTORS if config.get(n) is not None],
    template=decoder(
        "MiniCPM3ForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "q_lora_rank": "q_rank",
            "kv_lora_rank": "kv_rank",
            "qk_nope_head_dim": "nope",
            "qk_rope_head_dim": "rope",
            "v_head_dim": "v_dim",
        },
        without=("head_dim",),
        assumed={"attention_bias": False, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        by_name=True,
    ),
)
