"""Decide what the tensors of a checkpoint are called in the output, and in which dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ckptconv.containers.safetensors import read_header
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import CkptconvError, PlanError
from ckptconv.families import Family
from ckptconv.families.saved import correction, has_prefixes, saved
from ckptconv.places.places import place
from ckptconv.places.regular import read_text
from ckptconv.planning.adapters.carry import carried, ones
from ckptconv.planning.adapters.lora import alone, follow, refuse_tied, term_steps
from ckptconv.planning.foreign import own_names, wanted
from ckptconv.planning.idle import IDLE, idle_biases
from ckptconv.planning.model import Architecture
from ckptconv.planning.shared import doubled, first_names
from ckptconv.planning.tied import ends, has_drifted
from ckptconv.plans.casting import cast_chains, cast_steps
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.plan import AssetFile, Step
from ckptconv.plans.request import Request
from ckptconv.readers.weight_map import read_weight_map
from ckptconv.records import dataclass
from ckptconv.relations import LowRank, Relation, Spec
from ckptconv.relations.rename import names_relation, parse_renames, under_names
from ckptconv.relations.terms import Terms, operands
from ckptconv.slots import Table, template
from ckptconv.slots.translate import as_copy, from_slots, some, to_slots, without
from ckptconv.slots.words import of_family

__all__ = ["Named", "name_tensors"]

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """Hold tensors under their final names, with dtypes decided.

    Attributes:
        relation: Stored tensors to the tensors to be written.
        casts: Dtypes a tensor passes through, stored one first, where it is cast.
        aliases: Names that are not written because they share another's data.
        tied: Whether the output head is tied to the embedding; None where that cannot be said.
        steps: All that is not a plain copy.
        terms: What is added to tensors; operands are among the relation's tensors, but not written.
        adapter: adapter_config.json, where a checkpoint of ranks gives its adapter alone.
        via: Dtypes tensors are rounded to on the way, by these names.
        notes: What a user should know.
    """

    relation: Relation
    casts: Mapping[str, tuple[DType, ...]]
    aliases: Mapping[str, str]
    tied: bool | None
    steps: tuple[Step, ...]
    terms: Terms = field(default_factory=dict)
    adapter: AssetFile | None = None
    via: Mapping[str, DType] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    @property
    def written(self) -> dict[str, Spec]:
        """The tensors that are written: all but operands."""
        parts = operands(self.terms)
        return {n: s for n, s in self.relation.right.items() if n not in parts}


@dataclass(frozen=True, slots=True)
class _Under:
    """Hold tensors on the way to their final names.

    Attributes:
        relation: Stored tensors to those that have names so far.
        aliases: Names that share another's data.
        unresolved: Names without data.
        via: Dtypes tensors are rounded to on the way.
        terms: What is added to tensors.
        steps: What was done.
        passing: Names that go through the slots as they are: operands, and what a user named.
        adapter: adapter_config.json, where a checkpoint of ranks gives its adapter alone.
    """

    relation: Relation
    aliases: Mapping[str, str]
    unresolved: frozenset[str]
    via: Mapping[str, DType]
    terms: Terms
    steps: tuple[Step, ...] = ()
    passing: frozenset[str] = frozenset()
    adapter: AssetFile | None = None

    def through(self, names: Relation) -> _Under:
        """Return the tensors under the names that a relation gives them, their terms with them."""
        return replace(self, relation=self.relation.compose(names), terms=follow(self.terms, names))

    def doing(self, *steps: Step) -> _Under:
        """Return the same with more steps."""
        return replace(self, steps=(*self.steps, *steps))


def name_tensors(
    checkpoint: Checkpoint,
    options: Request,
    model: Architecture,
    terms: Terms = MappingProxyType({}),
    held: Collection[str] = (),
) -> Named:
    """Apply drops and renames, the names ``save_pretrained`` uses, ties, and the dtype.

    ``terms`` are what is to be added to tensors of the checkpoint; they follow the names. ``held`` is what
    an output is known to hold, if this is to be compared with it.

    Raises:
        UsageError: if a drop or rename matches nothing.
        PlanError: if a name has no data, or a tensor cannot be cast.
    """
    unresolved = frozenset(checkpoint.unresolved)
    now = _Under(checkpoint.relation, checkpoint.aliases, unresolved, checkpoint.via, terms)
    if options.drop or options.keep or options.rename is not None:
        now = _as_asked(now, checkpoint, options)
    said: list[Note] = []
    if checkpoint.table is not None:
        now = _by_slots(now, checkpoint, checkpoint.table, model, alone_asked=options.lora == "adapter")
    else:
        now = _first_names(_bare(now, model), model)
        # TensorFlow's rule gives the names of files.
        if options.lora != "adapter" and checkpoint.producer != "tensorflow":
            now, said = _as_saved(now, model)
        now = _untied(now, model, held)
    now, tied, notes = _tied(now, checkpoint, model)
    if options.dtype != "keep":
        kept = {n for n in now.relation.right if model.is_pinned(n) or n in checkpoint.pinned}
        kept |= operands(now.terms).keys()
        now = replace(now, relation=_with_dtype(now.relation, dtype_named(options.dtype), kept))
    casts = cast_chains(checkpoint, now.relation, now.via)
    copies = Counter(p.right.tensor for p in now.relation.pairs if p.left_copy)
    now = now.doing(
        *term_steps(now.terms, now.relation.right),
        *cast_steps({n: c for n, c in casts.items() if n not in operands(now.terms)}),
        *(Step("compare", name, f"{n} other copies must agree") for name, n in copies.items()),
    )
    return Named(
        now.relation, casts, now.aliases, tied, now.steps, now.terms, now.adapter, now.via, (*said, *notes)
    )


def _as_asked(now: _Under, checkpoint: Checkpoint, options: Request) -> _Under:
    """Leave out and rename what a user says.

    Raises:
        UsageError: if a drop or rename matches nothing.
    """
    rules = parse_renames(read_text(place(options.rename))) if options.rename else []
    beside = (*now.aliases, *now.unresolved)
    dropped = {n for n in beside if options.leaves_out(n)}
    names, renamed = names_relation(
        now.relation.right, options.drop, rules, others=dropped, keeps=options.keep
    )
    flag = "--drop" if options.drop else "--keep"
    passing = frozenset[str]()
    if checkpoint.table is not None:
        passing = frozenset(new for old, new in renamed.items() if old != new)
        passing &= frozenset(checkpoint.table.named(passing)[1])
    steps = [Step("drop", d.box.tensor, d.reason) for d in names.left_only]
    steps += [Step("rename", f"{old} -> {new}", "--rename") for old, new in renamed.items() if old != new]
    steps += [
        Step("drop", a, flag if a in dropped else f"shares the data of {b}, which is dropped")
        for a, b in now.aliases.items()
        if b not in renamed or a in dropped
    ]
    return replace(
        now.through(names).doing(*steps),
        aliases={a: renamed[b] for a, b in now.aliases.items() if b in renamed and a not in dropped},
        via={renamed[n]: d for n, d in now.via.items() if n in renamed},
        unresolved=now.unresolved - dropped,
        passing=passing,
    )


def _bare(now: _Under, model: Architecture) -> _Under:
    """Take a wrapper's prefix off the names, where the rest then fits the architecture."""
    beside = (*now.aliases, *now.unresolved)
    new = own_names(now.relation.right, beside, model, operands(now.terms))
    if not new:
        return now
    return replace(
        now.through(under_names(now.relation.right, new)).doing(
            *(Step("rename", f"{old} -> {name}", "a wrapper's prefix") for old, name in new.items())
        ),
        aliases={new.get(a, a): new.get(b, b) for a, b in now.aliases.items()},
        via={new.get(n, n): d for n, d in now.via.items()},
        unresolved=frozenset(new.get(n, n) for n in now.unresolved),
    )


def _first_names(now: _Under, model: Architecture) -> _Under:
    """Keep what several names share under the one that loaders look for."""
    embed = model.family.name_of("embed") if model.family is not None else None
    better = first_names(now.relation.right, now.aliases, embed)
    if not better:
        return now
    gone = set(better.values())
    aliases = {**{kept: kept for kept in better}, **now.aliases}
    return replace(
        now.through(under_names(now.relation.right, better)),
        aliases={a: better.get(b, b) for a, b in aliases.items() if a not in gone},
        via={better.get(n, n): d for n, d in now.via.items()},
    )


def _untied(now: _Under, model: Architecture, held: Collection[str]) -> _Under:
    """Make tensors of their own of names that a model needs, and that nothing ties to what they share.

    A head that shares the embedding's data is tied, whatever the config says: it will say so. Where no
    config tells what is needed, that is what an output holds.
    """
    family, config = model.family, model.config
    tensors = now.relation.right
    if not now.aliases:
        return now
    if family is not None and family.entries and config is not None:
        needed: Collection[str] = wanted(family, config.values, {*tensors, *now.aliases}).required
        tie: tuple[str | None, str | None] = family.name_of("head"), family.name_of("embed")
    else:
        needed, tie = held, (None, None)
    twice = {a: b for a, b in now.aliases.items() if a in needed and b in tensors and (a, b) != tie}
    if not twice:
        return now
    steps = [
        Step("alias", f"{a} = {b}", "shared, and nothing ties them: written twice") for a, b in twice.items()
    ]
    return replace(
        now.through(doubled(tensors, twice)).doing(*steps),
        aliases={a: b for a, b in now.aliases.items() if a not in twice},
        via={**now.via, **{a: now.via[b] for a, b in twice.items() if b in now.via}},
    )


def _by_slots(
    now: _Under, checkpoint: Checkpoint, table: Table, model: Architecture, *, alone_asked: bool
) -> _Under:
    """Bring a framework's names to Hugging Face's by way of the slots of the architecture.

    Args:
        now: The tensors under the framework's names.
        checkpoint: The source.
        table: Its table.
        model: The architecture.
        alone_asked: Whether the adapter alone is to be written.

    Raises:
        PlanError: if the architecture is not known, or a tensor has no slot.
    """
    family, config = model.family, model.config.values if model.config is not None else None
    if family is None or config is None:
        raise PlanError("the architecture is not known", hint="give --config, or --family")
    table = replace(table, words=table.words.beside([of_family(family.name)]))
    dims, terms = family.dims(config), now.terms
    passing = now.passing | operands(terms).keys()
    if idle := idle_biases(checkpoint, now.relation, now.via, table, family.table(config)):
        now = replace(now, relation=without(now.relation, idle, IDLE))
        now = now.doing(*(Step("drop", name, IDLE) for name in idle))
    inner = to_slots(now.relation.right, table, dims, what="config.json", passing=passing)
    relation = now.relation.compose(inner)
    if family.tied(config) and {"head", "embed"} <= relation.right.keys():
        relation = as_copy(relation, "head", "embed")
    outer = from_slots(relation.right, family.table(config), dims, who=family.name, passing=passing)
    relation = relation.compose(outer)
    added = {n: t for n, t in terms.items() if not any(isinstance(one, LowRank) for one in t)}
    terms = {n: t for n, t in terms.items() if n not in added}
    if terms:
        factors, products = carried(terms, relation.right, table, family.table(config), dims)
        relation, terms = relation.compose(factors), products
        if alone_asked:
            relation, adapter, step = alone(relation, products)
            return replace(now.doing(step), relation=relation, terms={}, adapter=adapter)
    if (zero := model.zero_centered) is not None:

        def lacks(norm: str) -> int:
            own = family.is_zero_centered(norm)
            return (own if template(norm) in table.as_model else zero) - own

        terms = {**terms, **ones(outer, lacks)}
    terms = {**terms, **follow(follow(added, inner), outer)}
    return replace(now, relation=relation, terms=terms)


def _as_saved(now: _Under, model: Architecture) -> tuple[_Under, list[Note]]:
    """Give tensors the names and packing of ``save_pretrained``; say where it errs and is not followed."""
    packing = _saved(model, now.relation.right, now.aliases, now.unresolved)
    if packing is None:
        return now, []
    packed, aliases, unresolved = packing
    via = {p.right.tensor: now.via[p.left.tensor] for p in packed.pairs if p.left.tensor in now.via}
    now = now.through(packed).doing(*_saved_steps(packed))
    why = correction(_config_of(model) or {})
    notes = [Note("info", why)] if why is not None else []
    return replace(now, aliases=aliases, unresolved=frozenset(unresolved), via=via), notes


def _tied(now: _Under, checkpoint: Checkpoint, model: Architecture) -> tuple[_Under, bool | None, list[Note]]:
    """Write tied weights once; where the config ties what differs in the files, both.

    Returns:
        The tensors, whether head and embedding are tied (None if that is not known), and what to say.

    Raises:
        PlanError: if a name without data is not explained by tied weights.
    """
    family, config = model.family, model.config.values if model.config is not None else None
    embed, head, says = ends(now.relation, family, config)
    notes: list[Note] = []
    drifted = bool(says and embed in now.relation.right and head in now.relation.right) and has_drifted(
        checkpoint, now.relation, now.via, str(head), str(embed)
    )
    if drifted:
        text = f"config.json ties {head} to {embed}, but they differ: both are written, and the flag is false"
        notes.append(Note("warning", text))
    relation, aliases, tied = _tie(
        checkpoint, now.relation, now.aliases, now.unresolved, family, None if drifted else config
    )
    refuse_tied(now.terms, aliases)
    steps = [Step("alias", f"{a} = {b}", "tied: written once") for a, b in aliases.items()]
    return replace(now.doing(*steps), relation=relation, aliases=aliases), False if drifted else tied, notes


def _with_dtype(relation: Relation, target: DType, kept: Collection[str]) -> Relation:
    """Give every floating-point tensor a dtype, but those that are ``kept``."""

    def is_cast(name: str, dtype: str) -> bool:
        return name not in kept and dtype_named(dtype).kind == "float"

    right = {
        n: s._replace(dtype=target.name) if is_cast(n, s.dtype) else s for n, s in relation.right.items()
    }
    return replace(relation, right=right)


def _saved(
    model: Architecture, tensors: Mapping[str, Spec], aliases: Mapping[str, str], unresolved: Collection[str]
) -> tuple[Relation, dict[str, str], set[str]] | None:
    """Return what ``save_pretrained`` makes of tensors and of names without data; None if it leaves them."""
    config = _config_of(model)
    if config is None:
        return None
    folder = model.config.folder if model.config is not None else None
    like = _names_in(folder) if folder is not None and has_prefixes(config) else ()
    found = saved(config, tensors, [*aliases, *unresolved], like=like)
    if found is None:
        return None
    relation, new = found
    return relation, {new[a]: new[b] for a, b in aliases.items()}, {new[n] for n in unresolved}


def _config_of(model: Architecture) -> Config | None:
    """Return config.json, or what a family says of it without one."""
    if model.config is not None:
        return model.config.values
    if model.family is not None and model.family.model_types:
        return {"model_type": model.family.model_types[0]}
    return None


def _names_in(folder: Path) -> Collection[str]:
    """Return the names in a model's folder, the one training began with; none if it holds no safetensors."""
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            return read_weight_map(index).keys()
        return read_header(file)[0].keys() if file.is_file() else ()
    except CkptconvError:
        return ()


def _saved_steps(saved: Relation) -> list[Step]:
    parts: dict[str, list[str]] = {}
    for pair in saved.pairs:
        parts.setdefault(pair.left.tensor, []).append(pair.right.tensor)
    return [
        Step("rename", f"{old} -> {some(new, 2)}", "as save_pretrained names it")
        for old, new in parts.items()
        if new != [old]
    ]


def _tie(
    checkpoint: Checkpoint,
    relation: Relation,
    aliases: Mapping[str, str],
    unresolved: frozenset[str],
    family: Family | None,
    config: Config | None,
) -> tuple[Relation, dict[str, str], bool | None]:
    """Write tied weights once; explain names without data by the config's word.

    Returns:
        The relation, the aliases, and whether head and embedding are tied (None if that is not known).

    Raises:
        PlanError: if a name without data is not explained by tied weights.
    """
    aliases = dict(aliases)
    embed = family.name_of("embed") if family else None
    head = family.name_of("head") if family else None
    says = family.tied(config) if family is not None and config is not None else None
    if embed is not None and head is not None and says and embed in relation.right:
        if head in unresolved:
            aliases[head] = embed
            unresolved = unresolved - {head}
        elif head in relation.right and relation.right[head].shape == relation.right[embed].shape:
            relation = as_copy(relation, head, embed)
            aliases[head] = embed
    if unresolved:
        raise PlanError(
            f"the checkpoint names {some(sorted(unresolved))}, but holds no data for it",
            where=checkpoint.data,
            hint="deepspeed before 0.9.1 did not save frozen ZeRO-3 parameters, and before 0.9.2 did not say "
            "which are tied (give the model's --config); otherwise save again with a newer release",
        )
    if embed is None or head is None:
        guess = any(n.endswith(("embed_tokens.weight", "wte.weight")) for n in aliases.values())
        return relation, aliases, True if guess else None
    if aliases.get(head) == embed:
        return relation, aliases, True
    return relation, aliases, False if head in relation.right else says
