"""MiniMax-M2: Mixtral's names, norms of query and key over all heads, sigmoid routing with a bias."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention, gated
from ckptconv.families.olmo import over_all_heads
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_MOE = "model.layers.*.block_sparse_moe"
FAMILY = Family(
    name="minimax_m2",
    model_types=("minimax_m2",),
    entries=(
        EMBED,
        *attention(False, False),
        *QK_NORMS,
        *NORMS,
        one("layers.*.moe.router", f"{_MOE}.gate.weight"),
        one("layers.*.moe.router_bias", f"{_MOE}.e_score_correction_bias"),
        *gated("layers.*.moe.experts.{e}", f"{_MOE}.experts.{{e}}", "w1 w3 w2"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=over_all_heads,
    template=decoder(
        "MiniMaxM2ForCausalLM",
        {
            "intermediate_size": "expert_inner",
            "num_local_experts": "experts",
            "num_experts_per_tok": "topk",
            "partial_rotary_factor": "partial_rotary?",
            "rotary_dim": "rotary_dim?",
        },
        fixed={
            "qk_norm": True,
            "norm_topk": True,
            "dense_layers": [],
            "score_function": "sigmoid",
            "router_bias": True,
        },
        # vLLM 0.32 (``minimax_m2.py``) asks for these and for rotary_dim, as the published config has them.
        literals={"scoring_func": "sigmoid", "use_routing_bias": True},
        assumed={"rms_norm_eps": 1e-6, "partial_rotary_factor": 1.0},
        by_name=True,
    ),
)
