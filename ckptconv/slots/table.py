"""Relate the stored tensors of a table to slots; read from the other end it names and packs slots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import field, replace
from functools import lru_cache
from typing import NamedTuple

from ckptconv.errors import PlanError
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec, packing
from ckptconv.relations.gather import Gathering, Stamp
from ckptconv.slots.entry import Entry, fill_in, form, holes, is_apart, numbers
from ckptconv.slots.pack import Pack, every_expert, leaves, over_leaves, relate
from ckptconv.slots.part import Part, part_of
from ckptconv.slots.shapes import Dims, Sizes, place_of, shape_of, template
from ckptconv.slots.words import ANY, Words

__all__ = ["Found", "Table"]

# What frameworks' names of a family's own slots begin with, in a layer and outside.
_OWN = {"layers": "decoder.layers.*.own.", "mtp": "mtp.layers.*.own.", "": "own."}


class Found(NamedTuple):
    """Join one stored tensor to the slots it holds.

    Attributes:
        name: The stored tensor.
        entry: Its line of the table.
        layer: ``layers.3``, ``mtp.0``, or empty.
        expert: The expert's number, or empty.
    """

    name: str
    entry: Entry
    layer: str
    expert: str

    def fill(self) -> str | Pack:
        """Return the pack with the layer's and the expert's number put in."""
        return _put(self.entry.pack, self.layer, self.expert)

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots by their full names."""
        return _filled(self.entry.slots, self.layer, self.expert)

    def held(self, dims: Dims) -> tuple[str, ...]:
        """Return the slots by their full names, those of every expert where one tensor holds all."""
        return tuple(leaves(every_expert(self.fill(), dims))) if _stacks(self.entry) else self.slots


@dataclass(frozen=True, slots=True)
class Table:
    """Hold the entries of a family or a dialect.

    Attributes:
        entries: Its lines; of several for one name or slot the first whose ``when`` holds counts.
        layers: How many layers there are, where those for multi-token prediction may be numbered after them
            (`is_apart`); None if they never are.
        words: What conditions are weighed by; `ANY` lets every line count.
        grid: Sizes of the ranks, which count groups too: ``tp`` of what each holds one after the other.
        parts: The parts beside the language model.
    """

    entries: tuple[Entry, ...]
    layers: int | None = None
    words: Words = ANY
    grid: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    @property
    def as_model(self) -> frozenset[str]:
        """The norms that are stored as the model has them, wherever norms are stored around zero."""
        return frozenset(template(s) for e in self.entries if e.as_model for s in e.slots)

    def with_own(self, dims: Dims) -> Table:
        """Return a framework's table with places for what a family brings itself.

        Its own slots are whole, under their own names. Parts beside the language model have the table there
        is for them; others pass through.
        """
        sizes = Sizes.of(dims)
        here = {s for e in self.entries for s in e.slots}
        added = [
            Entry(_OWN[kind if rest else ""] + (rest or slot) + end, slot + end, optional=bool(end))
            for slot in sizes.shapes
            if slot not in here
            for kind, _, rest in [slot.partition(".*.")]
            for end in ("", ".bias")
        ]
        parts = tuple(
            part
            for own in sizes.beside
            if (part := own if own.table is not None else self._part_for(own, sizes)) is not None
        )
        return replace(self, entries=(*self.entries, *added), parts=parts)

    def _part_for(self, own: Part, sizes: Sizes) -> Part | None:
        """Return a framework's table for a family's part; the part as it is where there is none for it.

        None if the framework's has no place for all of it, and the names it has itself are known.
        """
        theirs = next((p for p in self.parts if p.name == own.name), None)
        if theirs is None or (theirs.table is not None and own.name not in sizes.parts):
            return own
        kept = next((p.table for p in sizes.beside if p.name == own.name and p.table is not None), None)
        if theirs.table is None or kept is None:
            return theirs
        places = {s for e in theirs.table.entries for s in e.slots}
        return theirs if places.issuperset(s for e in kept.entries for s in e.slots) else None

    def saying(self, word: str, layers: Iterable[str]) -> Table:
        """Return a table with a word that holds of some layers beside those it has."""
        more = {layer: self.words.layers.get(layer, frozenset()) | {word} for layer in layers}
        return replace(self, words=replace(self.words, layers={**self.words.layers, **more}))

    def named(self, names: Iterable[str]) -> tuple[list[Found], list[str]]:
        """Look up stored tensors; return what was found and the names the table does not know."""
        index: dict[str, list[Entry]] = {}
        for entry in self.entries:
            index.setdefault(holes(entry.name)[0], []).append(entry)
        exact = {shape for shape, entries in index.items() if any(holes(e.name)[2] for e in entries)}
        known: dict[tuple[str, tuple[int, ...]], tuple[Entry, str, int | None] | None] = {}
        found, unknown = [], []
        for name in names:
            hit = None
            part = next((p for p in self.parts if name.startswith(p.prefix)), None) if self.parts else None
            if part is not None:
                hit = _beside(part, name)
            else:
                shape, values = numbers(name)
                # A layer's experts are found alike: the first number of a name is that of its layer.
                key = shape, values if shape in exact else values[:1]
                if key not in known:
                    known[key] = self._line(index.get(shape, ()), values)
                if (line := known[key]) is not None:
                    entry, layer, at = line
                    hit = Found(name, entry, layer, "" if at is None else str(values[at]))
            if hit is None:
                unknown.append(name)
            else:
                found.append(hit)
        return found, unknown

    def _line(
        self, entries: Iterable[Entry], values: tuple[int, ...]
    ) -> tuple[Entry, str, int | None] | None:
        """Return the line for a tensor of these numbers, its layer, and which of them is the expert's."""
        for entry in entries:
            own = _own_numbers(entry, values)
            if own is not None and (layer := self._layer(entry, own)) is not None:
                return entry, layer, holes(entry.name)[1][-1] if "{e}" in entry.name else None
        return None

    def _layer(self, entry: Entry, values: tuple[int, ...]) -> str | None:
        """Return the layer of an entry's tensor of these numbers, empty for none; None if it has no such."""
        layer = ""
        if "*" in entry.name:
            first = entry.slots[0]  # a copy of what is in no layer lies in a layer for prediction alone
            number, own = values[0], first.startswith("mtp.") or "*" not in first
            if self.layers is None or (own and is_apart(entry)):
                layer = f"{'mtp' if own else 'layers'}.{number}"
            elif own and number < self.layers:
                return None
            else:
                layer = f"layers.{number}" if number < self.layers else f"mtp.{number - self.layers}"
        return layer if self.words.holds(entry.when, layer) else None

    def holding(self, slots: Collection[str]) -> tuple[list[Found], list[str]]:
        """Name the tensors that hold slots; return also the slots the table has no place for.

        The order is that of a model: what is before the layers, layer by layer, expert by expert, the rest.
        """
        everywhere = slots
        slots = [s for s in everywhere if not part_of(s)]
        here = set(slots)
        by_template: dict[str, list[tuple[str, str]]] = {}
        experts: dict[str, dict[str, None]] = {}
        for slot in slots:
            form, layer, expert = place_of(slot)
            by_template.setdefault(form, []).append((layer, expert))
            if expert:
                experts.setdefault(layer, {})[expert] = None
        left = dict.fromkeys(slots)
        found: list[Found] = []
        for entry in self.entries:
            stacks, there = _stacks(entry), here if entry.copy else left
            holds: dict[str, bool] = {}
            for layer, expert in self._places(entry, by_template):
                if layer not in holds:
                    holds[layer] = self.words.holds(entry.when, layer)
                if not holds[layer]:
                    continue
                every = experts.get(layer, ()) if stacks else (expert,)
                held = [slot for e in every for slot in _filled(entry.slots, layer, e)]
                if all(map(there.__contains__, held)):
                    found.append(Found(self.name(entry, layer, expert), entry, layer, expert))
                    for s in () if entry.copy else held:
                        del left[s]
        made_beside, left_beside = self._holding_parts([s for s in everywhere if part_of(s)])
        return [*self._in_order(found), *made_beside], [*left, *left_beside]

    def _holding_parts(self, slots: Collection[str]) -> tuple[list[Found], list[str]]:
        """Name the tensors that hold slots of parts; return also those that have no place."""
        found: list[Found] = []
        left: list[str] = []
        for name in dict.fromkeys(map(part_of, slots)):
            part = next((p for p in self.parts if p.name == name), None)
            own = [s for s in slots if part_of(s) == name]
            if part is None:
                left += own
                continue
            rests = [s.partition("/")[2] for s in own]
            if part.table is None:
                found += [f for rest in rests if (f := _beside(part, part.prefix + rest)) is not None]
                continue
            held, homeless = part.table.holding(rests)
            found += [_lifted(part, f) for f in held]
            left += [f"{name}/{slot}" for slot in homeless]
        return found, left

    def _in_order(self, found: list[Found]) -> list[Found]:
        at = {id(entry): i for i, entry in enumerate(self.entries)}
        layered = [i for i, e in enumerate(self.entries) if "*" in e.name]
        experts = min((i for i, e in enumerate(self.entries) if "{e}" in e.name), default=0)

        layers: dict[str, tuple[int, int]] = {}

        def key(f: Found) -> tuple[int, ...]:
            i = at[id(f.entry)]
            if not f.layer:
                return (0 if not layered or i < layered[0] else 3, 0, i, 0, 0)
            if f.layer not in layers:
                kind, number = f.layer.split(".")
                layers[f.layer] = 1 if kind == "layers" else 2, int(number)
            return (*layers[f.layer], *((experts, int(f.expert), i) if f.expert else (i, 0, 0)))

        return sorted(found, key=key)

    def _places(
        self, entry: Entry, by_template: Mapping[str, list[tuple[str, str]]]
    ) -> Iterator[tuple[str, str]]:
        first = entry.slots[0]
        if entry.copy and "*" in entry.name and "*" not in first:  # a copy in every layer of its kind
            layers = {
                layer for places in by_template.values() for layer, _ in places if layer.startswith("mtp.")
            }
            yield from sorted((layer, "") for layer in layers)
            return
        if "*" not in entry.name:  # it may be of one layer, whose number its slot has
            _, layer, _ = place_of(first)
            yield from [("", "") for found, _ in by_template.get(template(first), ()) if found == layer][:1]
            return
        kinds = [first]
        if self.layers is not None and first.startswith("layers.") and not any(map(is_apart, self.entries)):
            kinds.append("mtp" + first.removeprefix("layers"))
        for kind in kinds:
            places = by_template.get(kind, ())
            yield from dict.fromkeys((layer, "") for layer, _ in places) if _stacks(entry) else places

    def name(self, entry: Entry, layer: str, expert: str) -> str:
        """Return what an entry's tensor is called in a layer, as an expert's."""
        values = (int(expert),) if expert else ()
        if "*" in entry.name:
            kind, _, number = layer.partition(".")
            after = self.layers if kind == "mtp" and not is_apart(entry) else None
            values = (int(number) + (after or 0), *values)
        return fill_in(entry.name, values)

    def relation(
        self, tensors: Mapping[str, Spec], found: Iterable[Found], dims: Dims, what: str
    ) -> Relation:
        """Relate stored tensors (left) to their slots (right).

        Args:
            tensors: Shape and dtype of each stored tensor; rows of a vocabulary beyond its size are dropped
                as padding.
            found: What `named` or `holding` returned.
            dims: The sizes of the model.
            what: Where those are from, for errors.

        Raises:
            PlanError: naming every tensor whose shape is not the one these sizes ask for.
        """
        dims = Sizes.of(dims, self.grid)
        made = Gathering()
        wrong: list[str] = []
        stamps: dict[tuple[int, str, Spec], Stamp] = {}  # the experts of a layer are packed alike
        every = list(found)  # which keeps their entries, so that none has the id of another
        for f in every:
            spec, held = tensors[f.name], f.held(dims)
            key = id(f.entry), f.layer, spec
            if key not in stamps:
                related = self._related(f, spec, dims)
                if isinstance(related, str):
                    wrong.append(f"{f.name} is {list(spec.shape)}, {what} asks for {related}")
                    continue
                stamps[key] = related.stamp((f.name,), held)
            made.stamp(stamps[key], (f.name,), held)
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise PlanError(
                f"{what} contradicts the checkpoint: " + "; ".join(wrong[:5]) + more,
                hint="give the config of this very model with --config",
            )
        return Relation.gathered(made)

    def _related(self, f: Found, spec: Spec, dims: Dims) -> Relation | str:
        """Relate a tensor to its slots; return the shape it is asked to have if that is another."""
        pack = every_expert(f.fill(), dims)
        related = _related(f.name, pack, spec, dims)
        if related is None or related.left[f.name].shape != spec.shape:
            asked = related.left[f.name].shape if related else shape_of(str(pack), dims)
            related = self.otherwise(f, spec, dims)
            if related is None:
                return str(list(asked))
        if f.entry.copy:
            return replace(related, pairs=tuple([p._replace(left_copy=True) for p in related.pairs]))
        return related

    def otherwise(self, f: Found, spec: Spec, dims: Dims) -> Relation | None:
        """Relate a tensor as another line of its name packs it, if one does in this shape."""
        for entry in self.entries:
            if entry is f.entry or form(entry.name) != form(f.entry.name) or entry.copy:
                continue
            other = f._replace(entry=entry)
            if not self.words.holds(entry.when, f.layer) or set(other.slots) != set(f.slots):
                continue
            related = _related(f.name, every_expert(other.fill(), dims), spec, dims)
            if related is not None and related.left[f.name].shape == spec.shape:
                return related
        return None

    def specs(self, found: Iterable[Found], slots: Mapping[str, Spec], dims: Dims) -> dict[str, Spec]:
        """Return shape and dtype of the stored tensors that hold these slots.

        Raises:
            PlanError: if slots of one tensor differ in dtype.
        """
        dims = Sizes.of(dims, self.grid)
        made: dict[str, Spec] = {}
        known: dict[tuple[int, str, tuple[Spec, ...]], Spec] = {}
        every = list(found)  # which keeps their entries, so that none has the id of another
        for f in every:
            names = f.held(dims)
            try:
                held = tuple([slots[s] for s in names])
            except KeyError as lacking:
                raise PlanError(
                    f"{f.name} cannot be made: the source has no {lacking.args[0]}",
                    hint="the source is incomplete, or --config is of another model",
                ) from None
            key = id(f.entry), f.layer, held
            if key not in known:
                known[key] = _packed(f, dict(zip(names, held, strict=True)), dims)
            made[f.name] = known[key]
        return made


def _own_numbers(entry: Entry, values: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return those numbers of a name that are in an entry's holes; None if the others are not its own."""
    _, at, fixed = holes(entry.name)
    if not fixed:
        return values
    if any(values[i] != value for i, value in fixed):
        return None
    return tuple([values[i] for i in at])


def _packed(f: Found, held: Mapping[str, Spec], dims: Dims) -> Spec:
    """Return shape and dtype of a tensor that holds these slots."""
    if len({s.dtype for s in held.values()}) > 1:
        raise PlanError(
            f"{f.name} holds slots of several dtypes: "
            + ", ".join(f"{n} {s.dtype}" for n, s in held.items()),
            hint="give --dtype to write all in one",
        )
    pack = every_expert(f.fill(), dims)
    if isinstance(pack, str):
        return held[pack]
    return relate(f.name, pack, held, _counting(pack, dims)).left[f.name]


def _beside(part: Part, name: str) -> Found | None:
    """Look up a tensor of a part."""
    rest = name.removeprefix(part.prefix)
    if part.table is None:
        return Found(name, Entry(name, f"{part.name}/{rest}"), "", "")
    found, _ = part.table.named([rest])
    return _lifted(part, found[0]) if found else None


def _lifted(part: Part, found: Found) -> Found:
    """Return what a part's table found as one of the whole model's, its numbers put in."""
    name = part.prefix + found.name
    pack = over_leaves(found.fill(), lambda slot: f"{part.name}/{slot}")
    return Found(name, replace(found.entry, name=name, pack=pack), "", "")


def _related(name: str, pack: str | Pack, spec: Spec, dims: Dims) -> Relation | None:
    if isinstance(pack, str):
        if (part := part_of(pack)) and part not in Sizes.of(dims).parts:
            return packing.renamed(name, pack, spec)
        slot = Spec(shape_of(pack, dims), spec.dtype)
        if pack in ("embed", "head", "head.bias") and spec.shape[:1] > slot.shape[:1]:
            return packing.padded(name, pack, slot, rows=spec.shape[0])
        return packing.renamed(name, pack, slot) if slot.numel == spec.numel else None
    specs = {s: Spec(shape_of(s, dims), spec.dtype) for s in leaves(pack)}
    return relate(name, pack, specs, _counting(pack, dims))


def _counting(pack: Pack, dims: Dims) -> Dims:
    """Return the sizes that count the groups of a pack: those of the part its slots are of."""
    part = part_of(next(leaves(pack)))
    return Sizes.of(dims).parts[part] if part else dims


def _stacks(entry: Entry) -> bool:
    """Whether one tensor holds a slot of every expert."""
    return "{e}" not in entry.name and any("{e}" in s for s in entry.slots)


@lru_cache(maxsize=1 << 17)  # asked for by every table a model's tensors go through
def _filled(slots: tuple[str, ...], layer: str, expert: str) -> tuple[str, ...]:
    """Return slots with the layer's and the expert's number put in."""
    return tuple([(expert or "{e}").join(around) for around in _in_layer(slots, layer)])


@lru_cache(maxsize=1 << 14)
def _in_layer(slots: tuple[str, ...], layer: str) -> tuple[tuple[str, ...], ...]:
    """Return what is before and after the expert's number in the names of a layer's slots."""
    full = [
        layer + slot[slot.index("*") + 1 :] if slot.startswith(("layers.*.", "mtp.*.")) else slot
        for slot in slots
    ]
    return tuple([tuple(slot.split("{e}")) for slot in full])


def _put(pack: str | Pack, layer: str, expert: str) -> str | Pack:
    return over_leaves(pack, lambda slot: _filled((slot,), layer, expert)[0])
