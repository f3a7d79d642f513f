"""Find out what model a checkpoint is of: its config.json and the table of its family."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ckptconv.assets.config import read_config, without_quantisation
from ckptconv.assets.find import CONFIG, find_assets, tokenizer_files
from ckptconv.dialects.factors import with_implied, without_weights
from ckptconv.errors import PlanError, UsageError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.mindformers import run_facts
from ckptconv.facts.typed import typed_config
from ckptconv.facts.value import Fact
from ckptconv.families import FAMILIES, Family, family_of
from ckptconv.families.config import config_from, consumed, contradictions, unconsumed
from ckptconv.families.detect import fitting, lacks_one, nearest, observed
from ckptconv.plans.checkpoint import Checkpoint, Note, beside_of
from ckptconv.plans.plan import ConfigChange, Step
from ckptconv.plans.request import Request
from ckptconv.records import dataclass
from ckptconv.slots import template

__all__ = ["Architecture", "ConfigFound", "find_architecture"]


@dataclass(frozen=True, slots=True)
class ConfigFound:
    """A config.json: its content, its folder (None if it was built), and its origin for people."""

    values: Mapping[str, Any]
    folder: Path | None
    origin: str


def find_config(checkpoint: Checkpoint, given: str | None, *, needed: bool) -> ConfigFound | None:
    """Find config.json where ``given`` says, else beside the checkpoint.

    Raises:
        PlanError: if there is none although it is ``needed``.
    """
    folder, origin = find_assets(given, beside_of(checkpoint), (CONFIG,), flag="--config")
    if folder is None or not (folder / CONFIG).is_file():
        if "model_type" in checkpoint.config and given is None:
            return ConfigFound(checkpoint.config, None, "the checkpoint's own configuration")
        if needed or given is not None:
            yaml = "--yaml with the run's YAML, " if checkpoint.producer == "mindspore" else ""
            raise PlanError(
                f"no config.json was found {'in ' + origin if folder else 'beside the checkpoint'}",
                where=checkpoint.root,
                hint=f"give {yaml}--config with a folder or hub id of the same architecture, "
                "or --no-assets for the weights alone",
            )
        return None
    values = read_config(folder)
    if checkpoint.facts and given is None and not values.keys() & {"model_type", "architectures"}:
        return None  # the producer's own file of that name
    if checkpoint.quantised is None or checkpoint.quantised.decoded:
        values = without_quantisation(values)
    unsaid = {k: v for k, v in checkpoint.config.items() if values.get(k) is None}
    return ConfigFound({**values, **unsaid}, folder, origin)


# Tiny steps add up in it; transformers 5.23 keeps it in float32 (modeling_deepseek_v3.py).
_PINNED = (r".*\.e_score_correction_bias",)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Hold the outcome.

    Attributes:
        config: config.json, found or built; None if none is known.
        family: The table; None if there is none for the model type.
        steps: A step for each field of a config that was built.
        notes: What a user should know: where config and training arguments disagree.
        zero_centered: Whether the checkpoint's norms are stored without the 1 they multiply by; None if they
            are to stay as they are.
        tokenizer: The tokenizer's folder the training arguments name, if it is here.
        pinned: Patterns of tensors whose dtype stays, beside those the family pins.
    """

    config: ConfigFound | None
    family: Family | None
    steps: tuple[Step, ...] = ()
    notes: tuple[Note, ...] = ()
    zero_centered: bool | None = None
    tokenizer: str | None = None
    pinned: tuple[str, ...] = ()

    def is_pinned(self, name: str) -> bool:
        """Whether a tensor keeps its dtype whatever the others are rounded to."""
        if self.family is not None and self.family.is_pinned(name):
            return True
        return any(re.fullmatch(p, name) for p in (*_PINNED, *self.pinned))


def find_architecture(
    checkpoint: Checkpoint, options: Request, *, needed: bool, lent: ConfigFound | None = None
) -> Architecture:
    """Find config and family by the flags, beside the checkpoint, or in its training arguments.

    Args:
        checkpoint: What was opened.
        options: The flags.
        needed: Whether there must be a config.
        lent: The config of another checkpoint of the same model, to be taken.

    Raises:
        PlanError: if a config is needed and cannot be found or built, or several families fit.
        UsageError: if ``--family`` names none.
    """
    family = _named(options.family) if options.family is not None else None
    args = checkpoint.arguments
    built = checkpoint.table is not None and bool(args or checkpoint.facts)
    config = lent or find_config(checkpoint, options.config, needed=needed and not built)
    if config is not None and options.vocab_size is not None:
        config = replace(config, values={**config.values, "vocab_size": options.vocab_size})
    facts = {**_facts(checkpoint.producer, args), **checkpoint.facts} if built else {}
    tokenizer = _tokenizer(facts)
    if config is not None:
        family = family or family_of(config.values)
        if family is not None and family.entries:
            file = None if config.folder is None else config.folder / CONFIG
            config = replace(config, values=typed_config(config.values, file))
        _refuse_unconsumed(facts, family, config.origin)
        known = facts and family is not None and family.template is not None
        against = contradictions(facts, config.values, family) if known and family is not None else []
        notes = tuple(Note("warning", text) for text in against)
        return Architecture(config, family, (), notes, lacks_one(facts, family), tokenizer)
    if not built:
        return Architecture(None, family)
    if without_weights(checkpoint.tensors):
        return _of_adapter(checkpoint, facts, family)
    slots = _slots(checkpoint, checkpoint.tensors, options.drop)
    said: tuple[Note, ...] = ()
    if family is None:
        family = _fitting(checkpoint, facts, slots)
        said = _by_name(family, facts, slots)
    facts = observed(facts, slots)
    if options.vocab_size is not None:
        facts["vocab"] = Fact(options.vocab_size, "--vocab-size")
    values, origins = config_from(facts, family)
    steps = tuple(ConfigChange(k, None, json.dumps(v)).step(origins[k]) for k, v in values.items())
    origin = "the YAML of the run" if checkpoint.producer == "mindspore" else "the training arguments"
    found = ConfigFound(values, None, origin)
    return Architecture(found, family, steps, said, lacks_one(facts, family), tokenizer)


def _of_adapter(checkpoint: Checkpoint, facts: Mapping[str, Fact], family: Family | None) -> Architecture:
    """Return the model that an adapter was trained on, as far as the training arguments alone tell it.

    Raises:
        PlanError: if they do not.
    """
    slots = _slots(checkpoint, with_implied(checkpoint.relation.right))
    fit = [family] if family is not None else fitting(facts, slots, alone=True)
    why = "they are those of no family" if not fit else f"it may be {', '.join(f.name for f in fit)}"
    if len(fit) == 1:
        try:
            values, _ = config_from(facts, fit[0])
        except PlanError as e:
            why = e.message
        else:
            found = ConfigFound(values, None, "the training arguments")
            return Architecture(found, fit[0], (), (), lacks_one(facts, fit[0]))
    raise PlanError(
        f"the training arguments beside the adapter do not tell which model it belongs to: {why}",
        where=checkpoint.data,
        hint="give the model's config.json with --config",
    )


def _refuse_unconsumed(facts: Mapping[str, Fact], family: Family | None, origin: str) -> None:
    """Refuse arguments that change what the model computes in a way that no config.json here can say.

    Raises:
        PlanError: also if norms are stored around zero, and a table without a template leaves open whether
            the model's are.
    """
    zero = facts.get("zero_centered")
    silent = family is not None and family.template is None and bool(family.entries)
    if silent and zero is not None and zero.value and family is not None and not family.zero_centered:
        raise PlanError(
            f"norms are stored without their 1 ({zero.origin}); and {family.name} says nothing of its own",
            where=origin,
            hint="say it in the family: zero_centered=True, or a template that fixes it",
        )
    own = consumed(family.template) if family is not None and family.template is not None else set()
    if odd := unconsumed(None, {name: fact for name, fact in facts.items() if name not in own}):
        name = family.name if family is not None else "this architecture"
        raise PlanError(
            f"this is no {name}: {'; '.join(odd)}",
            where=origin,
            hint="the config is of a model that computes otherwise; --family takes a table of your own",
        )


def _facts(producer: str, args: Mapping[str, Any]) -> dict[str, Fact]:
    if not args:
        return {}
    return run_facts(args) if producer == "mindspore" else read_facts(args)


def _slots(checkpoint: Checkpoint, names: Iterable[str], drop: Sequence[str] = ()) -> set[str]:
    """Return the slots of a checkpoint's names, as tables write them, but for those that are dropped."""
    assert checkpoint.table is not None
    found, _ = checkpoint.table.named(n for n in names if not any(fnmatchcase(n, d) for d in drop))
    one_of_experts = {(id(f.entry), f.layer): f for f in found}.values()
    return {template(s) for f in one_of_experts for s in f.slots}


def _fitting(checkpoint: Checkpoint, facts: Mapping[str, Fact], slots: set[str]) -> Family:
    fit = fitting(facts, slots)
    if len(fit) == 1:
        return fit[0]
    names = ", ".join(f.name for f in fit)
    if fit:
        raise PlanError(
            f"several families fit the arguments and tensors: {names}",
            where=checkpoint.data,
            hint=f"give --family with one of {names}, or the model's config.json with --config",
        )
    close = nearest(facts, slots)
    text, hint = "no family fits the arguments and tensors", "give the model's config.json with --config"
    if close is not None and close[1]:
        family, against = close
        more = f" and {len(against) - 4} more" if len(against) > 4 else ""
        text += f"; the nearest is {family.name}, but {'; '.join(against[:4])}{more}"
        if all("multi-token prediction" in why for why in against):
            hint = "--drop 'mtp.*' leaves them out, which changes nothing of what the model itself computes"
    raise PlanError(text, where=checkpoint.data, hint=hint)


def _by_name(family: Family, facts: Mapping[str, Fact], slots: set[str]) -> tuple[Note, ...]:
    """Say that the name of the model decided between families that compute the same."""
    path = facts.get("hf_path")
    if path is None or "model_type" in facts:
        return ()
    others = fitting({k: v for k, v in facts.items() if k != "hf_path"}, slots)
    if family in others:
        return ()
    same = ", ".join(f.name for f in others)
    text = f"the family is {family.name}, as {path.value} is called; {same} computes the same"
    return (Note("guess", text),)


def _tokenizer(facts: Mapping[str, Fact]) -> str | None:
    """Return the tokenizer's folder the arguments name, if it is there."""
    for name in ("tokenizer", "hf_path"):
        fact = facts.get(name)
        if fact is not None and isinstance(fact.value, str) and os.path.exists(fact.value):
            path = Path(fact.value)
            folder = path if path.is_dir() else path.parent
            if tokenizer_files(folder):
                return str(folder)
    return None


def _named(name: str) -> Family:
    """Return a family by name, or the one a user's own Python file defines."""
    if name.endswith(".py"):
        return _own(Path(name))
    found = next((f for f in FAMILIES if f.name == name), None)
    if found is None:
        raise UsageError(
            f"no family {name!r}",
            hint=f"families: {', '.join(f.name for f in FAMILIES)}; or a file: ./mine.py",
        )
    return found


def _own(path: Path) -> Family:
    """Run a user's file, named on the command line, and return its ``FAMILY``."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"family_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"--family: no such file: {path}", hint="name a Python file that defines FAMILY")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise UsageError(
            f"--family: {path} fails: {type(e).__name__}: {e}", hint="see CONTRIBUTING.md"
        ) from e
    found: Any = getattr(module, "FAMILY", None)
    if not isinstance(found, Family):
        raise UsageError(f"--family: {path} defines no FAMILY", hint="see CONTRIBUTING.md for an example")
    return found
