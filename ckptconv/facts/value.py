"""Read single values out of training arguments, each with the argument it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptconv.dtypes import BY_NAME, dtype
from ckptconv.errors import FormatError
from ckptconv.facts.typed import as_number, as_whole, bounded
from ckptconv.records import dataclass

__all__ = ["Args", "Fact", "Facts", "computed"]

_WHOLE = re.compile(r"-?[0-9]+")
_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Fact:
    """Hold what is known of a model under a neutral name.

    Attributes:
        value: The value; None is knowledge too (no sliding window).
        origin: Where it came from: ``args.num_query_groups``.
    """

    value: Any
    origin: str


Facts = Mapping[str, Fact]


def computed(value: Any, *sources: Fact | None) -> Fact:
    """Return a fact that follows from others."""
    return Fact(value, ", ".join(dict.fromkeys(s.origin for s in sources if s is not None)))


class Args:
    """Look arguments up by any of their names; objects of unknown classes count as absent.

    Attributes:
        converted: The arguments are those of MindSpeed-LLM's weight converter (v2): the scalars of a
            config.json beside the converter's own options. It leaves out what is None or a dict
            (MindSpeed-LLM c77308a1, ``mindspeed_llm/tasks/checkpoint/convert_hf2mg.py``).
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        self._args = args
        self.converted = "num_query_groups" not in args and any(
            k in args for k in ("load_model_type", "model_type_hf", "num_key_value_heads", "rms_norm_eps")
        )

    def has(self, name: str) -> bool:
        """Whether there is such an argument, be it None."""
        return name in self._args

    def is_word(self, name: str, word: str) -> bool:
        """Whether an argument is this word, in any case of letters."""
        value = self._args.get(name)
        return isinstance(value, str) and value.lower() == word

    def whole(self, *names: str) -> Fact | None:
        """Return the first that is an int."""
        for name in names:
            if (given := as_number(self._args.get(name))) is not None:
                value = as_whole(bounded(given, f"args.{name}"))
                if value is not None:
                    return Fact(value, f"args.{name}")
        return None

    def number(self, *names: str) -> Fact | None:
        """Return the first that is an int or a float."""
        for name in names:
            if (value := as_number(self._args.get(name))) is not None:
                return Fact(bounded(value, f"args.{name}"), f"args.{name}")
        return None

    def flag(self, *names: str) -> Fact | None:
        """Return the first that is a bool."""
        for name in names:
            if isinstance(value := self._args.get(name), bool):
                return Fact(value, f"args.{name}")
        return None

    def on(self, *names: str) -> Fact | None:
        """Return the first flag that is set."""
        return next((f for n in names if (f := self.flag(n)) is not None and f.value), None)

    def text(self, *names: str) -> Fact | None:
        """Return the first that is a string, not empty and not the word none."""
        for name in names:
            value = self._args.get(name)
            if isinstance(value, str) and value and value.lower() != "none":
                return Fact(value, f"args.{name}")
        return None

    def numbers(self, name: str) -> Fact | None:
        """Return a list, tuple, set or comma-separated string of ints, in order."""
        value = self._args.get(name)
        origin = f"args.{name}"
        if isinstance(value, str):
            value = [v.strip() for v in value.split(",") if v.strip()]
            if not all(_WHOLE.fullmatch(v) for v in value):
                return None
            if (long := next((v for v in value if len(v) > _MOST_DIGITS), None)) is not None:
                raise FormatError(f"{origin} has a number of {len(long):,} digits, which no model has")
            value = [int(v) for v in value]
        if isinstance(value, set | frozenset):
            value = sorted(v for v in value if isinstance(v, int))
        if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
            return Fact([int(bounded(v, origin)) for v in value], origin)
        return None

    def floats(self, name: str) -> Fact | None:
        """Return a list of numbers."""
        value = self._args.get(name)
        if isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value):
            return Fact([float(bounded(v, f"args.{name}")) for v in value], f"args.{name}")
        return None

    def record(self, name: str) -> Fact | None:
        """Return a dictionary whose keys are strings."""
        value = self._args.get(name)
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return Fact(value, f"args.{name}")
        return None

    def dtype(self, *names: str) -> Fact | None:
        """Return the first that names an element type, as ``bfloat16`` or as the inert ``torch.bfloat16``."""
        for name in names:
            value = self._args.get(name)
            if not isinstance(value, str) and getattr(value, "module", None) == "torch":
                value = getattr(value, "name", None)
            if isinstance(value, str) and value.removeprefix("torch.") in BY_NAME:
                return Fact(dtype(value).name, f"args.{name}")
        return None
