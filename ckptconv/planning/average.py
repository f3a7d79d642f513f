"""Join plans of one model's checkpoints into one that writes the weighted mean of their weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ckptconv.dtypes import BY_NAME, DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError
from ckptconv.places.files import FileStamp
from ckptconv.plans.plan import Plan, Step
from ckptconv.records import dataclass
from ckptconv.relations import Box, Drop, Mean, Pair, Relation, Spec
from ckptconv.relations.terms import Term, operands

__all__ = ["Part", "averaged"]

_FLOAT32 = BY_NAME["float32"]
_MADE = "the mean of the sources"
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Hold one of the sources of an average.

    Attributes:
        label: What it is called for people.
        plan: How it alone would be written.
        ratio: What it is multiplied by.
    """

    label: str
    plan: Plan
    ratio: float


def averaged(parts: Sequence[Part], equal: Collection[str] = ()) -> Plan:
    """Plan the weighted mean of what several plans write.

    The values are those each plan would write, before they are rounded: multiplied by its ratio and summed in
    float32, in the order of the parts, and rounded once. What is no floating-point number, or is in
    ``equal``, is the first one's, and compared with the others'. Files and what stands beside them are the
    first one's.

    Args:
        parts: Two or more.
        equal: Names that have no mean: buffers.

    Raises:
        PlanError: if tensors differ in name, shape or element type; naming them and the sources.
    """
    first = parts[0].plan
    written = _written(first)
    for part in parts[1:]:
        _agree(parts[0].label, written, part.label, _written(part.plan))
    means = {n for n, s in written.items() if _is_mean(n, s, equal)}
    made = _Joined({}, {}, [], [], [], {}, {}, {})
    for number, part in enumerate(parts, 1):
        made.add(part.plan, number, means)
    ratios = tuple([part.ratio for part in parts])
    right: dict[str, Spec] = {}
    for name, spec in written.items():
        right[name] = spec
        if name in means:
            made.terms[name] = (Mean(tuple([_operand(i, name) for i in range(1, len(parts) + 1)]), ratios),)
            made.right_only.append(Drop(Box.whole(name, spec.shape), _MADE))
    right |= made.right
    relation = Relation(made.left, right, tuple(made.pairs), tuple(made.left_only), tuple(made.right_only))
    relation.check()
    return replace(
        first,
        source=", ".join(dict.fromkeys(p.plan.source for p in parts)),
        producer=" + ".join(dict.fromkeys(p.plan.producer for p in parts)),
        origin={
            "producer": " + ".join(dict.fromkeys(p.plan.producer for p in parts)),
            "format": f"an average of {len(parts)} checkpoints",
            "step": None,
        },
        relation=relation,
        stored=made.stored,
        casts=made.casts,
        terms=made.terms,
        steps=_steps(parts, len(means), len(written) - len(means)),
        inputs=_inputs(parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.plan.notes)),
    )


def _is_mean(name: str, spec: Spec, equal: Collection[str]) -> bool:
    """Whether a tensor has a mean.

    Raises:
        PlanError: if its numbers are codes.
    """
    dtype = dtype_named(spec.dtype)
    if dtype.kind != "float" or name in equal or not spec.numel:
        return False
    if dtype.itemsize == 1:
        raise PlanError(
            f"{name} is stored as {dtype}, without scales: a mean of codes says nothing",
            hint="average the model before it is quantised",
        )
    return True


@dataclass(frozen=True, slots=True)
class _Joined:
    """Gather what plans read; names of the sides get the number of their source."""

    left: dict[str, Spec]
    right: dict[str, Spec]
    pairs: list[Pair]
    left_only: list[Drop]
    right_only: list[Drop]
    stored: dict[str, Any]
    casts: dict[str, tuple[DType, ...]]
    terms: dict[str, tuple[Term, ...]]

    def add(self, plan: Plan, number: int, means: Collection[str]) -> None:
        relation = plan.relation
        parts = operands(plan.terms)
        kept = {n for n in relation.right if n not in means and n not in parts}

        def named(name: str) -> str:
            return name if name in kept else _operand(number, name)

        def held(box: Box) -> Box:
            return box._replace(tensor=_operand(number, box.tensor))

        self.left.update({_operand(number, k): s for k, s in relation.left.items()})
        self.stored.update({_operand(number, k): s for k, s in plan.stored.items()})
        self.left_only.extend([Drop(held(d.box), d.reason) for d in relation.left_only])
        for pair in relation.pairs:
            name = pair.right.tensor
            again = number > 1 and name in kept  # what the first one has filled is compared
            right = pair.right._replace(tensor=named(name))
            self.pairs.append(Pair(held(pair.left), right, pair.left_copy or again, pair.right_copy))
        for drop in relation.right_only:
            name = drop.box.tensor
            if number == 1 or name not in kept:
                self.right_only.append(Drop(drop.box._replace(tensor=named(name)), drop.reason))
        for name, spec in relation.right.items():
            if name in kept:
                continue
            chain = plan.casts.get(name, (dtype_named(spec.dtype),))
            if name in means:
                chain = _unrounded(chain)
                spec = Spec(spec.shape, _FLOAT32.name)
            self.right[named(name)] = spec
            if len(chain) > 1:
                self.casts[named(name)] = chain
        if number == 1:
            self.casts.update({n: c for n, c in plan.casts.items() if n in kept})
        for name, terms in plan.terms.items():
            if name in kept:
                raise PlanError(f"something is added to {name}, of which there is no mean")
            self.terms[named(name)] = tuple([_renamed(term, named) for term in terms])


def _operand(number: int, name: str) -> str:
    """Return what a tensor of a source is called among those of all."""
    return f"{number}/{name}"


def _renamed(term: Term, named: Any) -> Term:
    """Return a term of tensors under other names."""
    changed: dict[str, Any] = {}
    for field in fields(term):
        value = getattr(term, field.name)
        if isinstance(value, str) and value in term.operands:
            changed[field.name] = named(value)
    return replace(term, **changed)


def _unrounded(chain: tuple[DType, ...]) -> tuple[DType, ...]:
    """Return the types a value passes through on its way to a float32 sum: all but the last rounding."""
    before = chain[:-1] or chain
    return before if before[-1] == _FLOAT32 else (*before, _FLOAT32)


def _written(plan: Plan) -> dict[str, Spec]:
    return {t.name: Spec(t.shape, t.dtype.name) for f in plan.files for t in f.layout.tensors}


def _agree(one: str, ours: Mapping[str, Spec], other: str, theirs: Mapping[str, Spec]) -> None:
    """Refuse models that differ in their tensors.

    Raises:
        PlanError: naming them.
    """
    for here, there, mine, yours in ((one, other, ours, theirs), (other, one, theirs, ours)):
        if lacking := [n for n in mine if n not in yours]:
            raise PlanError(
                f"{_some(lacking)} {'is' if len(lacking) == 1 else 'are'} in {here}, but not in {there}",
                where=there,
                hint="only checkpoints of one model have a mean; --drop leaves tensors out of all of them",
            )
    shapes = [n for n, s in ours.items() if s.shape != theirs[n].shape]
    if shapes:
        said = [f"{n} is {list(ours[n].shape)} and {list(theirs[n].shape)}" for n in shapes[:_SHOWN]]
        raise PlanError(
            f"shapes differ between {one} and {other}: {'; '.join(said)}{_more(shapes)}",
            where=other,
            hint="only checkpoints of one model have a mean",
        )
    types = [n for n, s in ours.items() if s.dtype != theirs[n].dtype]
    if types:
        said = [f"{n} is {ours[n].dtype} and {theirs[n].dtype}" for n in types[:_SHOWN]]
        raise PlanError(
            f"element types differ between {one} and {other}: {'; '.join(said)}{_more(types)}",
            where=other,
            hint="say with --dtype which one is to be written",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + _more(names)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def _steps(parts: Sequence[Part], means: int, equal: int) -> tuple[Step, ...]:
    """Say what is averaged of what; then what is done to the first source, and what to others alone."""
    sums = " + ".join(f"{part.ratio:g} x {part.label}" for part in parts)
    steps = [Step("average", f"{_count(means)}: {sums}", "float32 sums in this order, rounded once")]
    if equal:
        why = "no floating-point weights: of the first source, and the others' must be equal"
        steps.append(Step("compare", _count(equal), why))
    known = parts[0].plan.steps
    steps += known
    for part in parts[1:]:
        steps += [replace(s, why=f"{s.why} ({part.label})") for s in part.plan.steps if s not in known]
    return tuple(dict.fromkeys(steps))


def _count(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _inputs(parts: Sequence[Part]) -> tuple[FileStamp, ...]:
    """Return the files of all sources, each once."""
    return tuple({i.path: i for part in parts for i in part.plan.inputs}.values())
