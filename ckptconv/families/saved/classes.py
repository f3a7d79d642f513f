"""Find the rules of a model: those of its class or type, and of every model inside it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ckptconv.families.saved.rules import Rule, natural, rule_of, used

__all__ = ["RELEASE", "correction", "has_prefixes", "rules_for"]

Config = Mapping[str, Any]
RELEASE = "5.23.0"
"""The release of transformers the list is of."""


@cache
def _list() -> dict[str, Any]:
    text = Path(__file__).with_name("transformers.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def _corrections() -> dict[str, Any]:
    """Return what the list has wrong, by model type: the rules, what holds in their place, and why."""
    text = Path(__file__).with_name("corrections.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def correction(config: Config) -> str | None:
    """Return why a model's names are not those that this release of transformers writes; None if they are."""
    found = _corrections().get(str(config.get("model_type") or ""))
    return None if found is None else str(found["reason"])


def has_prefixes(config: Config) -> bool:
    """Whether files of such a model may have a prefix or not, so that it takes names of files to tell."""
    return any(rule.prefix is not None for rule in _all_rules(config))


def rules_for(config: Config, like: Collection[str] = (), *, corrected: bool = True) -> list[Rule]:
    """Return the rules by which a model of this config is read, in their order.

    Of those that add or remove a prefix, only those count that files of the names in ``like`` make use of
    (transformers 5.23, ``core_model_loading.py``, ``revert_weight_conversion``).

    Args:
        config: The content of config.json.
        like: Names in files of such a model.
        corrected: Whether what the release has wrong is put right; else the rules are as it has them.
    """
    rules = _all_rules(config, corrected)
    at_work = used(sorted(like, key=natural), [rule for rule in rules if not rule.ops]) if like else set()
    return [rule for rule in rules if rule.prefix is None or id(rule) in at_work]


def _all_rules(config: Config, corrected: bool = True) -> list[Rule]:
    """Return all rules that may hold.

    A class is looked up before its ``model_type``, and what holds for a model is not looked up again for one
    inside it (transformers 5.23, ``conversion_mapping.py``, ``get_model_conversion_mapping``).
    """
    root, kind = _class_of(config), str(config.get("model_type") or "")
    if _rules(kind) is None:  # another name of a model type, as kimi_k2 is of deepseek_v3
        kind = _list()["types"].get(root, kind)
    prefix = _list()["classes"].get(root, {}).get("prefix", "")
    claimed: defaultdict[str, list[str]] = defaultdict(list)
    rules: list[Rule] = []
    for path, name, its in _models(config, "", root, kind):
        if _inside(path, claimed[name]):
            continue
        said = _rules(name, corrected)
        if by_type := said is None:
            said = None if _inside(path, claimed[its]) else _rules(its, corrected)
        if said is None:
            continue
        scope = _scope(path, prefix) if path else ("",)
        rules += [rule_of(one, scope) for one in said]
        claimed[name].append(path)
        if by_type:
            claimed[its].append(path)
    return rules


def _rules(name: str, corrected: bool = True) -> list[dict[str, Any]] | None:
    """Return the rules of a class or type; none at all is another thing than an empty list."""
    found: list[dict[str, Any]] | None = _list()["rules"].get(_list()["like"].get(name, name))
    wrong = _corrections().get(name) if corrected else None
    if found is None or wrong is None:
        return found
    at = found.index(wrong["listed"][0])
    return [*found[:at], *wrong["instead"], *found[at + len(wrong["listed"]) :]]


def _class_of(config: Config) -> str:
    """Return the class of a model: the one config.json names, or the one its type stands for."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    known = (_list()["classes"], _list()["types"])
    if isinstance(name, str) and (any(name in part for part in known) or _rules(name) is not None):
        return name
    found: str = _list()["heads"].get(config.get("model_type"), name or "")
    return found


def _models(config: Config, path: str, name: str, kind: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, class and type of a model and of those inside it, in the order of the class."""
    yield path, name, kind
    for at, inner, inner_kind, part, auto in _list()["classes"].get(name, {}).get("parts", ()):
        own = _part(config, part) if part is not None else {}
        if auto is not None and isinstance(said := own.get("model_type"), str) and said != inner_kind:
            inner_kind, inner = said, _list()["auto"][auto].get(said, "")
        yield from _models(own, f"{path}.{at}" if path else at, inner, inner_kind)


def _part(config: Config, part: str) -> Config:
    """Return a part of a config: ``thinker_config.text_config``; itself if no part is named."""
    for key in part.split(".") if part else ():
        found = config.get(key)
        config = found if isinstance(found, Mapping) else {}
    return config


def _inside(path: str, others: list[str]) -> bool:
    return any(other == "" or path.startswith(f"{other}.") for other in others)


def _scope(path: str, prefix: str) -> tuple[str, ...]:
    """Return the prefixes of a model inside another, with and without the whole model's own."""
    inner = path.removeprefix(prefix).removeprefix(".")
    scope, base = f"{inner}." if inner else "", f"{prefix}." if prefix else ""
    return tuple(dict.fromkeys((base + scope, scope)))
