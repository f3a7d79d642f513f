"""Know what ``save_pretrained`` calls the tensors of a model, and how it packs them, without transformers.

The list is transformers' own (``conversion_mapping.py``), carried word by word in ``transformers.json`` with
its release; ``tests/saved_names.py`` takes it down. What that release has wrong, against the files that are
published, stands in ``corrections.json``: the rule as it is listed, what holds instead, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.families.saved.classes import RELEASE, correction, has_prefixes, rules_for
from ckptconv.families.saved.ops import UNDO, written
from ckptconv.families.saved.rules import Rule, after, natural
from ckptconv.relations import Relation, Spec, renamed

__all__ = ["RELEASE", "UNDO", "correction", "has_prefixes", "rules_for", "saved"]


def saved(
    config: Mapping[str, Any],
    tensors: Mapping[str, Spec],
    others: Iterable[str] = (),
    *,
    like: Collection[str] = (),
) -> tuple[Relation, Mapping[str, str]] | None:
    """Relate the tensors a model holds in memory to those ``save_pretrained`` writes.

    Names that are as written already are left, as those of older releases and of files are; but names that
    this release of transformers writes wrongly (`correction`) become those of the published files.

    Args:
        config: The content of config.json: its ``model_type`` and ``architectures`` say which rules hold.
        tensors: The tensors of the model's state dict.
        others: Further names of tensors, that share the data of these.
        like: Names in the files the model was read from, if they are known: they may have a prefix that
            others have not.

    Returns:
        The relation, and the new name of each tensor and other; None if nothing changes.

    Raises:
        PlanError: if a tensor has not the shape of its kind, or two would have one name.
    """
    reading = rules_for(config, like)
    writing = [rule.reversed() for rule in reversed(reading)]
    names = [rule for rule in writing if not rule.ops]
    ordered = sorted(tensors, key=natural)
    others = list(others)
    if not writing:
        return None
    if _as_written(ordered, [rule for rule in reading if not rule.ops], names):
        return _corrected(ordered, tensors, others, config, names) if correction(config) else None
    parts, plain = _converted(ordered, tensors, [rule for rule in writing if rule.ops], config)
    new = dict(after([*plain, *others, *(n for part in parts for n in part.right)], names))
    if not parts and all(new[n] == n for n in plain):
        return None
    _refuse_twice(new[n] for n in (*plain, *(n for part in parts for n in part.right)))
    finals = [renamed(n, new[n], tensors[n]) for n in plain]
    for part in parts:
        final = Relation.union(renamed(n, new[n], spec) for n, spec in part.right.items())
        finals.append(part.compose(final))
    return Relation.union(finals), {n: new.get(n, n) for n in (*tensors, *others)}


def _refuse_twice(names: Iterable[str]) -> None:
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise PlanError(
            f"two tensors would be saved as {twice[0]}",
            hint="the names of a model in memory and names of files are mixed; give --rename, or --drop",
        )


def _corrected(
    ordered: Sequence[str],
    tensors: Mapping[str, Spec],
    others: Sequence[str],
    config: Mapping[str, Any],
    writing: Sequence[Rule],
) -> tuple[Relation, Mapping[str, str]] | None:
    """Relate tensors of files, which the erring release may have written, to those of published files."""
    erring = [rule for rule in rules_for(config, corrected=False) if not rule.ops]
    held = list(after([*ordered, *others], erring, active={id(rule) for rule in erring}))
    back = dict(after([name for _, name in held], writing, active={id(rule) for rule in writing}))
    new = {n: back[name] for n, name in held}
    if all(n == name for n, name in new.items()):
        return None
    _refuse_twice(new[n] for n in ordered)
    return Relation.union(renamed(n, new[n], tensors[n]) for n in ordered), new


def _as_written(ordered: Sequence[str], reading: Sequence[Rule], writing: Sequence[Rule]) -> bool:
    """Whether names are those of files rather than those of a model: more of them can only be that."""

    def become(names: Sequence[str], rules: Sequence[Rule]) -> list[str]:
        return [new for _, new in after(names, rules, active={id(rule) for rule in rules})]

    written, read = become(ordered, writing), become(ordered, reading)
    held, stored = become(written, reading), become(read, writing)
    of_model = [w != n == back for n, w, back in zip(ordered, written, held, strict=True)]
    of_files = [r != n == back for n, r, back in zip(ordered, read, stored, strict=True)]
    alone = Counter((m, f) for m, f in zip(of_model, of_files, strict=True))
    return alone[False, True] > alone[True, False]


def _converted(
    ordered: Sequence[str], tensors: Mapping[str, Spec], rules: Sequence[Rule], config: Mapping[str, Any]
) -> tuple[list[Relation], list[str]]:
    """Return a relation for each group of tensors that are packed otherwise, and the names of the others."""
    groups: dict[str, tuple[Rule, dict[str, str]]] = {}
    plain: list[str] = []
    for name in ordered:
        found = next(((r, m) for r in rules if (m := r.match(name, set())) is not None), None)
        if found is None:
            plain.append(name)
            continue
        rule, match = found
        _, members = groups.setdefault(match.name, (rule, {}))
        members[rule.keys[match.source]] = name
    return [_group(form, rule, members, tensors, config) for form, (rule, members) in groups.items()], plain


def _group(
    form: str, rule: Rule, members: Mapping[str, str], tensors: Mapping[str, Spec], config: Mapping[str, Any]
) -> Relation:
    """Relate the tensors that one rule takes together to what becomes of them."""
    held = {key: tensors[name] for key, name in members.items()}
    try:
        made = written(rule.ops, held, rule.keys, rule.words, config)
    except PlanError as e:
        raise PlanError(f"{', '.join(members.values())}: {e.message}", hint=e.hint) from e
    whole = form.replace("*.", "0.")
    key = next((k for k in made.right if k in whole), "")
    before, _, behind = whole.partition(key) if key else ("", "", "")
    first = Relation.union(renamed(members[k], k, spec) for k, spec in held.items())
    last = Relation.union(renamed(k, f"{before}{k}{behind}", spec) for k, spec in made.right.items())
    return first.compose(made).compose(last)
