"""Take off what wraps a model's names, and refuse names that would load as random weights.

What fits is judged by the architecture's table; without one by transformers itself, where it is installed,
else by the signs of known producers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from ckptconv.assets.loading import ask
from ckptconv.errors import CkptconvError, PlanError
from ckptconv.families import Family
from ckptconv.families.base import Config
from ckptconv.families.saved import saved
from ckptconv.families.saved.rules import natural
from ckptconv.planning.model import Architecture
from ckptconv.planning.signs import RENAME, Sign, sign_of
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.records import dataclass
from ckptconv.relations import Spec
from ckptconv.slots.translate import some

__all__ = ["Wanted", "judged", "own_names", "refuse_computed_with", "wanted"]

# Before names as libraries wrap a model, and never part of a name that is written: Lightning's strategies
# and Fabric (2.6, ``fabric/wrappers.py``), TRL's value heads (0.24,
# ``models/modeling_base.py``), sentence-transformers.
_WRAPPERS: Final = ("_forward_module.", "pretrained_model.", "0.auto_model.")
# Architectures with a head of their own, on the body alone: it is in place of the one for tokens.
_BODY = re.compile(r"\w+Model")
_LANGUAGE = re.compile(r"\w+(?:ForCausalLM|LMHeadModel|ForConditionalGeneration|ForPreTraining)")
_CRITIC = re.compile(r"(?:score|classifier|v_head|value_head|qa_outputs|reward_head|regression_head)\b.*")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Say which names the model of a config has.

    Attributes:
        required: Those it cannot do without.
        known: Every name it has a place for.
        base: What stands before the names of the body in a model with a head.
    """

    required: frozenset[str]
    known: frozenset[str]
    base: str


_LAYER: Final = re.compile(r"\.(\d+)\.")
# Of transformers before 4.31: computed anew, and not loaded.
_BUFFER: Final = re.compile(
    r".*\.(?:inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|rotary_emb\.\w+)"
)
_SAMPLE: Final = 500  # names that tell whether all stand behind a prefix
_LAST: list[tuple[Family, str, list[tuple[str, bool]]]] = []


def _every(family: Family, config: Config) -> list[tuple[str, bool]]:
    """Return every name of a family's model and whether it is optional; the last answer is kept."""
    key = json.dumps(config, sort_keys=True, default=str)
    for known, said, every in _LAST:
        if known is family and said == key:
            return every
    every = [(name, optional) for name, _, optional in family.expected(config)]
    _LAST[:] = [(family, key, every)]
    return every


def wanted(family: Family, config: Config, present: Collection[str]) -> Wanted:
    """Return the names of a family's model, in the class that the config's ``architectures`` says.

    A class called after the body alone may be one with a head all the same (ChatGLMModel): which it is, the
    names that are present tell.
    """
    every = _every(family, config)
    parts = Counter(name.partition(".")[0] + "." for name, _ in every if re.search(r"\.\d+\.", name))
    base = parts.most_common(1)[0][0] if parts else ""
    head = family.name_of("head")
    kind = _architecture(config)
    body = _BODY.fullmatch(kind) is not None and _LANGUAGE.fullmatch(kind) is None
    if body and not any(n.startswith(base) for n in present):
        every = [(n.removeprefix(base), optional) for n, optional in every if n != head]
    elif kind and _LANGUAGE.fullmatch(kind) is None:
        every = [(n, optional or n == head) for n, optional in every]
    required = frozenset(n for n, optional in every if not optional)
    return Wanted(required, frozenset(n for n, _ in every), base)


def _architecture(config: Config) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def own_names(
    tensors: Mapping[str, Spec], others: Iterable[str], model: Architecture, parts: Collection[str] = ()
) -> dict[str, str]:
    """Return the model's own names of tensors that a wrapper's prefix stands before, or that lack their own.

    A prefix is taken off only if what is left fits the architecture, and one at most beside those that no
    model has in its names.

    Args:
        tensors: The tensors under their names.
        others: Further names, without data of their own.
        model: The architecture.
        parts: Tensors that are added to others, whose names follow from theirs.
    """
    names = [*tensors, *others]
    new = dict(zip(names, (_unwrapped(n) for n in names), strict=True))
    family, config = model.family, model.config.values if model.config is not None else None
    if family is not None and family.entries and config is not None:
        specs = {new[n]: s for n, s in tensors.items() if n not in parts}
        some_of = list(specs)[:: 1 + len(specs) // _SAMPLE]
        unknown = family.table(config).named(some_of)[1]
        aim = wanted(family, config, specs) if 10 * len(unknown) > len(some_of) else None
        change = _change(specs, [new[n] for n in others], aim, family, config) if aim is not None else None
        if aim is not None and change is not None:
            off, on = change
            new = {n: _put(w.removeprefix(off), on, aim) if w.startswith(off) else w for n, w in new.items()}
    elif config is not None and _is_wrapped(list(new.values())):
        new = {n: w.removeprefix("model.") for n, w in new.items()}
    changed = {n: w for n, w in new.items() if n != w}
    return changed if len(set(new.values())) == len(new) else {}


def _put(name: str, prefix: str, aim: Wanted) -> str:
    """Put a prefix before a name that has no place without it."""
    return name if name in aim.known else prefix + name


def _unwrapped(name: str) -> str:
    """Take off wrappers that no model has in its own names, one inside the other."""
    while name.startswith(_WRAPPERS):
        name = name.removeprefix(next(p for p in _WRAPPERS if name.startswith(p)))
    return name


def _is_wrapped(names: Collection[str]) -> bool:
    """Whether all names stand behind a ``model.`` that is not the body's: the head stands there too."""
    inner = [n.removeprefix("model.") for n in names if n.startswith("model.")]
    return len(inner) == len(names) > 0 and any(n.startswith(("lm_head.", "model.layers.")) for n in inner)


def _change(
    tensors: Mapping[str, Spec], others: Collection[str], aim: Wanted, family: Family, config: Config
) -> tuple[str, str] | None:
    """Return the prefix to take off and the one to put on, if names fit then and do not now."""
    table = family.table(config)

    def fitting(off: str, on: str) -> tuple[int, int]:
        inside = [*tensors, *others] if not off else [n for n in (*tensors, *others) if n.startswith(off)]
        here = {_put(n.removeprefix(off), on, aim): tensors.get(n, Spec((), "any")) for n in inside}
        if 10 * len(table.named(here)[1]) <= len(here):
            written = set(here)
        else:
            written = _written(here, config)
        known = len(written & aim.known)
        return known, len(written) - known

    now = fitting("", "")[0]
    if not aim.required or now >= 0.9 * len(aim.required):
        return None
    found = [(*fitting(off, on), off, on) for off in _prefixes(tensors) for on in ("", aim.base) if off or on]
    best = max(found, key=lambda f: (f[0], -f[1], -len(f[2])), default=None)
    if best is None or best[0] <= now or best[0] < 0.5 * len(aim.required) or best[1] > 0.1 * best[0]:
        return None
    return best[2], best[3]


def _written(tensors: Mapping[str, Spec], config: Config) -> set[str]:
    """Return the names tensors have when they are saved."""
    try:
        found = saved(config, tensors)
    except CkptconvError:
        found = None
    return set(tensors if found is None else found[0].right)


def _prefixes(names: Collection[str]) -> list[str]:
    """Return what stands before at least half of the names, up to four words long; nothing is one of them."""
    found: Counter[str] = Counter()
    for name in names:
        words = name.split(".")
        found.update(".".join(words[:k]) + "." for k in range(1, min(5, len(words))))
    return ["", *(p for p, count in found.items() if 2 * count >= len(names))]


class Held(Protocol):
    """The tensors of a model by their final names."""

    @property
    def written(self) -> Mapping[str, Spec]:
        """Those that are written."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of theirs."""


def judged(
    checkpoint: Checkpoint,
    model: Architecture,
    held: Held,
    lacking: Sequence[str] | None,
    *,
    partial: str,
    alone: bool = False,
) -> list[Note]:
    """Compare what is written with what the model needs; refuse what would load with random weights.

    Args:
        checkpoint: The source.
        model: The architecture, with its config.
        held: The tensors by their final names.
        lacking: What the architecture's table misses among them; None where it has no table.
        partial: Why parameters may be left out, so that lacking some is a warning; empty if they may not.
        alone: Whether the weights are written alone, which is no model yet: what is wrong is a warning.

    Raises:
        PlanError: if names are foreign, parameters lacking, or shapes not the config's.
    """
    try:
        return (
            [] if lacking == () else _judged(checkpoint, model, held.written, held.aliases, partial=partial)
        )
    except PlanError as e:
        if not alone:
            raise
        return [Note("warning", f"{e.message}; {e.hint}" if e.hint else e.message)]


def _judged(
    checkpoint: Checkpoint,
    model: Architecture,
    written: Mapping[str, Spec],
    aliases: Collection[str],
    *,
    partial: str,
) -> list[Note]:
    assert model.config is not None
    config, family = model.config.values, model.family
    present = {*written, *aliases}
    if family is not None and family.entries:
        aim = wanted(family, config, present)
        missing = [n for n in aim.required if n not in present]
        known = [n for n in present if n in aim.known or family.is_ignored(n)]
        missing.sort(key=natural)
        _refuse_foreign(checkpoint, family.name, len(missing), len(aim.required), known, present)
        return _lacking(checkpoint, family.name, missing, config, present, partial=partial)
    kind = str(config.get("model_type"))
    if (found := _others(present)) is not None:
        raise _foreign(checkpoint, kind, *found, total=0)
    said = ask(config, [{n: s.shape for n, s in written.items()}])
    if said is None:
        text = f"no table for model_type {kind!r}: names and shapes pass unchecked"
        return [Note("info", text)]
    (loading,) = said
    _refuse_foreign(
        checkpoint,
        kind,
        len(loading.missing),
        loading.parameters,
        present - set(loading.unexpected),
        present,
    )
    if loading.mismatched:
        raise PlanError(
            f"config.json contradicts the checkpoint: {some(list(loading.mismatched))} "
            "has another shape in transformers' model",
            where=checkpoint.data,
            hint="give the config of this very model with --config",
        )
    text = f"no table for model_type {kind!r}: names and shapes were compared with transformers' own model"
    return [
        Note("info", text),
        *_lacking(checkpoint, kind, list(loading.missing), config, present, partial=partial),
        *_beyond(kind, loading.unexpected),
    ]


def _computed_with(
    checkpoint: Checkpoint, family: Family, config: Config, unexpected: Iterable[str]
) -> list[str]:
    """Return names inside the layers that the architecture has no place for.

    Buffers do no harm, nor do layers beyond those the config counts, nor the scales of quantised weights.
    """
    if checkpoint.quantised is not None:
        return []
    every = (_LAYER.search(name) for name, _ in _every(family, config))
    stacks = {m.string[: m.start()] for m in every if m is not None}
    layers = family.dims(config).get("layers", 0)

    def inside(name: str) -> bool:
        m = _LAYER.search(name)
        return m is not None and name[: m.start()] in stacks and int(m[1][:6]) < layers

    found = [n for n in unexpected if inside(n) and n not in checkpoint.buffers]
    return [n for n in found if not _BUFFER.fullmatch(n) and not family.is_ignored(n)]


def refuse_computed_with(
    checkpoint: Checkpoint, family: Family, config: Config, unexpected: Iterable[str], *, alone: bool
) -> None:
    """Refuse a model of another architecture than its config's, which transformers would load without them.

    Raises:
        PlanError: if there are names inside the layers that the config's architecture has no place for.
    """
    if alone or not (found := _computed_with(checkpoint, family, config, unexpected)):
        return
    raise PlanError(
        f"{len(found)} names inside the layers have no place in {family.name}: {some(found)}",
        where=checkpoint.data,
        hint="the model would load without them and compute something else: give the model's own config with "
        "--config, or write the weights alone with --no-assets",
    )


def _others(names: Collection[str]) -> tuple[Sign, str] | None:
    """Return the producer whose names these mostly are, where no model's own names look like its."""
    found = sign_of(names)
    if found is None:
        return None
    like = sum(1 for n in names if found[0].pattern.fullmatch(n))
    return found if 2 * like >= len(names) else None


def _refuse_foreign(
    checkpoint: Checkpoint,
    kind: str,
    missing: int,
    total: int,
    known: Collection[str],
    present: Collection[str],
) -> None:
    """Refuse names none of which the model knows."""
    if not total or missing < 0.9 * total or len(known) > 0.1 * len(present):
        return
    unknown = sorted(set(present) - set(known)) or sorted(present)
    sign = sign_of(unknown)
    if sign is not None:
        raise _foreign(checkpoint, kind, *sign, total=total)
    raise PlanError(
        f"none of the {total} parameters of {kind} is in the checkpoint; its names are {some(unknown)}",
        where=checkpoint.data,
        hint=f"the config is of another model (--config), or the names are another library's "
        f"({RENAME}; that suffices only if their rows lie in the same order)",
    )


def _foreign(checkpoint: Checkpoint, kind: str, sign: Sign, name: str, *, total: int) -> PlanError:
    lacks = f"none of the {total} parameters of {kind} is in the checkpoint: " if total else ""
    return PlanError(
        f"{lacks}its names are those of {sign.producer} ({name})", where=checkpoint.data, hint=sign.hint
    )


def _lacking(
    checkpoint: Checkpoint,
    kind: str,
    missing: list[str],
    config: Config,
    present: Collection[str],
    *,
    partial: str,
) -> list[Note]:
    """Refuse a model that lacks parameters, or warn of those known to be left out.

    The head of a critic stands in place of the one for tokens.
    """
    critic = sorted(n for n in present if _CRITIC.fullmatch(n))
    if critic and missing and all(n.startswith(("lm_head.", "embed_out.", "output.")) for n in missing):
        architecture = _architecture(config) or "a model of tokens"
        text = f"{critic[0]} is the head of a critic or classifier; config.json names {architecture}"
        return [Note("info", text)]
    if not missing:
        return []
    if partial:
        text = (
            f"{len(missing)} parameters of {kind} are {partial}, so the model is incomplete: {some(missing)}"
        )
        return [Note("warning", text)]
    raise PlanError(
        f"{len(missing)} parameters of {kind} are not in the checkpoint: {some(missing)}",
        where=checkpoint.data,
        hint="the model would load with random weights there: copy the checkpoint again, give the model's "
        "own --config, or write what is there alone with --no-assets",
    )


def _beyond(kind: str, names: Collection[str]) -> list[Note]:
    if not names:
        return []
    return [Note("info", f"{len(names)} names beyond {kind} pass through: {some(sorted(names))}")]
