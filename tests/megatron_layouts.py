"""Draw models and parallel layouts, write tiny models, and cut tensors as Megatron does, in plain numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ckptconv.families import find_family

__all__ = ["Drawn", "flags_of", "layouts", "tensors_of", "write_model"]

Array = npt.NDArray[np.float32]
Config = dict[str, Any]

_BASE: Config = dict(
    hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=4, head_dim=4,
    max_position_embeddings=32, rms_norm_eps=1e-6, rope_theta=10000.0, hidden_act="silu",
)  # fmt: skip
_LATENT: Config = dict(
    kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3, num_key_value_heads=4,
    moe_intermediate_size=8, n_shared_experts=1, first_k_dense_replace=1, num_experts_per_tok=2, head_dim=2,
)  # fmt: skip
_SPARSE: Config = dict(moe_intermediate_size=8, num_experts_per_tok=2)
_CHATGLM: Config = dict(
    hidden_size=16, ffn_hidden_size=24, num_attention_heads=4, kv_channels=4, multi_query_attention=True,
    multi_query_group_num=4, add_qkv_bias=True, seq_length=32, layernorm_epsilon=1e-5,
)  # fmt: skip
_GEMMA: Config = dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=4, sliding_window=8)
_GPT: Config = dict(n_embd=16, n_head=4, n_positions=32, layer_norm_epsilon=1e-5)

# Of a model type the config without vocabulary, layers and experts, and the dialects it fits.
_CORE = ("core-local", "core-te")
_ALL = (*_CORE, "modellink", "mindspeed", "mindspeed-te")
_MODELS: dict[str, tuple[Config, tuple[str, ...]]] = {
    "llama": (_BASE, (*_ALL, "legacy")),
    "qwen2": (_BASE, (*_ALL, "legacy")),
    "qwen3": (_BASE, _ALL),
    "phi3": (_BASE, _ALL),
    "internlm2": (_BASE, _ALL),
    "baichuan": (_BASE, _ALL),
    "chatglm": (_CHATGLM, _ALL),
    "gpt2": (_GPT, (*_CORE, "legacy")),
    "gemma2": (_BASE | _GEMMA, ("modellink", "mindspeed")),
    "glm4": (_BASE, ("mindspeed",)),
    "mixtral": (_BASE, _ALL),
    "qwen2_moe": (_BASE | _SPARSE | dict(shared_expert_intermediate_size=8), _ALL),
    "qwen3_moe": (_BASE | _SPARSE, _ALL),
    "deepseek_v2": (_BASE | _LATENT | dict(q_lora_rank=None), ("core-local", "mindspeed", "modellink")),
    "deepseek_v3": (_BASE | _LATENT | dict(q_lora_rank=12), (*_CORE, "modellink", "mindspeed")),
    "glm4_moe": (_BASE | _SPARSE | dict(n_shared_experts=1, first_k_dense_replace=1), ("mindspeed",)),
}
_EXPERTS = {"mixtral": "num_local_experts", "qwen2_moe": "num_experts", "qwen3_moe": "num_experts"}
_ROUTED = ("deepseek_v2", "deepseek_v3", "glm4_moe")
_TIEABLE = ("llama", "qwen2", "qwen3")
_MTP = ("deepseek_v3", "glm4_moe")


@dataclass(frozen=True)
class Drawn:
    """A model's config, and the layout it is split into as options."""

    config: Config
    options: dict[str, Any] = field(default_factory=dict)


@st.composite
def models(draw: st.DrawFn) -> Config:
    """Draw a model."""
    kind = draw(st.sampled_from(sorted(_MODELS)))
    config = {**_MODELS[kind][0], "model_type": kind, "initializer_range": 0.02}
    layers = draw(st.integers(1, 6))
    config[{"gpt2": "n_layer", "chatglm": "num_layers"}.get(kind, "num_hidden_layers")] = layers
    config["padded_vocab_size" if kind == "chatglm" else "vocab_size"] = draw(st.integers(5, 40))
    if kind in _EXPERTS or kind in _ROUTED:
        config[_EXPERTS.get(kind, "n_routed_experts")] = draw(st.sampled_from((4, 8)))
    if kind in ("llama", "qwen2", "qwen3", "mixtral", "qwen3_moe", "phi3", "internlm2"):
        config["num_key_value_heads"] = draw(st.sampled_from((1, 2, 4)))
    if kind == "chatglm":
        config["multi_query_group_num"] = draw(st.sampled_from((2, 4)))
    if kind in _TIEABLE or kind in ("gpt2", "gemma2"):
        config["tie_word_embeddings"] = kind in ("gpt2", "gemma2") or draw(st.booleans())
    if kind in _MTP:
        config["num_nextn_predict_layers"] = draw(st.integers(0, 1))
    return config


def _layers(config: Mapping[str, Any]) -> int:
    return int(next(config[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config))


def _experts(config: Mapping[str, Any]) -> int:
    return next((config[k] for k in (*_EXPERTS.values(), "n_routed_experts") if k in config), 0)


@st.composite
def layouts(draw: st.DrawFn, config: Mapping[str, Any] | None = None) -> Drawn:
    """Draw a model (or take one), and a layout a framework could run it in."""
    config = config if config is not None else draw(models())
    kind, layers, experts = config["model_type"], _layers(config), _experts(config)
    dialect = draw(st.sampled_from(_MODELS[kind][1]))
    mtp = config.get("num_nextn_predict_layers", 0)
    tp = draw(st.sampled_from((1, 2, 4)))  # also more ranks than query groups
    options: dict[str, Any] = dict(dialect=dialect, config=None)
    sizes = dict(tp=tp)
    if experts:
        extend = dialect == "mindspeed" and draw(st.booleans())
        # A model of dense layers alone has no experts to spread.
        spread = config["num_hidden_layers"] > (config.get("first_k_dense_replace") or 0)
        fitting = [n for n in (1, 2, 4) if n * (tp if extend else 1) <= experts and (spread or n == 1)]
        sizes["ep"] = draw(st.sampled_from(fitting))
        options["extend_ep"] = extend
        if not extend and not dialect.startswith(("modellink", "mindspeed")):
            sizes["etp"] = draw(st.sampled_from([n for n in (1, 2, 4) if n <= tp]))
        options["experts"] = draw(st.sampled_from(("sequential", "grouped", "legacy-grouped")))
    if dialect == "mindspeed" and "deepseek" in kind:
        options["mla"] = draw(st.sampled_from(("fused", "split"))) if config["q_lora_rank"] else "fused"
    _draw_pipeline(draw, options, sizes, layers, mtp, dialect)
    if draw(st.booleans()):
        options["vocab_divisible"] = draw(st.integers(1, 9))
    return Drawn(dict(config), {**options, "sizes": sizes})


def _draw_pipeline(
    draw: st.DrawFn, options: dict[str, Any], sizes: dict[str, int], layers: int, mtp: int, dialect: str
) -> None:
    noop: tuple[int, ...] = ()
    if dialect.startswith(("modellink", "mindspeed")) and not mtp and draw(st.booleans()):
        total = layers + draw(st.integers(1, 2))
        noop = tuple(draw(st.permutations(range(total)))[: total - layers])
    total = layers + len(noop)
    sizes["pp"] = pp = draw(st.integers(1, min(3, total)))
    fold = dialect == "mindspeed" and not mtp and draw(st.booleans()) and total >= 2 * pp
    chunks = pp * 2 if fold else pp
    if not fold and total >= 2 * pp and pp > 1 and draw(st.booleans()):
        sizes["vpp"] = 2
        chunks = pp * 2
    if total % chunks or draw(st.booleans()):
        cuts = sorted(draw(st.permutations(range(1, total)))[: chunks - 1])
        counts = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
        options["layers_per_stage"] = tuple(counts)
    options["noop_layers"] = noop
    options["schedule"] = "dualpipev" if fold else None


def tensors_of(config: Mapping[str, Any]) -> dict[str, Array]:
    """Make a model's tensors by the names and shapes of its family; every value differs from every other."""
    family = find_family(config["model_type"])
    assert family is not None
    made: dict[str, Array] = {}
    count = 0
    for name, shape, _ in family.expected(config):
        size = int(np.prod(shape))
        made[name] = np.arange(count, count + size, dtype=np.float32).reshape(shape)
        count += size
    return _repeated(made, family.name_of("embed"), family.name_of("head"), config, family.tied(config))


def _repeated(
    made: dict[str, Array], embed: str | None, head: str | None, config: Mapping[str, Any], tied: bool
) -> dict[str, Array]:
    """Drop a tied head, and repeat the embedding and the head in layers that predict further tokens."""
    assert embed is not None and head is not None
    if tied:
        made.pop(head, None)
    first = f"model.layers.{_layers(config)}."
    for i in range(config.get("num_nextn_predict_layers", 0)):
        stem = first if not i else f"model.layers.{_layers(config) + i}."
        made[f"{stem}embed_tokens.weight"] = made[embed]
        made[f"{stem}shared_head.head.weight"] = made[head]
    return made


def write_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """Write a Hugging Face folder."""
    folder.mkdir(parents=True)
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flags_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not said."""
    return {k: v for k, v in options.items() if v not in (None, (), False)}
