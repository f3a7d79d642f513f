"""Read and write ``adapter_config.json``: what a LoRA adapter's scale is, and what PEFT needs to load it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.places.jsonfile import read_json
from ckptconv.plans.plan import AssetFile
from ckptconv.plans.request import Request
from ckptconv.records import dataclass
from ckptconv.relations import LowRank, Spec

__all__ = [
    "PREFIX",
    "WITH_PEFT",
    "WITH_TRAINER",
    "AdapterConfig",
    "Scales",
    "config_file",
    "read_config",
    "refuse_changed_base",
    "saved_name",
]

CONFIG = "adapter_config.json"

PREFIX = "base_model.model."
"""What PEFT puts before every name of the model it wraps (peft 0.21, ``peft_model.py``)."""

WITH_PEFT = "merge it with peft (merge_and_unload) and convert the result"
"""What to do about an adapter that is refused."""

WITH_TRAINER = "merge it with the library that trained it and convert the result"
"""What to do about one that PEFT does not know."""

# What makes an adapter more than W + scale * (B @ A) (peft 0.21, tuners/lora/config.py).
_REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "target_parameters",
)  # fmt: skip

# Values of init_lora_weights that take the adapter's first product out of the base weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Hold an adapter_config.json, or what says the same: its content, its path, its name for people."""

    values: Mapping[str, Any]
    path: Path
    name: str = CONFIG

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the weights are ``[in, out]``."""
        return bool(self.values.get("fan_in_fan_out"))

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Names of modules trained as a whole."""
        found = self.values.get("modules_to_save")
        return tuple(str(m) for m in found) if isinstance(found, list) else ()

    def number(self, key: str, module: str) -> float | None:
        """Return ``lora_alpha`` or ``r`` of a module, by its pattern if one matches.

        Patterns are regular expressions matched as PEFT does (peft 0.21, ``utils/other.py``,
        ``get_pattern_key``).

        Raises:
            FormatError: if it is no positive number, or a pattern is no regular expression.
        """
        patterns = self.values.get({"lora_alpha": "alpha_pattern", "r": "rank_pattern"}[key]) or {}
        value = self.values.get(key)
        try:
            for pattern, special in patterns.items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    value = special
                    break
        except (re.error, AttributeError) as e:
            raise FormatError(f"the patterns of {key} are not regular expressions", where=self.path) from e
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise FormatError(f"{key} of {module} is {value!r}, not a positive number", where=self.path)
        return value


def read_config(*folders: Path) -> AdapterConfig | None:
    """Read the first adapter_config.json there is; None if there is none.

    Raises:
        FormatError: if it is not a JSON object.
        PlanError: if the adapter is no plain LoRA.
    """
    path = next((f / CONFIG for f in folders if (f / CONFIG).is_file()), None)
    if path is None:
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise FormatError("not a JSON object", where=path)
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise PlanError(f"the adapter is of type {kind}, not LORA", where=path, hint=WITH_PEFT)
    if (odd := next((k for k in _REFUSED if values.get(k)), None)) is not None:
        raise PlanError(f"the adapter is more than a LoRA product: {odd} is set", where=path, hint=WITH_PEFT)
    return AdapterConfig(values, path)


def refuse_changed_base(config: AdapterConfig) -> None:
    """Refuse to add an adapter to base weights that its initialisation has changed.

    Raises:
        PlanError: if it was initialised that way.
    """
    start = config.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise PlanError(
            f"the adapter was initialised with {start}, which changes the base weights: its product does not "
            "belong on the original ones",
            where=config.path,
            hint=WITH_PEFT,
        )


@dataclass(frozen=True, slots=True)
class Scales:
    """Say what the products are multiplied with: by the adapter's config, or by flags."""

    config: AdapterConfig | None
    alpha: float | None
    rank: int | None

    @classmethod
    def of(cls, config: AdapterConfig | None, options: Request) -> Scales:
        """Take them from the config and the flags."""
        return cls(config, options.lora_alpha, options.lora_r)

    def alpha_of(self, module: str) -> float:
        """Return a module's alpha.

        Raises:
            UsageError: if nothing says it, or the flag contradicts the config.
        """
        known = self.config.number("lora_alpha", module) if self.config is not None else None
        if known is None:
            if self.alpha is None:
                raise UsageError(
                    f"the scale of the LoRA adapters is not known: there is no {CONFIG} beside them",
                    hint=f"give --lora-alpha (lora_alpha of the training), or put {CONFIG} there",
                )
            return self.alpha
        if self.alpha is not None and self.alpha != known:
            name = self.config.name if self.config is not None else CONFIG
            raise UsageError(f"--lora-alpha is {self.alpha:g}, but {name} says {known:g} for {module}")
        return known

    def scale_of(self, module: str, rank: int) -> float:
        """Return ``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA.

        Raises:
            UsageError: as `alpha_of` does, or if ``--lora-r`` is not the rank.
            PlanError: if the config's rank is another one.
        """
        if self.rank is not None and self.rank != rank:
            raise UsageError(f"--lora-r is {self.rank}, but the adapter of {module} has rank {rank}")
        alpha = self.alpha_of(module)
        if self.config is None:
            return alpha / rank
        says = self.config.number("r", module)
        if says is not None and says != rank:
            raise PlanError(
                f"the adapter of {module} has rank {rank}, {self.config.name} says {says:g}",
                where=self.config.path,
            )
        return alpha / (math.sqrt(rank) if self.config.values.get("use_rslora") else rank)


def saved_name(module: str, part: str, *, embedding: bool) -> str:
    """Return the name PEFT saves a factor under; ``part`` is ``A`` or ``B``."""
    return f"{PREFIX}{module}.lora_embedding_{part}" if embedding else f"{PREFIX}{module}.lora_{part}.weight"


def config_file(
    adapters: Mapping[str, LowRank],
    tensors: Mapping[str, Spec],
    config: AdapterConfig | None,
    *,
    embeddings: Collection[str] = (),
    modules: Collection[str] = (),
    modules_to_save: Sequence[str] = (),
) -> AssetFile:
    """Return the adapter_config.json of adapters: the one that is there, else one that says the same.

    Args:
        adapters: Adapters by the name of the weight they belong to.
        tensors: Shapes of their factors.
        config: The one that is there.
        embeddings: Weights of those that are embeddings.
        modules: The model's modules that have a weight.
        modules_to_save: Modules that were trained as a whole.
    """
    if config is not None:
        return AssetFile(CONFIG, str(config.path), _json({**config.values, "inference_mode": True}))
    ranks = {_module(w): tensors[t.a].shape[0] for w, t in adapters.items()}
    alphas = {_module(w): _alpha(t.scale * ranks[_module(w)]) for w, t in adapters.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    last = {m.rpartition(".")[2] for m in ranks}
    named = {m for m in modules if m.rpartition(".")[2] in last} <= ranks.keys()
    values = {
        "alpha_pattern": {re.escape(m): a for m, a in alphas.items() if a != alpha},
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": any(t.transposed for w, t in adapters.items() if w not in embeddings),
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": list(modules_to_save) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "target_modules": sorted(last if named else ranks),
        "task_type": None,
        "use_rslora": False,
    }
    return AssetFile(CONFIG, "made from the shapes and the scale", _json(values))


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def _alpha(value: float) -> float:
    """Undo the rounding of a division by the rank; a whole number stays one in JSON."""
    value = float(f"{value:.12g}")
    return int(value) if value.is_integer() else value


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
