"""Name the tensors of Llama and its relatives.

Sources: models/llama, research/qwen2_5, baichuan2, internlm2, mixtral, deepseek3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ckptconv.dialects.base import Dialect, Line, norm, plain, prefixed, whole
from ckptconv.dialects.mindformers.parts import (
    DOWN,
    EXPERT_DOWN,
    EXPERT_GATE,
    EXPERT_UP,
    GATE,
    IN_A_ROW,
    IN_TURNS,
    KEY_VALUE_UP,
    QUERY,
    QUERY_UP,
    SHARED,
    UP,
    K,
    Q,
    V,
)
from ckptconv.relations import Spec
from ckptconv.slots import (
    Words,
    concat,
    interleaved,
    stacked,
    transposed,
)

__all__ = ["LEGACY"]

_LEGACY_ATTENTION = (
    *whole(Q, "attention.wq", bias=True, when="!qkv_concat !mla"),
    *whole(K, "attention.wk", bias=True, when="!qkv_concat !mla"),
    *whole(V, "attention.wv", bias=True, when="!qkv_concat !mla"),
    *whole(IN_TURNS, "attention.w_qkv", bias=True, when="qkv_concat !wqkv !qkv_contiguous"),
    *whole(IN_A_ROW, "attention.w_qkv", bias=True, when="qkv_concat !wqkv qkv_contiguous"),
    *whole(IN_TURNS, "attention.w", bias=True, when="qkv_concat wqkv"),  # InternLM2's own tensor
    *whole("layers.*.attn.o", "attention.wo", bias=True, when="!mla"),
    *whole("layers.*.mla.q_a", "attention.q2l_proj", bias=True, when="mla mla.q_a"),
    *norm("layers.*.mla.q_a_norm", "attention.lq_norm.", when="mla mla.q_a"),
    *whole(QUERY_UP, "attention.l2q_proj", when="mla mla.q_a"),
    *whole(QUERY, "attention.q_proj", when="mla !mla.q_a"),
    *whole("layers.*.mla.kv_a", "attention.kv2l", bias=True, when="mla"),
    *norm("layers.*.mla.kv_a_norm", "attention.lkv_norm.", when="mla"),
    *whole(KEY_VALUE_UP, "attention.lkv2kv", when="mla"),
    *whole("layers.*.mla.o", "attention.wo", bias=True, when="mla"),
)
_LEGACY_MLP = (
    *whole(GATE, "feed_forward.w1", bias=True, when="!mlp_concat"),
    *whole(DOWN, "feed_forward.w2", bias=True),
    *whole(UP, "feed_forward.w3", bias=True, when="!mlp_concat"),
    *whole(interleaved(GATE, UP), "feed_forward.w_gate_hidden", bias=True, when="mlp_concat !mlp_contiguous"),
    *whole(concat(GATE, UP), "feed_forward.w_gate_hidden", bias=True, when="mlp_concat mlp_contiguous"),
)
_ROUTED = "feed_forward.routed_experts"


def _stacked_experts(stem: str, when: str, *, turned: bool) -> tuple[Line, ...]:
    return tuple(
        plain(stacked(transposed(slot) if turned else slot), f"{stem}.{name}.weight", when=when)
        for slot, name in ((EXPERT_GATE, "w1"), (EXPERT_DOWN, "w2"), (EXPERT_UP, "w3"))
    )


_LEGACY_EXPERTS = (
    plain("layers.*.moe.router", "feed_forward.router.dense.weight", when="!routed"),
    *_stacked_experts("feed_forward.ffn", "!routed !gmm", turned=False),
    *_stacked_experts("feed_forward.ffn", "!routed gmm", turned=True),
    plain("layers.*.moe.router", f"{_ROUTED}.router.dense.weight", when="routed !gmm"),
    plain("layers.*.moe.router_bias", f"{_ROUTED}.router.router.topk_bias", when="routed !gmm !score_bias"),
    plain("layers.*.moe.router_bias", f"{_ROUTED}.router.e_score_correction_bias", when="routed score_bias"),
    *_stacked_experts(f"{_ROUTED}.ffn", "routed !gmm", turned=False),
    plain("layers.*.moe.router", f"{_ROUTED}.router_dense.weight", when="routed gmm"),
    plain("layers.*.moe.router_bias", f"{_ROUTED}.topk_bias", when="routed gmm"),
    plain(stacked(transposed(concat(EXPERT_GATE, EXPERT_UP))), f"{_ROUTED}.ffn.w1", when="routed gmm"),
    plain(stacked(transposed(EXPERT_DOWN)), f"{_ROUTED}.ffn.w2", when="routed gmm"),
    plain(f"{SHARED}.gate", "feed_forward.shared_experts.w1.weight"),
    plain(f"{SHARED}.down", "feed_forward.shared_experts.w2.weight"),
    plain(f"{SHARED}.up", "feed_forward.shared_experts.w3.weight"),
)


def _shapes(tensors: Mapping[str, Spec], names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Tell whether the matrices of experts lie input first."""
    hidden = tensors[_EMBED].shape[-1] if _EMBED in tensors else 0
    for name, spec in tensors.items():
        if name.endswith(".feed_forward.ffn.w1.weight") and spec.shape[1:2] == (hidden,) != spec.shape[2:]:
            yield name, "gmm"


def _open(tensors: Mapping[str, Spec], words: Words) -> dict[str, bool]:
    left: dict[str, bool] = {}
    if "qkv_concat" in words.names and "wqkv" not in words.names:
        left["qkv_contiguous"] = False
    if "mlp_concat" in words.names:
        left["mlp_contiguous"] = False
    if any(
        n.endswith(".feed_forward.ffn.w1.weight") and len(set(s.shape[1:])) == 1 for n, s in tensors.items()
    ):
        left["gmm"] = False
    return left


_EMBED = "model.tok_embeddings.embedding_weight"
LEGACY = Dialect(
    name="mindformers-legacy",
    lines=(
        plain("embed", _EMBED),
        *prefixed(
            (
                *_LEGACY_ATTENTION,
                *_LEGACY_MLP,
                *_LEGACY_EXPERTS,
                *norm("layers.*.attn_norm", "attention_norm."),
                *norm("layers.*.mlp_norm", "ffn_norm."),
            ),
            "model.layers.*.",
        ),
        *norm("final_norm", "model.norm_out."),
        plain("head", "lm_head.weight"),
    ),
    tells={
        "qkv_concat": r".*\.attention\.(w|w_qkv)\.weight",
        "wqkv": r".*\.attention\.w\.weight",
        "mlp_concat": r".*\.feed_forward\.w_gate_hidden\.weight",
        "mla": r".*\.attention\.lkv2kv\.weight",
        "mla.q_a": r".*\.attention\.l2q_proj\.weight",
        "routed": r".*\.routed_experts\..*",
        "gmm": r".*\.routed_experts\.ffn\.w1",
        "score_bias": r".*\.routed_experts\.router\.e_score_correction_bias",
    },
    shapes=_shapes,
    reads=("gmm", "qkv_contiguous", "mlp_contiguous"),
    leaves_open=_open,
    ignored=(r".*\.inv_freq",),
    ranks=False,
)
