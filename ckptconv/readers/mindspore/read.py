"""Open a MindSpore or MindFormers checkpoint as whole tensors under its own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ckptconv.containers.mindspore.mindspore import open_mindspore
from ckptconv.containers.stored import Stored
from ckptconv.dialects.factors import with_implied
from ckptconv.dialects.mindformers import dialect_of
from ckptconv.dialects.mindformers.entries import STEP, beside_weights
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.places.inside import is_plain_name
from ckptconv.places.jsonfile import read_json
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.mindspore.assemble import Holder, add_tensor
from ckptconv.readers.mindspore.content import Content, add_whole
from ckptconv.readers.mindspore.find import NAME_MAP, Found, find
from ckptconv.readers.mindspore.masters import take_masters
from ckptconv.readers.mindspore.metadata import read_metadata
from ckptconv.readers.mindspore.options import MindSporeOptions
from ckptconv.readers.mindspore.ranks import no_strategy, read_ranks
from ckptconv.readers.mindspore.settle import check_sums, settle
from ckptconv.readers.sample import Sampler

__all__ = ["open_checkpoint"]


def open_checkpoint(path: Path, options: MindSporeOptions) -> Checkpoint:
    """Read the metadata of a checkpoint.

    Raises:
        FormatError: if a file is damaged, encrypted or of an unknown form.
        PlanError: if slices are missing or contradict each other, or masters are asked for and not there.
        UsageError: if the strategy or the choice of a save is missing.
    """
    found = find(path, options.step, strategy=options.strategy is not None)
    if options.strategy is not None and found.kind != "ranks":
        raise UsageError(
            "a strategy says how the files of ranks are cut; these are none of that kind",
            where=found.data,
            hint="leave --strategy out, or name the folder that holds rank_0, rank_1, ...",
        )
    content = Content(states=options.as_stored, masters=options.weights == "master")
    _READ[found.kind](found, options, content)
    if content.masters:
        take_masters(content, found.data)
    if not content.graph.right:
        raise FormatError(
            "the files hold training state, but no weights",
            where=found.data,
            hint="name the folder of the weights",
        )
    content.layout.update(_step_layout(found))
    iteration = _iteration(found, content)
    dialect = dialect_of(content.graph.right)
    known = with_implied(content.graph.right)
    count = content.containers.total()
    texts = [Note("info", f"text beside the weights: {k} = {v[:200]!r}") for k, v in content.texts.items()]
    ranks = f", {len(found.ranks)} ranks" if found.kind == "ranks" else ""
    checkpoint = Checkpoint(
        root=found.root,
        data=found.data,
        producer="mindspore",
        format=f"{' and '.join(sorted(content.containers))}, {count} file{'s' if count > 1 else ''}{ranks}",
        weights="master" if content.masters else "model",
        stored=content.graph.stored,
        relation=content.graph.relation(),
        files=content.graph.files,
        layout=content.layout,
        iteration=iteration,
        left_out=dict(content.left_out),
        table=None if dialect is None else dialect.table(dialect.usual(known)),
        notes=(*found.notes, *content.notes, *texts),
        pinned=frozenset(n for n in content.graph.right if beside_weights(n) is not None),
        # A .ckpt says nothing of its length: one cut between two records is a file like any other.
        complete=True,
        settle=partial(settle, options=options),
    )
    if options.check:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, check_sums(checkpoint)))
    return checkpoint


def _step_layout(found: Found) -> dict[str, int]:
    return {} if found.step is None else {"epoch": found.step[0], "step": found.step[1]}


def _iteration(found: Found, content: Content) -> int | None:
    """Return the training step: as an entry, in common.json, or in the folder's name."""
    for name in STEP:
        if name in content.steps:
            return int(Sampler().elements(content.steps[name], 0, 1)[0])
    common = found.data / "common.json"
    if common.is_file():
        content.graph.touch(common)
        try:
            step = read_json(common)["global_step"]
        except (ValueError, KeyError, TypeError) as e:
            raise FormatError("common.json is not JSON with a 'global_step'", where=common) from e
        if isinstance(step, int):
            return step
    digits = found.data.name.removeprefix("iteration_")
    return int(digits) if digits.isascii() and digits.isdigit() else None


# One file, or several with whole tensors


def _read_file(found: Found, options: MindSporeOptions, content: Content) -> None:
    path = found.files[0]
    weights = content.weights(open_mindspore(path))
    if content.deduplicated and found.ranks not in ((), (0,)):
        raise no_strategy(found)
    add_whole(content, path, weights)


def _read_named(found: Found, options: MindSporeOptions, content: Content) -> None:
    entry = found.files[0]
    places: dict[str, str] | None = None
    files: Sequence[Path] = found.files
    if entry.name == NAME_MAP:
        content.graph.touch(entry)
        places = _name_map(entry)
        files = [entry.parent / name for name in sorted(set(places.values()))]
        if (hyper := entry.parent / "hyper_param.safetensors").is_file() and hyper not in files:
            content.weights(open_mindspore(hyper))  # training state that no map names
    seen: dict[str, Path] = {}
    for path in files:
        if not path.is_file():
            raise PlanError(
                f"the file {path.name} is missing", where=entry, hint="copy every file the map names"
            )
        file = open_mindspore(path)
        for name in file.tensors:
            if places is not None and places.get(name) != path.name:
                raise PlanError(
                    f"{name} lies in {path.name}, but the map says {places.get(name)}", where=entry
                )
            if name in seen:
                raise PlanError(
                    f"{name} is in {seen[name].name} and in {path.name}",
                    where=path.parent,
                    hint="these are not the files of one model; if they are shards of ranks, give --strategy",
                )
            seen[name] = path
        add_whole(content, path, content.weights(file))
    lack = sorted(set(places or ()) - set(seen))
    if lack:
        raise PlanError(f"{lack[0]} is in the map, but not in {(places or {})[lack[0]]}", where=entry)


def _name_map(path: Path) -> dict[str, str]:
    """Read the map; converters write names alone, ``unified_safetensors`` puts them under ``weight_map``."""
    try:
        content = read_json(path)
        found = content.get("weight_map", content)
        places = {str(name): str(file) for name, file in found.items()}
    except (ValueError, AttributeError, RecursionError) as e:
        raise FormatError(f"{NAME_MAP} is not JSON that maps names to files", where=path) from e
    for name in set(places.values()):
        if not is_plain_name(name):
            raise FormatError(f"the map names a file outside its folder: {name!r}"[:300], where=path)
    return places


# An iteration with metadata.json


def _read_iteration(found: Found, options: MindSporeOptions, content: Content) -> None:
    entry = found.files[0]
    content.graph.touch(entry)
    metadata = read_metadata(entry)
    files: dict[str, Mapping[str, Stored]] = {}
    for name in sorted({s.file for slices in metadata.slices.values() for s in slices}):
        path = entry.parent / name
        if not path.is_file():
            raise PlanError(f"the file {name} is missing", where=entry, hint="copy the whole folder")
        file = open_mindspore(path)
        content.weights(file)
        files[name] = file.tensors
        strange = sorted(set(file.tensors) - set(metadata.shapes))
        if strange:
            raise PlanError(f"{strange[0]} of {name} is not in metadata.json", where=entry)
    for name, slices in metadata.slices.items():
        if not content.takes(name):
            continue
        holders = []
        for s in slices:
            stored = files[s.file].get(name)
            if stored is None or len(stored.shape) != len(metadata.shapes[name]):
                raise PlanError(f"{s.file} does not hold {name} as metadata.json says", where=entry)
            holders.append(Holder(s.rank, s.position, stored))
        if not holders:
            raise PlanError(f"metadata.json says nowhere where {name} is", where=entry)
        add_tensor(content.graph, name, [(metadata.cuts[name], holders)], str(found.data))
        if content.graph.right[name].shape != metadata.shapes[name]:
            raise PlanError(
                f"{name} is {list(content.graph.right[name].shape)} in the files, "
                f"{list(metadata.shapes[name])} in metadata.json",
                where=entry,
            )
    content.layout["ranks"] = len({s.rank for slices in metadata.slices.values() for s in slices})


_READ = {"file": _read_file, "named": _read_named, "ranks": read_ranks, "iteration": _read_iteration}
