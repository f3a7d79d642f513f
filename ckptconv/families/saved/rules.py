"""Match and rewrite names as the transforms of transformers do.

A rule is stated in the direction of reading, file to model, and reversed for writing. What transformers does
to patterns on the way is done here too (5.23, ``core_model_loading.py``, ``WeightTransform``), so that its
list is carried word by word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from ckptconv.records import dataclass

__all__ = ["Match", "Rule", "after", "natural", "rule_of", "used"]

_GROUP = re.compile(r"\(.+?\)")
_LOOK = re.compile(r"\(\?.+?\)?\)")  # lookahead and lookbehind mean nothing in a name to be written
_BACK = re.compile(r"\\(\d)")


@dataclass(frozen=True)
class Match:
    """What a rule makes of a name.

    Attributes:
        name: The name after it; with several targets, by the first.
        source: Which of its sources matched.
    """

    name: str
    source: int


@dataclass(frozen=True)
class Rule:
    """One transform: names that match a source become the target's.

    Attributes:
        sources: Patterns.
        targets: What they become: each its own in a group, else the first, and operations make the others.
        ops: Operations on the tensors, with their arguments; none if names alone change.
        group: Each source has its own target, and all apply only where the first one does.
        offset: What is added to the number a source captures.
        scope: Prefixes of names it applies to, the longest first; the rest is what is matched.
        prefix: What is added or removed, and within which prefix, if that is all the rule does. Files may
            have it or not, so that it counts only for models that were read from files that had it.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    group: bool = False
    offset: int = 0
    scope: tuple[str, ...] = ("",)
    prefix: Mapping[str, str] | None = None

    def reversed(self) -> Rule:
        """Return the rule for writing; operations are listed last one first, and are to be undone."""
        if self.prefix is not None:
            other = {"add": "remove", "remove": "add"}
            return _prefix_rule({other.get(k, k): v for k, v in self.prefix.items()}, self.scope)
        pairs = list(zip(self.targets, self.sources, strict=True)) if self.group else []
        if self.group:
            pairs.sort()  # the first is what switches the others on
        return replace(
            self,
            sources=tuple(p[0] for p in pairs) or self.targets,
            targets=tuple(p[1] for p in pairs) or self.sources,
            ops=self.ops[::-1],
            offset=-self.offset,
        )

    @cached_property
    def words(self) -> tuple[str, ...]:
        r"""The targets as text to put in: ``\1`` stands for what was captured."""
        return tuple(_plain(t)[0] for t in self.targets)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The sources as patterns."""
        captured = next((g for t in self.targets if (g := _plain(t)[1])), None)
        keys = [s.replace(r"\1", captured, 1) if captured is not None else s for s in self.sources]
        if len(self.sources) == len(self.targets):
            anchored = zip(keys, self.targets, strict=True)
            keys = [f"^{k}" if t.startswith("^") and not k.startswith("^") else k for k, t in anchored]
        return tuple(keys)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        branches = []
        for i, key in sorted(enumerate(self.keys), key=lambda item: -len(item[1])):
            pattern = key.replace("*.", r".*\.")
            end = r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else ""
            branches.append(f"(?P<g{i}>{pattern}{end})")
        return re.compile("|".join(branches))

    def match(self, name: str, active: set[int]) -> Match | None:
        """Return what becomes of a name, or None if it is not concerned.

        Args:
            name: The name.
            active: The groups that have been switched on; this may be the next.
        """
        if not name.startswith(self.scope):
            return None
        prefix = next(p for p in self.scope if name.startswith(p))
        rest = name.removeprefix(prefix)
        found = self._pattern.search(rest)
        if found is None:
            return None
        which = next(g for g, value in found.groupdict().items() if value is not None)
        source, inside = int(which[1:]), self._pattern.groupindex[which]
        if self.group:
            if source == 0:
                active.add(id(self))
            elif id(self) not in active:
                return None

        def captured(match: re.Match[str]) -> str:
            text = found.group(inside + int(match[1]))
            return str(int(text) + self.offset) if self.offset else text

        words = _BACK.sub(captured, self.words[source if self.group else 0])
        return Match(prefix + rest.replace(found[0], words, 1), source)


def rule_of(said: Mapping[str, Any], scope: tuple[str, ...]) -> Rule:
    """Read a rule of the list."""
    if "prefix" in said:
        return _prefix_rule(said["prefix"], scope)
    return Rule(
        tuple(said["from"]),
        tuple(said["to"]),
        tuple((op[0], op[1] if len(op) > 1 else {}) for op in said.get("ops", ())),
        said.get("group", False),
        said.get("offset", 0),
        scope,
    )


def _prefix_rule(said: Mapping[str, str], scope: tuple[str, ...]) -> Rule:
    within = rf"{said['in']}\." if "in" in said else ""
    if "add" in said:
        source, target = rf"^{within}(?:(?!{said['add']}\.))(.+)", rf"{within}{said['add']}\.\1"
    else:
        source, target = rf"^{within}{said['remove']}\.(.+)", rf"{within}\1"
    return Rule((source,), (target,), scope=scope, prefix=said)


def used(names: Iterable[str], rules: Sequence[Rule]) -> set[int]:
    """Return the rules that files of these names make use of, by ``id``."""
    active: set[int] = set()
    found: set[int] = set()
    for name in names:
        new = name
        for rule in rules:
            if (match := rule.match(new, active)) is not None:
                found.add(id(rule))
                new = match.name
    return found


def after(
    names: Iterable[str], rules: Sequence[Rule], *, active: Iterable[int] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each name and what all rules make of it, one after the other.

    Args:
        names: The names, in the order of `natural`.
        rules: The rules.
        active: The groups that are switched on from the start, by ``id``.
    """
    active = set(active)
    for name in names:
        new = name
        for rule in rules:
            found = rule.match(new, active)
            new = found.name if found is not None else new
        yield name, new


def natural(name: str) -> list[tuple[int, int | str, int]]:
    """Sort names part by part, numbers by value."""
    return [_natural_part(part) for part in name.split(".")]


@lru_cache(maxsize=1 << 12)
def _natural_part(part: str) -> tuple[int, int | str, int]:
    text = part.rstrip("0123456789")
    number = int(part[len(text) :]) if len(text) < len(part) else -1
    return (1, text, number) if text else (0, number, 0)


def _plain(pattern: str) -> tuple[str, str | None]:
    """Return a pattern as text to put in, and the group it captures."""
    text = _LOOK.sub("", pattern.removeprefix("^"))
    group = _GROUP.search(text)
    if group is not None:
        text = text.replace(group[0], r"\1", 1)
    return text.replace(r"\.", "."), group[0] if group is not None else None
