"""InternLM2 (code on the hub): query heads, key and value of each query group lie together."""

from ckptconv.families.base import Family
from ckptconv.families.llama import gated
from ckptconv.families.template import decoder
from ckptconv.slots import grouped, linear, one

_QKV = grouped("kv_heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")

FAMILY = Family(
    name="internlm2",
    model_types=("internlm2",),
    entries=(
        one("embed", "model.tok_embeddings.weight"),
        *linear(_QKV, "model.layers.*.attention.wqkv", bias="bias"),
        *linear("layers.*.attn.o", "model.layers.*.attention.wo", bias="bias"),
        one("layers.*.attn_norm", "model.layers.*.attention_norm.weight"),
        one("layers.*.mlp_norm", "model.layers.*.ffn_norm.weight"),
        *gated("layers.*.mlp", "model.layers.*.feed_forward", "w1 w3 w2"),
        one("final_norm", "model.norm.weight"),
        one("head", "output.weight", when="!tie_word_embeddings"),
    ),
    # The class assumes biases, but every published config says there are none.
    flags={"tie_word_embeddings": False, "bias": False},
    ignored=(r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq", r"output\.weight"),
    template=decoder(
        "InternLM2ForCausalLM",
        {"bias": "qkv_bias o_bias"},
        without=("head_dim",),
        assumed={"bias": False},
        like=("llama", "qwen2"),
    ),
)
