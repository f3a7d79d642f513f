"""Relate names to names: drop by pattern, rename by rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ckptconv.errors import PlanError, UsageError
from ckptconv.relations.box import Box
from ckptconv.relations.pair import Drop, Pair, Spec
from ckptconv.relations.relation import Relation

__all__ = ["names_relation", "parse_renames", "under_names"]


def parse_renames(text: str) -> list[tuple[str, str]]:
    """Read rename rules, one ``old = new`` a line; ``*`` stands for digits, the same on both sides in order.

    Blank lines and lines that start with ``#`` are skipped.

    Raises:
        UsageError: if a line is not a rule.
    """
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        old, equals, new = (part.strip() for part in line.partition("="))
        if not (old and equals and new) or new.count("*") > old.count("*"):
            raise UsageError(
                f"line {number} of the rename file is not a rule: {line!r}",
                hint="write 'old.name = new.name', with * for digits on both sides",
            )
        rules.append((old, new))
    return rules


def names_relation(
    tensors: Mapping[str, Spec],
    drops: Sequence[str],
    renames: Sequence[tuple[str, str]],
    others: Collection[str] = (),
    keeps: Sequence[str] = (),
) -> tuple[Relation, dict[str, str]]:
    """Relate named tensors to their names after dropping and renaming.

    Args:
        tensors: The tensors before.
        drops: Glob patterns of names to leave out.
        renames: Rules; the first that matches a name applies.
        others: Names that hold no data of their own and are dropped as well.
        keeps: Glob patterns of names that alone stay, if there are any.

    Returns:
        The relation, and old to new name of every tensor that stays.

    Raises:
        UsageError: if a pattern or rule matches nothing.
        PlanError: if two tensors would get one name.
    """
    unused = {*(d for d in drops if not any(fnmatchcase(n, d) for n in others)), *(old for old, _ in renames)}
    unused |= set(keeps)
    compiled = [(re.compile(re.escape(old).replace(r"\*", r"(\d+)")), old, new) for old, new in renames]
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    left_only: list[Drop] = []
    renamed: dict[str, str] = {}
    for name, spec in tensors.items():
        dropping = [d for d in drops if fnmatchcase(name, d)]
        keeping = [k for k in keeps if fnmatchcase(name, k)]
        unused.difference_update(dropping, keeping)
        if dropping or (keeps and not keeping):
            if spec.numel:
                why = f"--drop {dropping[0]}" if dropping else f"not of --keep {' '.join(keeps)}"
                left_only.append(Drop(Box.whole(name, spec.shape), why))
            continue
        target = name
        for regex, old, new in compiled:
            if m := regex.fullmatch(name):
                digits = iter(m.groups())
                target = re.sub(r"\*", lambda _, d=digits: next(d), new)  # type: ignore[misc]
                unused.discard(old)
                break
        if target in right:
            raise PlanError(f"two tensors would be named {target}", hint="change the rename rules")
        right[target] = spec
        renamed[name] = target
        if spec.numel:
            pairs.append(Pair(Box.whole(name, spec.shape), Box.whole(target, spec.shape)))
    if unused:
        raise UsageError(
            f"{sorted(unused)[0]!r} matches no tensor", hint="ckptconv inspect --tensors '*' lists the names"
        )
    return Relation(dict(tensors), right, tuple(pairs), tuple(left_only)), renamed


def under_names(tensors: Mapping[str, Spec], names: Mapping[str, str], where: Path | None = None) -> Relation:
    """Relate tensors to themselves under other names.

    Args:
        tensors: The tensors.
        names: New names, old to new; the others stay.
        where: The checkpoint, for the error.

    Raises:
        PlanError: if two would have one name.
    """
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    for name, spec in tensors.items():
        new = names.get(name, name)
        if new in right:
            raise PlanError(f"{name} would be named {new}, which another tensor is", where=where)
        right[new] = spec
        if spec.numel:
            pairs.append(Pair(Box.whole(name, spec.shape), Box.whole(new, spec.shape)))
    return Relation(dict(tensors), right, tuple(pairs))
