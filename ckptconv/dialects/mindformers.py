"""MindFormers' ways of naming and packing the slots: whole tensors, no cuts.

Names: mindformers fd4deeb and 1.9, ``mindformers/models/*/convert_weight.py``, ``research/*/``,
``mindformers/utils/convert_utils.py`` (``qkv_concat_hf2mg``, ``ffn_concat_hf2mg``),
``mindformers/models/*/utils.py`` (``weight_mapping``), ``toolkit/weight_convert/deepseekv3``. The tables of
GPT-2, BLOOM, InternLM2 and of DeepSeek's first form follow older releases' converters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ckptconv.graph import Spec
from ckptconv.slots import (
    Entry,
    Pack,
    Table,
    columns,
    concat,
    grouped,
    interleaved,
    linear,
    one,
    rotary,
    rows,
    stacked,
    transposed,
)
from ckptconv.slots.entry import form, numbers
from ckptconv.slots.pack import over_leaves

__all__ = ["STYLES", "Style", "find_style", "style_for", "told", "unsaid", "usual"]


@dataclass(frozen=True, slots=True)
class Style:
    """Describe one way of naming and packing.

    Words of ``when`` say which of several forms a checkpoint has: ``qkv_concat`` and ``mlp_concat`` (one
    tensor), ``qkv_contiguous`` and ``mlp_contiguous`` (its parts one after the other, not in turns),
    ``rearranged`` (rotary dimensions in halves), ``gmm`` (experts' weights transposed), ``wide`` (declared
    ``[hidden, experts*2*inner]``), ``mla``, ``q_lora``, ``mla_split``, ``sequential`` and more below.

    Attributes:
        name: Name for ``--dialect``.
        entries: Its tensors.
        words: The words that names tell, each with a pattern that one name at least matches.
        ignored: Patterns of buffers that are stored with the weights.
    """

    name: str
    entries: tuple[Entry, ...]
    words: Mapping[str, str]
    ignored: tuple[str, ...] = (r".*\.inv_freq",)

    def table(self, words: Collection[str]) -> Table:
        """Return the lines to look names and slots up in."""
        return Table(self.entries, holds=lambda word, layer: word in words)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor is a buffer the model makes itself."""
        return any(re.fullmatch(p, name) for p in self.ignored)


def _lines(slot: str | Pack, module: str, when: str = "", *, bias: bool = True) -> tuple[Entry, ...]:
    return tuple(replace(e, when=when or None) for e in linear(slot, module, bias=None if bias else False))


def _norm(
    slot: str, stem: str, when: str = "", names: tuple[str, str] = ("weight", "bias")
) -> tuple[Entry, ...]:
    return (
        one(slot, f"{stem}.{names[0]}", when=when or None),
        one(f"{slot}.bias", f"{stem}.{names[1]}", when=when or None, optional=True),
    )


def _under(prefix: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(replace(e, name=prefix + e.name) for e in entries)


def _mtp(prefix: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Make the lines of a layer those of a layer for multi-token prediction."""
    return tuple(
        replace(e, name=prefix + e.name, pack=over_leaves(e.pack, lambda s: "mtp" + s.removeprefix("layers")))
        for e in entries
    )


_Q, _K, _V = "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"
_GATE, _UP, _DOWN = "layers.*.mlp.gate", "layers.*.mlp.up", "layers.*.mlp.down"
_EXPERT = "layers.*.moe.experts.{e}"
_EXPERT_GATE, _EXPERT_UP, _EXPERT_DOWN = (f"{_EXPERT}.{part}" for part in ("gate", "up", "down"))
_SHARED = "layers.*.moe.shared"
_IN_TURNS, _IN_A_ROW = grouped("kv_heads", _Q, _K, _V), concat(_Q, _K, _V)
_QUERY = grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope")
_QUERY_UP = grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope")
_KEY_VALUE_UP = grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v")


# Llama and its relatives (models/llama, research/qwen2_5, baichuan2, internlm2, mixtral, deepseek3).

_LEGACY_ATTENTION = (
    *_lines(_Q, "attention.wq", "!qkv_concat !mla"),
    *_lines(_K, "attention.wk", "!qkv_concat !mla"),
    *_lines(_V, "attention.wv", "!qkv_concat !mla"),
    *_lines(_IN_TURNS, "attention.w_qkv", "qkv_concat !wqkv !qkv_contiguous"),
    *_lines(_IN_A_ROW, "attention.w_qkv", "qkv_concat !wqkv qkv_contiguous"),
    *_lines(_IN_TURNS, "attention.w", "qkv_concat wqkv"),  # InternLM2's own tensor
    *_lines("layers.*.attn.o", "attention.wo", "!mla"),
    *_lines("layers.*.mla.q_a", "attention.q2l_proj", "mla q_lora"),
    *_norm("layers.*.mla.q_a_norm", "attention.lq_norm", "mla q_lora"),
    *_lines(_QUERY_UP, "attention.l2q_proj", "mla q_lora", bias=False),
    *_lines(_QUERY, "attention.q_proj", "mla !q_lora", bias=False),
    *_lines("layers.*.mla.kv_a", "attention.kv2l", "mla"),
    *_norm("layers.*.mla.kv_a_norm", "attention.lkv_norm", "mla"),
    *_lines(_KEY_VALUE_UP, "attention.lkv2kv", "mla", bias=False),
    *_lines("layers.*.mla.o", "attention.wo", "mla"),
)
_LEGACY_MLP = (
    *_lines(_GATE, "feed_forward.w1", "!mlp_concat"),
    *_lines(_DOWN, "feed_forward.w2"),
    *_lines(_UP, "feed_forward.w3", "!mlp_concat"),
    *_lines(interleaved(_GATE, _UP), "feed_forward.w_gate_hidden", "mlp_concat !mlp_contiguous"),
    *_lines(concat(_GATE, _UP), "feed_forward.w_gate_hidden", "mlp_concat mlp_contiguous"),
)
_ROUTED = "feed_forward.routed_experts"


def _stacked_experts(stem: str, when: str, *, turned: bool) -> tuple[Entry, ...]:
    return tuple(
        one(stacked(transposed(slot) if turned else slot), f"{stem}.{name}.weight", when=when)
        for slot, name in ((_EXPERT_GATE, "w1"), (_EXPERT_DOWN, "w2"), (_EXPERT_UP, "w3"))
    )


_LEGACY_EXPERTS = (
    one("layers.*.moe.router", "feed_forward.router.dense.weight", when="!routed"),
    *_stacked_experts("feed_forward.ffn", "!routed !gmm", turned=False),
    *_stacked_experts("feed_forward.ffn", "!routed gmm", turned=True),
    one("layers.*.moe.router", f"{_ROUTED}.router.dense.weight", when="routed !gmm"),
    one("layers.*.moe.router_bias", f"{_ROUTED}.router.router.topk_bias", when="routed !gmm !score_bias"),
    one("layers.*.moe.router_bias", f"{_ROUTED}.router.e_score_correction_bias", when="routed score_bias"),
    *_stacked_experts(f"{_ROUTED}.ffn", "routed !gmm", turned=False),
    one("layers.*.moe.router", f"{_ROUTED}.router_dense.weight", when="routed gmm"),
    one("layers.*.moe.router_bias", f"{_ROUTED}.topk_bias", when="routed gmm"),
    one(stacked(transposed(concat(_EXPERT_GATE, _EXPERT_UP))), f"{_ROUTED}.ffn.w1", when="routed gmm"),
    one(stacked(transposed(_EXPERT_DOWN)), f"{_ROUTED}.ffn.w2", when="routed gmm"),
    one(f"{_SHARED}.gate", "feed_forward.shared_experts.w1.weight"),
    one(f"{_SHARED}.down", "feed_forward.shared_experts.w2.weight"),
    one(f"{_SHARED}.up", "feed_forward.shared_experts.w3.weight"),
)
LEGACY = Style(
    name="mindformers-legacy",
    entries=(
        one("embed", "model.tok_embeddings.embedding_weight"),
        *_under(
            "model.layers.*.",
            (
                *_LEGACY_ATTENTION,
                *_LEGACY_MLP,
                *_LEGACY_EXPERTS,
                *_norm("layers.*.attn_norm", "attention_norm"),
                *_norm("layers.*.mlp_norm", "ffn_norm"),
            ),
        ),
        *_norm("final_norm", "model.norm_out"),
        one("head", "lm_head.weight"),
    ),
    words={
        "qkv_concat": r".*\.attention\.(w|w_qkv)\.weight",
        "wqkv": r".*\.attention\.w\.weight",
        "mlp_concat": r".*\.feed_forward\.w_gate_hidden\.weight",
        "mla": r".*\.attention\.lkv2kv\.weight",
        "q_lora": r".*\.attention\.l2q_proj\.weight",
        "routed": r".*\.routed_experts\..*",
        "gmm": r".*\.routed_experts\.ffn\.w1",
        "score_bias": r".*\.routed_experts\.router\.e_score_correction_bias",
    },
)

# ChatGLM 2 and 3, GLM-4 (models/glm2).

_GLM_LAYER = (
    *_norm("layers.*.attn_norm", "input_layernorm"),
    *_lines(_Q, "self_attention.wq", "!qkv_concat !rearranged"),
    *_lines(_K, "self_attention.wk", "!qkv_concat !rearranged"),
    *_lines(rotary("heads", _Q), "self_attention.wq", "!qkv_concat rearranged"),
    *_lines(rotary("kv_heads", _K), "self_attention.wk", "!qkv_concat rearranged"),
    *_lines(_V, "self_attention.wv", "!qkv_concat"),
    *_lines(_IN_A_ROW, "self_attention.query_key_value", "qkv_concat !rearranged"),
    *_lines(
        concat(rotary("heads", _Q), rotary("kv_heads", _K), _V),
        "self_attention.query_key_value",
        "qkv_concat rearranged",
    ),
    *_lines("layers.*.attn.o", "self_attention.dense"),
    *_norm("layers.*.mlp_norm", "post_attention_layernorm"),
    *_lines(_GATE, "mlp.dense_left", "!mlp_concat"),
    *_lines(_UP, "mlp.dense_right", "!mlp_concat"),
    *_lines(concat(_GATE, _UP), "mlp.dense_h_to_4h", "mlp_concat"),
    *_lines(_DOWN, "mlp.dense_4h_to_h"),
)
GLM = Style(
    name="mindformers-glm",
    entries=(
        one("embed", "transformer.embedding.embedding_weight"),
        *_under("transformer.encoder.layers.*.", _GLM_LAYER),
        *_norm("final_norm", "transformer.encoder.final_layernorm"),
        one("head", "transformer.output_layer.weight"),
    ),
    words={
        "qkv_concat": r".*\.self_attention\.query_key_value\.weight",
        "mlp_concat": r".*\.mlp\.dense_h_to_4h\.weight",
    },
)

# Models on MindFormers' own core since 1.5: Qwen3, Qwen3-MoE, DeepSeek-V3 (parallel_core, models/*/utils.py).

_FC1 = interleaved(_GATE, _UP)
_SHARED_FC1 = f"{_SHARED}.gate", f"{_SHARED}.up"
_EXPERT_FC1 = concat(_EXPERT_GATE, _EXPERT_UP)
_CORE_ATTENTION = (
    *_lines(_IN_TURNS, "self_attention.linear_qkv", "!mla !qkv_apart !qkv_contiguous"),
    *_lines(_IN_A_ROW, "self_attention.linear_qkv", "!mla !qkv_apart qkv_contiguous"),
    *_lines(_Q, "self_attention.linear_q", "!mla qkv_apart"),
    *_lines(_K, "self_attention.linear_k", "!mla qkv_apart"),
    *_lines(_V, "self_attention.linear_v", "!mla qkv_apart"),
    *_norm("layers.*.attn.q_norm", "self_attention.q_layernorm", "!mla"),
    *_norm("layers.*.attn.k_norm", "self_attention.k_layernorm", "!mla"),
    *_lines("layers.*.attn.o", "self_attention.linear_proj", "!mla"),
)
_CORE_LATENT = (
    *_lines(
        concat("layers.*.mla.q_a", "layers.*.mla.kv_a"), "self_attention.linear_qkv", "mla q_lora !mla_down"
    ),
    *_lines(
        concat(_QUERY, "layers.*.mla.kv_a"), "self_attention.linear_qkv", "mla !q_lora !mla_down", bias=False
    ),
    *_lines("layers.*.mla.q_a", "self_attention.linear_q_down_proj", "mla q_lora mla_down"),
    *_lines(_QUERY, "self_attention.linear_q_proj", "mla !q_lora mla_down", bias=False),
    *_lines("layers.*.mla.kv_a", "self_attention.linear_kv_down_proj", "mla mla_down"),
    *_norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm", "mla"),
    *_norm("layers.*.mla.kv_a_norm", "self_attention.k_layernorm", "mla !mla_down"),
    *_norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm", "mla mla_down"),
    *_lines(_QUERY_UP, "self_attention.linear_qb", "mla !mla_split !mla_down", bias=False),
    *_lines(_KEY_VALUE_UP, "self_attention.linear_kvb", "mla !mla_split !mla_down", bias=False),
    *_lines(_QUERY_UP, "self_attention.linear_q_up_proj", "mla mla_down", bias=False),
    *_lines(_KEY_VALUE_UP, "self_attention.linear_kv_up_proj", "mla mla_down", bias=False),
    *_lines("layers.*.mla.q_b.nope", "self_attention.linear_qk_nope", "mla mla_split", bias=False),
    *_lines("layers.*.mla.q_b.rope", "self_attention.linear_qk_rope", "mla mla_split", bias=False),
    *_lines("layers.*.mla.kv_b.k", "self_attention.linear_kv_nope", "mla mla_split", bias=False),
    *_lines("layers.*.mla.kv_b.v", "self_attention.linear_v", "mla mla_split", bias=False),
    *_lines("layers.*.mla.o", "self_attention.linear_proj", "mla"),
)
_CORE_MLP = (
    *_lines(_FC1, "mlp.linear_fc1", "!mlp_apart !mlp_contiguous"),
    *_lines(concat(_GATE, _UP), "mlp.linear_fc1", "!mlp_apart mlp_contiguous"),
    *_lines(_GATE, "mlp.gating", "mlp_apart"),
    *_lines(_UP, "mlp.hidden", "mlp_apart"),
    *_lines(_DOWN, "mlp.linear_fc2"),
)
_CORE_EXPERTS = (
    one("layers.*.moe.router", "mlp.router.weight"),
    one("layers.*.moe.router_bias", "mlp.router.expert_bias"),
    one(rows(stacked(transposed(_EXPERT_FC1))), "mlp.experts.weight1", when="!sequential !wide"),
    one(columns(stacked(transposed(_EXPERT_FC1))), "mlp.experts.weight1", when="!sequential wide"),
    one(rows(stacked(transposed(_EXPERT_DOWN))), "mlp.experts.weight2", when="!sequential"),
    one(_EXPERT_FC1, "mlp.experts.local_experts.{e}.linear_fc1.weight", when="sequential"),
    one(_EXPERT_DOWN, "mlp.experts.local_experts.{e}.linear_fc2.weight", when="sequential"),
    one(interleaved(*_SHARED_FC1), "mlp.shared_experts.linear_fc1.weight", when="!mlp_contiguous"),
    one(concat(*_SHARED_FC1), "mlp.shared_experts.linear_fc1.weight", when="mlp_contiguous"),
    one(f"{_SHARED}.down", "mlp.shared_experts.linear_fc2.weight"),
)
_CORE_LAYER = (
    *_norm("layers.*.attn_norm", "input_layernorm"),
    *_norm("layers.*.mlp_norm", "pre_mlp_layernorm"),
    *_CORE_ATTENTION,
    *_CORE_LATENT,
    *_CORE_MLP,
    *_CORE_EXPERTS,
)
CORE = Style(
    name="mindformers-core",
    entries=(
        one("embed", "embedding.word_embeddings.weight"),
        *_under("decoder.layers.*.", _CORE_LAYER),
        *_norm("final_norm", "decoder.final_layernorm"),
        one("head", "output_layer.weight"),
        # The converter writes it for models that predict one token (convert_deepseekv3_hf_weight.py).
        one("head", "mtp.output_layer.weight", when="mtp_head", copy=True),
        one("mtp.*.enorm", "mtp.layers.*.enorm.weight"),
        one("mtp.*.hnorm", "mtp.layers.*.hnorm.weight"),
        one("mtp.*.eh_proj", "mtp.layers.*.eh_proj.weight"),
        *_mtp("mtp.layers.*.transformer_layer.", _CORE_LAYER),
        *_norm("mtp.*.norm", "mtp.layers.*.final_layernorm"),
    ),
    words={
        "mla": r".*\.self_attention\.(linear_kvb|linear_kv_up_proj|linear_kv_nope)\.weight",
        "q_lora": r".*\.self_attention\.(linear_qb|linear_q_up_proj|linear_qk_nope)\.weight",
        "mla_down": r".*\.self_attention\.linear_kv_down_proj\.weight",
        "mla_split": r".*\.self_attention\.linear_kv_nope\.weight",
        "qkv_apart": r".*\.self_attention\.linear_k\.weight",
        "mlp_apart": r".*\.mlp\.gating\.weight",
        "sequential": r".*\.local_experts\..*",
        "mtp_head": r"mtp\.output_layer\.weight",
    },
)

# GPT-2 and BLOOM (models/gpt2, models/bloom), whose own projections are stored input first.

_OLD_NORM = ("gamma", "beta")


def _block(layer: str) -> tuple[Entry, ...]:
    return _under(
        layer,
        (
            *_norm("layers.*.attn_norm", "layernorm1", names=_OLD_NORM),
            *_norm("layers.*.mlp_norm", "layernorm2", names=_OLD_NORM),
            *_lines(_Q, "attention.dense1"),
            *_lines(_K, "attention.dense2"),
            *_lines(_V, "attention.dense3"),
            *_lines(transposed("layers.*.attn.o"), "attention.projection"),
            *_lines(transposed(_UP), "output.mapping"),
            *_lines(transposed(_DOWN), "output.projection"),
        ),
    )


GPT2 = Style(
    name="mindformers-gpt2",
    entries=(
        one("embed", "backbone.embedding.word_embedding.embedding_table"),
        one("positions", "backbone.embedding.position_embedding.embedding_table"),
        *_block("backbone.blocks.*."),
        *_norm("final_norm", "backbone.layernorm", names=_OLD_NORM),
    ),
    words={},
    ignored=(r"backbone\.blocks\.\d+\.attention\.(masked_)?beta",),
)
BLOOM = Style(
    name="mindformers-bloom",
    entries=(
        one("embed", "transformer.embedding.word_embedding.embedding_table"),
        *_norm("embed_norm", "transformer.embedding.norm", names=_OLD_NORM),
        *_block("transformer.blocks.*."),
        *_norm("final_norm", "transformer.ln_f", names=_OLD_NORM),
        one("head", "head.weight"),
    ),
    words={},
)

STYLES = (LEGACY, GLM, CORE, GPT2, BLOOM)
_FAMILIES = {
    "chatglm": GLM,
    "glm": GLM,
    "qwen3": CORE,
    "qwen3_moe": CORE,
    "deepseek_v3": CORE,
    "gpt2": GPT2,
    "bloom": BLOOM,
}


def style_for(family: str) -> Style:
    """Return the style MindFormers' own converter writes a family in; that of Llama's relatives if unsure."""
    return _FAMILIES.get(family, LEGACY)


def find_style(names: Collection[str]) -> Style | None:
    """Return the style that knows most names; None if none knows the embedding and half of them."""
    forms = [numbers(name)[0] for name in names]

    def known(style: Style) -> int:
        there = {form(e.name) for e in style.entries}
        embed = any(e.pack == "embed" and e.name in names for e in style.entries)
        return sum(f in there for f in forms) if embed else 0

    best = max(STYLES, key=known)
    return best if 2 * known(best) > len(forms) else None


def told(style: Style, tensors: Mapping[str, Spec]) -> frozenset[str]:
    """Return the words that names and shapes tell."""
    found = {w for w, pattern in style.words.items() if any(re.fullmatch(pattern, n) for n in tensors)}
    embed = next(e.name for e in style.entries if e.pack == "embed")
    hidden = tensors[embed].shape[-1] if embed in tensors else 0
    for name, spec in tensors.items():
        if name.endswith(".feed_forward.ffn.w1.weight") and spec.shape[1:2] == (hidden,) != spec.shape[2:]:
            found.add("gmm")
        elif name.endswith(".mlp.experts.weight1") and spec.shape[0] == hidden:
            found.add("wide")
    return frozenset(found)


def unsaid(style: Style, tensors: Mapping[str, Spec], words: Collection[str]) -> dict[str, bool]:
    """Return the words that names and shapes leave open, each with what is most likely."""
    names = {numbers(name)[0].rpartition(".layers.#.")[2] for name in tensors}
    open_words: dict[str, bool] = {}
    if style is LEGACY:
        if "qkv_concat" in words and "wqkv" not in words:
            open_words["qkv_contiguous"] = False
        if "mlp_concat" in words:
            open_words["mlp_contiguous"] = False
        if any(
            n.endswith(".feed_forward.ffn.w1.weight") and len(set(s.shape[1:])) == 1
            for n, s in tensors.items()
        ):
            open_words["gmm"] = False
    elif style is GLM:
        open_words["rearranged"] = False
    elif style is CORE:
        if "mla" not in words and "self_attention.linear_qkv.weight" in names:
            open_words["qkv_contiguous"] = False
        if any(n.endswith(("mlp.linear_fc1.weight", "shared_experts.linear_fc1.weight")) for n in names):
            open_words["mlp_contiguous"] = "mla" in words
    return open_words


def usual(style: Style, tensors: Mapping[str, Spec]) -> frozenset[str]:
    """Return the words that hold if nothing but the tensors is known."""
    words = told(style, tensors)
    return words | {word for word, likely in unsaid(style, tensors, words).items() if likely}
