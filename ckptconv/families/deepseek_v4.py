"""DeepSeek-V4: one key for all heads, a compressed past, hyper-connections, experts chosen by hash.

Names are those of DeepSeek's own release where config.json is (it has ``compress_ratios``), else those that
transformers 5.23 saves (``modeling_deepseek_v4.py``, ``conversion_mapping.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import gated
from ckptconv.slots import Entry, one

_RELEASE = "compress_ratios"
_ATTENTION = {
    "q_a": ("wq_a.weight", "q_rank,hidden"),
    "q_a_norm": ("q_norm.weight", "q_rank"),
    "q_b": ("wq_b.weight", "heads*head_dim,q_rank"),
    "kv": ("wkv.weight", "head_dim,hidden"),
    "kv_norm": ("kv_norm.weight", "head_dim"),
    "o_a": ("wo_a.weight", "o_groups*o_rank,o_wide"),
    "o_b": ("wo_b.weight", "hidden,o_groups*o_rank"),
    "sinks": ("attn_sink", "heads"),
}
# Layers that compress the past little, with an indexer, or much.
_LITTLE = {
    "ape": ("compressor.ape", "few,2*head_dim"),
    "norm": ("compressor.norm.weight", "head_dim"),
    "gate": ("compressor.wgate.weight", "2*head_dim,hidden"),
    "kv": ("compressor.wkv.weight", "2*head_dim,hidden"),
    "indexer.ape": ("indexer.compressor.ape", "few,2*index_dim"),
    "indexer.norm": ("indexer.compressor.norm.weight", "index_dim"),
    "indexer.gate": ("indexer.compressor.wgate.weight", "2*index_dim,hidden"),
    "indexer.kv": ("indexer.compressor.wkv.weight", "2*index_dim,hidden"),
    "indexer.q_b": ("indexer.wq_b.weight", "index_heads*index_dim,q_rank"),
    "indexer.weights": ("indexer.weights_proj.weight", "index_heads,hidden"),
}
_MUCH = {
    "ape": ("compressor.ape", "many,head_dim"),
    "norm": ("compressor.norm.weight", "head_dim"),
    "gate": ("compressor.wgate.weight", "head_dim,hidden"),
    "kv": ("compressor.wkv.weight", "head_dim,hidden"),
}
_HYPER = {"base": "hyper_out", "fn": "hyper_out,hyper*hidden", "scale": "3"}
_HEAD = {"base": "hyper", "fn": "hyper,hyper*hidden", "scale": "1"}


def _layer(at: str, kind: str, kv_norm: str) -> tuple[Entry, ...]:
    """Declare a layer.

    Args:
        at: What its names begin with.
        kind: ``layers`` or ``mtp``.
        kv_norm: What the norm of keys and values is called.
    """
    attention = {**_ATTENTION, "kv_norm": (kv_norm, "")}
    return (
        one(f"{kind}.*.attn_norm", f"{at}.attn_norm.weight"),
        *(one(f"{kind}.*.mqa.{slot}", f"{at}.attn.{name}") for slot, (name, _) in attention.items()),
        *(one(f"{kind}.*.csa.{s}", f"{at}.attn.{name}", when="csa") for s, (name, _) in _LITTLE.items()),
        *(one(f"{kind}.*.hca.{s}", f"{at}.attn.{name}", when="hca") for s, (name, _) in _MUCH.items()),
        one(f"{kind}.*.mlp_norm", f"{at}.ffn_norm.weight"),
        one(f"{kind}.*.moe.router", f"{at}.ffn.gate.weight"),
        one(f"{kind}.*.moe.router_bias", f"{at}.ffn.gate.bias", when="!hash"),
        one(f"{kind}.*.hash.table", f"{at}.ffn.gate.tid2eid", when="hash"),
        *(
            replace(e, pack=str(e.pack).replace("layers", kind, 1))
            for e in (
                *gated("layers.*.moe.experts.{e}", f"{at}.ffn.experts.{{e}}", "w1 w3 w2"),
                *gated("layers.*.moe.shared", f"{at}.ffn.shared_experts", "w1 w3 w2"),
            )
        ),
        *(one(f"{kind}.*.mhc.attn.{part}", f"{at}.hc_attn_{part}") for part in _HYPER),
        *(one(f"{kind}.*.mhc.mlp.{part}", f"{at}.hc_ffn_{part}") for part in _HYPER),
    )


def _when(entries: tuple[Entry, ...], word: str) -> tuple[Entry, ...]:
    return tuple(replace(e, when=f"{word} {e.when or ''}".strip()) for e in entries)


_RELEASED = _when(
    (
        one("embed", "embed.weight"),
        *_layer("layers.*", "layers", "kv_norm.weight"),
        *(one(f"hc_head.{part}", f"hc_head_{part}") for part in _HEAD),
        one("final_norm", "norm.weight"),
        one("mtp.*.enorm", "mtp.*.enorm.weight"),
        one("mtp.*.hnorm", "mtp.*.hnorm.weight"),
        one("mtp.*.e_proj", "mtp.*.e_proj.weight"),
        one("mtp.*.h_proj", "mtp.*.h_proj.weight"),
        *_layer("mtp.*", "mtp", "kv_norm.weight"),
        *(one(f"mtp.*.hc_head.{part}", f"mtp.*.hc_head_{part}") for part in _HEAD),
        one("mtp.*.norm", "mtp.*.norm.weight"),
    ),
    _RELEASE,
)
_SAVED = _when(
    (
        one("embed", "model.embed_tokens.weight"),
        *_layer("model.layers.*", "layers", "norm.weight"),
        *(one(f"hc_head.{part}", f"model.hc_head.hc_{part}") for part in _HEAD),
        one("final_norm", "model.norm.weight"),
    ),
    f"!{_RELEASE}",
)


def _rates(config: Config) -> list[int]:
    """Return by how much each layer compresses the past; 0 for not at all."""
    if config.get(_RELEASE):
        return [int(r) for r in config[_RELEASE]]
    rates, types = config.get("compress_rates") or {}, config.get("layer_types") or ()
    return [int(rates.get(str(kind)) or 0) for kind in types]


def _kinds(config: Config) -> tuple[str, ...]:
    rates = _rates(config)
    hashed = config.get("num_hash_layers") or config.get("n_hash_layers") or 0
    if isinstance(types := config.get("mlp_layer_types"), list):
        hashed = sum(str(kind) == "hash_moe" for kind in types)
    layers = config.get("num_hidden_layers") or 0
    many = _sizes(config)["many"]
    return tuple(
        " ".join(
            word
            for word, holds in {
                "mqa moe mhc": True,
                "csa": 0 < rate != many,
                "hca": rate == many,
                "hash": i < hashed,
                "hc_head": i >= layers,
            }.items()
            if holds
        )
        for i, rate in enumerate(rates)
    )


def _sizes(config: Config) -> Mapping[str, int]:
    rates = sorted({r for r in _rates(config) if r > 0})
    hyper, groups = config.get("hc_mult") or 0, config.get("o_groups") or 1
    wide = (config.get("num_attention_heads") or 0) * (config.get("head_dim") or 0)
    released = bool(config.get(_RELEASE))
    return {
        "few": rates[0] if rates else 0,
        "many": rates[-1] if len(rates) > 1 or (rates and rates[-1] > 16) else -1,
        "hyper": hyper,
        "hyper_out": (2 + hyper) * hyper,
        "o_groups": groups,
        "o_rank": config.get("o_lora_rank") or 0,
        "o_wide": wide // groups,
        "topk": config.get("num_experts_per_tok") or 0,
        # transformers neither has nor saves these layers.
        "mtp": (config.get("num_nextn_predict_layers") or 0) if released else 0,
    }


def _shapes(kind: str) -> dict[str, str]:
    blocks = {"mqa": _ATTENTION, "csa": _LITTLE, "hca": _MUCH}
    return {
        **{f"{kind}.*.{b}.{slot}": axes for b, slots in blocks.items() for slot, (_, axes) in slots.items()},
        **{f"{kind}.*.mhc.{where}.{s}": axes for where in ("attn", "mlp") for s, axes in _HYPER.items()},
        f"{kind}.*.hash.table": "vocab,topk",
    }


FAMILY = Family(
    name="deepseek_v4",
    model_types=("deepseek_v4",),
    entries=(*_RELEASED, *_SAVED, one("head", "head.weight", when="!tie_word_embeddings")),
    ignored=(r"head\.weight",),
    flags={"tie_word_embeddings": False},
    sizes=_sizes,
    kinds=_kinds,
    slots={
        **_shapes("layers"),
        **_shapes("mtp"),
        **{f"hc_head.{s}": axes for s, axes in _HEAD.items()},
        **{f"mtp.*.hc_head.{s}": axes for s, axes in _HEAD.items()},
        "mtp.*.e_proj": "hidden,hidden",
        "mtp.*.h_proj": "hidden,hidden",
    },
)
