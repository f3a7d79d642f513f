"""Read from training arguments how positions enter a model."""

from __future__ import annotations

import math
from typing import Any

from ckptconv.facts.sizes import is_latent
from ckptconv.facts.value import Args, Fact, computed

__all__ = ["read_positions"]


def read_positions(args: Args) -> dict[str, Fact]:
    """Return the kind of position embedding and what rotary embedding needs.

    ``rope_scaling`` has the form of a config.json's; None if there is none. MindSpeed-LLM's converter drops
    it from the arguments together with everything else that is a dict, so that there it stays unknown.
    """
    found: dict[str, Fact] = {}
    if (kind := _kind(args)) is not None:
        found["position"] = kind
    if (theta := args.number("rotary_base", "rope_theta")) is not None:
        found["rope_theta"] = theta
    if (scaling := _scaling(args)) is not None:
        found["rope_scaling"] = scaling
    elif not args.converted:
        found["rope_scaling"] = Fact(None, "args.use_rope_scaling")
    part = args.number("partial_rotary_factor") or args.number("rotary_percent")
    if part is not None:
        found["partial_rotary"] = part
    if not is_latent(args) and (pairs := args.on("rotary_interleaved", "use_glm_rope", "use_partial_rope")):
        found["interleaved"] = pairs
    elif not is_latent(args) and (plain := args.flag("rotary_interleaved")) is not None:
        found["interleaved"] = plain
    return found


def _kind(args: Args) -> Fact | None:
    if args.converted:  # it says rotary of every model
        return None
    if args.is_word("position_embedding_type", "none") and not args.on("use_rotary_position_embeddings"):
        return Fact("none", "args.position_embedding_type")
    if (kind := args.text("position_embedding_type")) is not None:
        rotary = kind.value in ("rope", "yarn", "mrope")
        if not rotary and (old := args.on("use_rotary_position_embeddings")):
            return computed("rope", old)
        return computed("rope" if rotary else kind.value, kind)
    if (old := args.on("use_rotary_position_embeddings")) is not None:
        return computed("rope", old)
    return None


def _scaling(args: Args) -> Fact | None:
    for read in (_llama3, _mindspeed, _latent_yarn, _yarn, _linear, _dynamic):
        if (found := read(args)) is not None:
            return found
    return None


def _llama3(args: Args) -> Fact | None:
    """``use_rope_scaling``: the numbers are fixed (megatron-core 0.16.1, ``rotary_pos_embedding.py``).

    NeMo 2 has fields for them, which ``context/model.yaml`` says.
    """
    flag, factor = args.on("use_rope_scaling"), args.number("rope_scaling_factor")
    if flag is None:
        return None
    low, high = args.number("rope_scaling_low_freq_factor"), args.number("rope_scaling_high_freq_factor")
    before = args.whole("rope_scaling_original_max_position_embeddings")
    value = {
        "rope_type": "llama3",
        "factor": float(factor.value if factor else 8),
        "low_freq_factor": float(low.value if low else 1),
        "high_freq_factor": float(high.value if high else 4),
        "original_max_position_embeddings": before.value if before else 8192,
    }
    return computed(value, flag, factor, low, high, before)


def _mindspeed(args: Args) -> Fact | None:
    """``rope_scaling_type`` (MindSpeed-LLM c77308a1, ``features_manager/common/rotary.py``)."""
    kind = args.text("rope_scaling_type")
    if kind is None:
        return None
    factor = args.number("rope_scaling_factor")
    before = args.whole("rope_scaling_original_max_position_embeddings", "original_max_position_embeddings")
    positions = args.whole("max_position_embeddings")
    if kind.value == "yarn" and not is_latent(args) and before is not None and positions is not None:
        factor = computed(positions.value / before.value, positions, before)
    value: dict[str, Any] = {"rope_type": kind.value}
    keys: dict[str, Fact | None] = {"factor": factor}
    if kind.value == "llama3":
        keys |= {k: args.number(k) for k in ("low_freq_factor", "high_freq_factor")}
    elif kind.value == "yarn":
        keys["beta_fast"] = args.number("beta_fast", "rope_scaling_beta_fast")
        keys["beta_slow"] = args.number("beta_slow", "rope_scaling_beta_slow")
        if is_latent(args):
            keys["mscale"] = args.number("rope_scaling_mscale")
            keys["mscale_all_dim"] = args.number("rope_scaling_mscale_all_dim")
    elif kind.value == "longrope":
        keys = {"short_factor": args.floats("short_factor"), "long_factor": args.floats("long_factor")}
    keys["original_max_position_embeddings"] = before
    value |= {
        k: f.value if k.startswith("orig") else _float(f.value) for k, f in keys.items() if f is not None
    }
    return computed(value, kind, *keys.values())


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value


def _latent_yarn(args: Args) -> Fact | None:
    """Latent attention has yarn unless ``rope_type`` says rope.

    So MLATransformerConfig of megatron-core 0.16.1 (``transformer/transformer_config.py``). Factor 1, the
    default of the command line, is plain rotary embedding.
    """
    latent, factor = is_latent(args), args.number("rotary_scaling_factor")
    kind = args.text("rope_type")
    if latent is None or factor is None or factor.value == 1 or (kind is not None and kind.value == "rope"):
        return None
    more = {
        "beta_fast": args.number("beta_fast"),
        "beta_slow": args.number("beta_slow"),
        "mscale": args.number("mscale"),
        "mscale_all_dim": args.number("mscale_all_dim"),
    }
    before = args.whole("original_max_position_embeddings")
    value = {
        "rope_type": "yarn",
        "factor": float(factor.value),
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": before.value if before else 4096,
        **{k: float(f.value) for k, f in more.items() if f is not None},
    }
    if (own := _concentration(args, factor, "mscale", "mscale_all_dim", written=True)) is not None:
        value["attention_factor"] = own.value
    return computed(value, factor, kind, *more.values(), before)


def _yarn(args: Args) -> Fact | None:
    """``position_embedding_type`` yarn of usual attention.

    Megatron-Bridge's fields begin with ``yarn_``; the command line says factor and scales without, and has
    defaults (Megatron-LM core_v0.19.2, ``training/argument_utils.py``, _apply_yarn_config_from_args).
    """
    kind, factor = args.text("position_embedding_type"), args.number("yarn_rotary_scaling_factor")
    if kind is None or kind.value != "yarn":
        return None
    usual: dict[str, Any] = {}
    scales = "yarn_mscale", "yarn_mscale_all_dim"
    if factor is None and (factor := args.number("rotary_scaling_factor")) is not None:
        usual = {"original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
        scales = "mscale", "mscale_all_dim"
    more = {
        "factor": factor,
        "original_max_position_embeddings": args.whole("yarn_original_max_position_embeddings"),
        "beta_fast": args.number("yarn_beta_fast"),
        "beta_slow": args.number("yarn_beta_slow"),
    }
    if (rounded := args.flag("yarn_correction_range_round_to_int")) is not None and not rounded.value:
        more["truncate"] = rounded
    more["attention_factor"] = _concentration(args, factor, *scales)
    said = {k: f.value for k, f in more.items() if f is not None}
    return computed({"rope_type": "yarn", **usual, **said}, kind, *more.values())


def _concentration(
    args: Args, factor: Fact | None, own: str, all_dim: str, *, written: bool = False
) -> Fact | None:
    """Return what queries and keys are multiplied with, where it is not what transformers computes itself.

    It does from the two scales, where they are ``written`` to the config too.

    megatron-core 0.19, ``yarn_rotary_pos_embedding.py`` (_yarn_get_concentration_factor); transformers 5.23,
    ``modeling_rope_utils.py`` (_compute_yarn_parameters), which takes 0.1 ln(factor) + 1 where either is 0.
    """
    one, two = args.number(own), args.number(all_dim)
    if factor is None or factor.value <= 1 or one is None or two is None:
        return None
    ratio = _mscale(factor.value, one.value) / _mscale(factor.value, two.value)
    # Without the two of them in the config, or with either 0, it is that of 1 and 0.
    known = written and one.value and two.value
    return None if known or abs(ratio - _mscale(factor.value, 1.0)) < 1e-9 else computed(ratio, one, two)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0


def _linear(args: Args) -> Fact | None:
    factor = args.number("rotary_seq_len_interpolation_factor")
    if factor is None or factor.value == 1:
        return None
    return computed({"rope_type": "linear", "factor": float(factor.value)}, factor)


def _dynamic(args: Args) -> Fact | None:
    factor = args.number("dynamic_factor")
    if factor is None or factor.value <= 1:
        return None
    return computed({"rope_type": "dynamic", "factor": float(factor.value)}, factor)
