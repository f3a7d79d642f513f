"""Read YAML that others wrote: plain data, within budgets, with the numbers of YAML 1.2.

Aliases and merge keys let a few hundred bytes stand for billions of values; tags would make objects of any
class. Here what aliases stand for is counted as if it were written out, and a tag that is not of YAML itself
is left aside: its content is what it would be without. Numbers are those of the core schema (YAML 1.2.2,
10.3.2): ``1:30`` and ``1_000`` are texts, ``1e-5`` is a number, ``010`` is ten. Booleans are those of YAML
1.1 too (``yes``, ``off``), since the frameworks read them so (PyYAML).
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.places.regular import read_bytes

__all__ = ["parse_yaml", "read_yaml"]

_MOST_BYTES: Final = 4 << 20
_MOST_WITHOUT_C: Final = 256 << 10  # where PyYAML has no libyaml it takes 20 s a megabyte
_MOST_NODES: Final = 200_000
_MOST_DEPTH: Final = 100
_MOST_ALIASES: Final = 10_000
_MOST_DIGITS: Final = 400
_MOST_ODD_KEYS: Final = 2_000  # keys that are no texts: those of their hashes that collide can be chosen

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_BY_WORD: dict[str, Any] = {
    "null": None, "true": True, "false": False, "yes": True, "no": False, "on": True, "off": False,
    ".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"),
}  # fmt: skip
_WORDS: dict[str, Any] = {"": None, "~": None, ".NaN": float("nan")}
for _word, _value in _BY_WORD.items():
    _title = _word.replace("i", "I") if "." in _word else _word.capitalize()
    _WORDS |= {_word: _value, _word.upper(): _value, _title: _value}
_TAG: Final = "tag:yaml.org,2002:"
_NAME: Final = f"{_TAG}python/name:"


def read_yaml(path: str | PathLike[str], *, within: Path | None = None, hint: str | None = None) -> Any:
    """Return what a YAML file holds.

    Args:
        path: The file.
        within: The folder that a link must not lead out of; see `read_bytes`.
        hint: What to do if it is no YAML.

    Raises:
        FormatError: if it is no YAML, or beyond what a run's settings are: 4 MiB, 200,000 values with what
            aliases stand for, 100 levels.
        OSError: if it cannot be read.
    """
    return parse_yaml(read_bytes(path, most=_MOST_BYTES, within=within), where=path, hint=hint)


def parse_yaml(data: bytes, *, where: str | PathLike[str], hint: str | None = None) -> Any:
    """Return what a YAML text holds: dicts, lists, texts, numbers, booleans, None.

    Of a key that is there twice the last one counts, as in PyYAML.

    Raises:
        FormatError: as `read_yaml` does.
    """
    import yaml  # 20 ms, and seldom needed

    loader = getattr(yaml, "CSafeLoader", None)
    if loader is None and len(data) > _MOST_WITHOUT_C:
        raise FormatError(f"{len(data):,} bytes of YAML, and PyYAML lacks libyaml", where=where, hint=hint)
    loader = loader or yaml.SafeLoader
    try:
        return _Builder(loader(data)).document()
    except yaml.YAMLError as e:
        said = " ".join(str(e).split())
        raise FormatError(f"not YAML: {said}", where=where, hint=hint) from e
    except _Excess as e:
        raise FormatError(f"no settings of a run: {e}", where=where, hint=hint) from e
    except (ValueError, RecursionError, TypeError) as e:
        raise FormatError(f"not YAML: {e}", where=where, hint=hint) from e


class _Excess(Exception):
    """Something is more than any run's settings have."""


class _Builder:
    """Make values from the events of a parser."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = self._aliases = self._odd_keys = 0

    def document(self) -> Any:
        """Return the first document; None if there is none."""
        import yaml

        while not self._parser.check_event(yaml.DocumentStartEvent):
            if self._parser.get_event() is None or self._parser.check_event(yaml.StreamEndEvent):
                return None
        self._parser.get_event()
        return self._node(0)

    def _charge(self, count: int) -> None:
        self._nodes += count
        if self._nodes > _MOST_NODES:
            raise _Excess(f"more than {_MOST_NODES:,} values")

    def _node(self, depth: int) -> Any:
        import yaml

        event = self._parser.get_event()
        if depth > _MOST_DEPTH:
            raise _Excess(f"more than {_MOST_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor)
        before = self._nodes
        self._charge(1)
        anchor = event.anchor
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not self._parser.check_event(yaml.SequenceEndEvent):
                value.append(self._node(depth + 1))
            self._parser.get_event()
        else:
            value = self._mapping(depth)
        if anchor is not None:
            self._anchors[anchor] = (value, self._nodes - before)
        return value

    def _alias(self, name: str) -> Any:
        self._aliases += 1
        if self._aliases > _MOST_ALIASES:
            raise _Excess(f"more than {_MOST_ALIASES:,} aliases")
        if name not in self._anchors:
            raise _Excess(f"the alias *{name} stands inside of what it names, or for nothing")
        value, weight = self._anchors[name]
        self._charge(weight)
        return value

    def _mapping(self, depth: int) -> dict[Any, Any]:
        import yaml

        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        while not self._parser.check_event(yaml.MappingEndEvent):
            event = self._parser.peek_event()
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
            key = self._node(depth + 1)
            value = self._node(depth + 1)
            if is_merge:
                self._merge(merged, value)
            else:
                own[self._key(key)] = value
        self._parser.get_event()
        return {**merged, **own}

    def _key(self, key: Any) -> Any:
        if isinstance(key, str):
            return key
        self._odd_keys += 1
        if self._odd_keys > _MOST_ODD_KEYS:
            raise _Excess(f"more than {_MOST_ODD_KEYS:,} keys that are no texts")
        if isinstance(key, list):
            return tuple(self._key(k) for k in key)
        if isinstance(key, dict):
            raise _Excess("a mapping as a key")
        return key

    def _merge(self, into: dict[Any, Any], value: Any) -> None:
        """Take the keys of a mapping, or of several: the first that has one counts."""
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                raise _Excess("a merge key << of what is no mapping")
            self._charge(len(one))
            for key, held in one.items():
                into.setdefault(key, held)


def _scalar(event: Any) -> Any:
    """Return the value of a scalar; quoted ones and those with a tag that is not YAML's are texts."""
    text, tag = str(event.value), event.tag
    if tag == f"{_TAG}str":
        return text
    if tag is not None and tag.startswith(_NAME) and not text:  # !!python/name:torch.bfloat16 ''
        return tag.removeprefix(_NAME)
    plain = event.implicit[0] or tag in (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null")
    return _plain(text) if plain else text


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "-+.0123456789" and len(text) <= _MOST_DIGITS:
        if _INT.fullmatch(text):
            return int(text, 8 if text[:2] == "0o" else 16 if text[:2] == "0x" else 10)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text
