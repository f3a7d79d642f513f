"""Say which tensors of a conversion are cast, from what to what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from ckptconv.containers.decoded import Decoded
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError
from ckptconv.numbers.casts import is_exact
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import Plan, Step
from ckptconv.relations import Relation

__all__ = ["cast_chains", "cast_steps", "recast", "rounded"]


def cast_chains(
    checkpoint: Checkpoint, relation: Relation, via: Mapping[str, DType]
) -> dict[str, tuple[DType, ...]]:
    """Return the dtypes each tensor passes through, stored one first, for those that are cast.

    Raises:
        PlanError: if parts of one tensor are stored in different dtypes, or a cast is not between floats.
    """
    held = [(p.right.tensor, relation.left[p.left.tensor].dtype) for p in relation.pairs if not p.left_copy]
    stored = dict(reversed(held))
    if unlike := next(((name, found) for name, found in held if stored[name] != found), None):
        name, found = unlike
        raise PlanError(f"parts of {name} are stored as {stored[name]} and {found}", where=checkpoint.data)
    casts = {}
    for name, spec in relation.right.items():
        first = stored.get(name, spec.dtype)
        if first == spec.dtype and name not in via:
            continue
        chain = [dtype_named(first)]
        for step in (via.get(name), dtype_named(spec.dtype)):
            if step is not None and step != chain[-1]:
                chain.append(step)
        if len(chain) > 1:
            if chain[0].name.startswith("float8"):
                raise PlanError(
                    f"{name} is quantised to {chain[0]}; without its scales a cast would be wrong",
                    where=checkpoint.data,
                    hint="dequantise the model first; --dtype keep copies it as it is",
                )
            if any(d.kind != "float" for d in chain) and not all(is_exact(a, b) for a, b in pairwise(chain)):
                raise PlanError(f"{name} is stored as {chain[0]} and cannot become {chain[-1]}")
            casts[name] = tuple(chain)
    return casts


def cast_steps(casts: Mapping[str, tuple[DType, ...]]) -> list[Step]:
    """Say which tensors are cast from what to what."""
    steps = []
    for chain, count in Counter(casts.values()).items():
        exact = all(is_exact(a, b) for a, b in pairwise(chain))
        how = "exact" if exact else "rounded to nearest, ties to even"
        steps.append(
            Step(
                "cast",
                f"{count} tensor{'' if count == 1 else 's'} " + " -> ".join(d.name for d in chain),
                how,
            )
        )
    return steps


def rounded(plan: Plan) -> Plan:
    """Return the same plan with values rounded where they are decoded, in place of a cast from float32."""
    keys: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for pair in plan.relation.pairs:
        names.setdefault(pair.left.tensor, set()).add(pair.right.tensor)
        keys.setdefault(pair.right.tensor, set()).add(pair.left.tensor)
    coded = {k for k in names if isinstance(plan.stored[k], Decoded)}
    chains = {n: c for n, c in plan.casts.items() if len(c) == 2 and n not in plan.terms}
    chosen = {n for n in chains if keys[n] <= coded}
    while True:  # one that shares its codes with another is rounded as that is
        fine = {
            n
            for n in chosen
            if all(chains.get(m) == chains[n] and m in chosen for k in keys[n] for m in names[k])
        }
        if fine == chosen:
            break
        chosen = fine
    if not chosen:
        return plan
    stored, left = dict(plan.stored), dict(plan.relation.left)
    for name in chosen:
        for key in keys[name]:
            held, dtype = plan.stored[key], chains[name][1]
            assert isinstance(held, Decoded)
            stored[key] = held.rounded(dtype)
            left[key] = left[key]._replace(dtype=dtype.name)
    casts = {n: c for n, c in plan.casts.items() if n not in chosen}
    return replace(plan, relation=replace(plan.relation, left=left), stored=stored, casts=casts)


def recast(plan: Plan, dtypes: Mapping[str, str]) -> Plan:
    """Return a plan that writes some tensors in other element types, rounded from what it would write.

    What is decoded is rounded once, whatever it is written in.

    Raises:
        PlanError: if such a cast is not between floats.
    """
    changed = {
        n: d for n, d in dtypes.items() if n in plan.relation.right and plan.relation.right[n].dtype != d
    }
    if not changed:
        return plan
    left = plan.relation.left
    stored = {p.right.tensor: left[p.left.tensor].dtype for p in plan.relation.pairs if not p.left_copy}
    casts = dict(plan.casts)
    coded = {p.right.tensor for p in plan.relation.pairs if isinstance(plan.stored[p.left.tensor], Decoded)}
    for name, to in changed.items():
        begin = stored.get(name, plan.relation.right[name].dtype)
        before = casts.get(name) or (dtype_named(begin),)
        chain = [*(before[:1] if name in coded else before), dtype_named(to)]
        if any(d.kind != "float" for d in chain):
            raise PlanError(f"{name} is stored as {chain[0]} and cannot become {to}")
        short = tuple(d for i, d in enumerate(chain) if i == 0 or d != chain[i - 1])
        casts.pop(name, None)
        if len(short) > 1:
            casts[name] = short
    right = {n: s._replace(dtype=changed.get(n, s.dtype)) for n, s in plan.relation.right.items()}
    files = []
    for file in plan.files:
        tensors = tuple(
            replace(t, dtype=dtype_named(changed[t.name])) if t.name in changed else t
            for t in file.layout.tensors
        )
        files.append(replace(file, layout=replace(file.layout, tensors=tensors)))
    return replace(plan, relation=replace(plan.relation, right=right), casts=casts, files=tuple(files))
