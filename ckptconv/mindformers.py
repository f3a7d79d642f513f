"""Plan MindFormers checkpoints: settle what a source leaves open, and lay out what is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from ckptconv.architecture import Architecture, beside_of
from ckptconv.arguments import read_run
from ckptconv.dialects.mindformers import (
    CORE,
    GLM,
    LEGACY,
    STYLES,
    Style,
    find_style,
    style_for,
    told,
    unsaid,
)
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.families import Family
from ckptconv.graph import AssetFile, Box, OutFile, Pair, Plan, Relation, Spec, restrict
from ckptconv.naming import Named, name_tensors
from ckptconv.options import ConvertOptions
from ckptconv.readers.base import Checkpoint, Note, ReadOptions
from ckptconv.readers.mindspore.entries import beside_weights
from ckptconv.readers.mindspore.strategy import Strategy, find_strategies, read_strategies
from ckptconv.readers.registry import open_checkpoint
from ckptconv.sharded import as_stored, retyped
from ckptconv.storage import mindspore, mindspore_out, safetensors
from ckptconv.storage.base import FileLayout
from ckptconv.storage.places import place
from ckptconv.storage.stored import Stored
from ckptconv.topology_mindspore import Cut, cut, slice_box
from ckptconv.translate import from_slots, some, without
from ckptconv.writers.megatron import Target, pad_vocabulary

__all__ = ["keeps_names", "lay_out", "plan_merge", "reading", "understood"]

Container = Literal["ckpt", "safetensors"]
_STEM: Final = "checkpoint"
_YAML: Final = (".yaml", ".yml")


# What is read


def reading(options: ConvertOptions) -> Mapping[str, Any]:
    """Return what a MindSpore reader is to know: fields of ``ReadOptions``."""
    if options.to == "mindformers":
        return {"strategy": options.source_strategy, "states": _plain(options)}
    if options.strategy is not None and options.source_strategy is not None:
        raise UsageError("--strategy and --source-strategy both speak of the source here; give one")
    return {"strategy": options.source_strategy or options.strategy}


def _plain(options: ConvertOptions) -> bool:
    """Whether a target of MindFormers' names may keep those of the source."""
    asked = (options.like, options.dialect, options.experts, options.mla, options.lora, options.adapter)
    return not options.qkv_concat and all(a is None for a in asked)


def keeps_names(checkpoint: Checkpoint, options: ConvertOptions) -> bool:
    """Whether a conversion only merges or cuts a checkpoint that has MindFormers' names already."""
    return options.to == "mindformers" and checkpoint.producer == "mindspore" and _plain(options)


def understood(checkpoint: Checkpoint, options: ConvertOptions) -> Checkpoint:
    """Settle how a MindSpore checkpoint packs its tensors: by the flags, the run's YAML, or a guess.

    Raises:
        UsageError: if flags do not go together, or several YAML files are beside it.
        FormatError: with ``check``, if a file is not what its checksum says.
    """
    if checkpoint.producer != "mindspore":
        if options.yaml is not None or options.check:
            flag = "--yaml" if options.yaml is not None else "--check"
            raise UsageError(f"{flag} is for MindSpore's checkpoints; this one is of {checkpoint.producer}")
        return checkpoint
    if options.check:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, _check(checkpoint)))
    style = find_style(checkpoint.tensors)
    if style is None or keeps_names(checkpoint, options):
        return checkpoint
    path, run = _find_run(checkpoint, place(options.yaml) if options.yaml is not None else None)
    flags = _layouts(options) if options.to != "mindformers" else {}
    words, notes = _settled(style, checkpoint.tensors, run, flags)
    buffers = [n for n in checkpoint.tensors if style.is_ignored(n)]
    if path is not None:
        notes.insert(0, Note("info", f"the run's YAML is {path}"))
    return replace(
        checkpoint,
        relation=without(checkpoint.relation, buffers, "buffers the model makes itself"),
        table=style.table(words),
        arguments=run,
        notes=(*checkpoint.notes, *notes),
    )


def _check(checkpoint: Checkpoint) -> Note:
    """Compare every file of weights with the CRC-32 it holds."""
    paths = sorted({e.path for s in checkpoint.stored.values() for e in s.extents})
    held = sum(mindspore.check_crc(path) for path in paths)
    if held == len(paths):
        return Note("info", f"the CRC-32 of all {held} files is right")
    return Note(
        "warning", f"--check: {len(paths) - held} of {len(paths)} files hold no CRC-32, {held} are right"
    )


def _find_run(checkpoint: Checkpoint, given: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the run's YAML that was given or is beside the checkpoint, and its ``model_config``."""
    if given is not None:
        if not given.is_file():
            raise UsageError("no such file", where=given, hint="check --yaml")
        run = read_run(given)
        if run is None:
            raise FormatError("the YAML has no model.model_config", where=given, hint="check --yaml")
        return given, run
    for folder in beside_of(checkpoint):
        if not folder.is_dir():
            continue
        found = [(p, r) for p in _yamls(folder) if (r := _tried(p)) is not None]
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} YAML files of runs are beside the checkpoint",
                where=folder,
                hint="give --yaml, one of " + some([p.name for p, _ in found], 8),
            )
        if found:
            return found[0]
    return None, {}


def _yamls(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _YAML and p.is_file())


def _tried(path: Path) -> dict[str, Any] | None:
    try:
        return read_run(path)
    except FormatError:
        return None


def _layouts(options: ConvertOptions) -> dict[str, bool]:
    flags: dict[str, bool] = {}
    if options.qkv_layout is not None:
        flags["qkv_contiguous"] = options.qkv_layout == "contiguous"
    if options.mlp_layout is not None:
        flags["mlp_contiguous"] = options.mlp_layout == "contiguous"
    return flags


def _from_run(run: Mapping[str, Any], word: str) -> bool | None:
    """Return what a run says of a word (mindformers 1.9, ``transformer_config.py``; ``glm2_config.py``)."""
    if word == "mlp_contiguous":
        value = run.get("use_interleaved_weight_layout_mlp")
        return not value if isinstance(value, bool) else None
    if word == "gmm":
        experts = run.get("moe_config")
        value = experts.get("use_gmm") if isinstance(experts, Mapping) else None
    else:
        key = {"qkv_contiguous": "use_contiguous_weight_layout_attention", "rearranged": "use_rearrange_rope"}
        value = run.get(key[word])
    return value if isinstance(value, bool) else None


# What a word is about, what it means that it does not hold and that it does, and which flag says so.
_SAID = {
    "qkv_contiguous": (
        "query, key and value lie",
        "in turns, by query group",
        "one after the other",
        "--qkv-layout",
    ),
    "mlp_contiguous": (
        "gate and up projection lie",
        "in turns, row by row",
        "one after the other",
        "--mlp-layout",
    ),
    "rearranged": ("rows of query and key are", "as published", "rearranged (use_rearrange_rope)", "--yaml"),
    "gmm": ("the experts' weights are", "[out, in]", "[in, out] (use_gmm)", "--yaml"),
}


def _settled(
    style: Style, tensors: Mapping[str, Spec], run: Mapping[str, Any], flags: Mapping[str, bool]
) -> tuple[frozenset[str], list[Note]]:
    """Return the words that hold for a checkpoint, and a note for each that was guessed."""
    words = set(told(style, tensors))
    notes = []
    for word, likely in unsaid(style, tensors, words).items():
        stated = flags[word] if word in flags else _from_run(run, word)
        if stated is None:
            what, no, yes, flag = _SAID[word]
            text = f"{what} {yes if likely else no}: names and shapes do not tell ({flag} does)"
            notes.append(Note("guess", text))
        words |= {word} if (likely if stated is None else stated) else set()
    return frozenset(words), notes


# What is written


@dataclass(frozen=True, slots=True)
class _Chosen:
    """How a target names and packs: the style's words, and of a checkpoint that is its model the rest."""

    style: Style
    words: frozenset[str]
    like: Mapping[str, Spec]
    container: Container
    notes: tuple[Note, ...]
    assets: tuple[AssetFile, ...] = ()


def lay_out(
    options: ConvertOptions,
    slots: Mapping[str, Spec],
    tied: bool,
    config: Mapping[str, Any],
    family: Family,
    source: Checkpoint,
) -> tuple[Target, Checkpoint | None]:
    """Lay slots out as a checkpoint of MindFormers; return also the checkpoint that was the model for it.

    Args:
        options: The layout asked for.
        slots: Shape and dtype of what there is; no head where it is tied.
        tied: Whether head and embedding are one.
        config: The content of config.json.
        family: Its family.
        source: Where they are from.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    dims = family.dims(config)
    chosen = _like(options) if options.like is not None else _chosen(options, slots, family)
    held = dict(slots)
    table = chosen.style.table(chosen.words)
    if chosen.like:
        found, unknown = table.named(chosen.like)
        unknown = [n for n in unknown if not chosen.style.is_ignored(n)]
        if unknown:
            raise PlanError(f"--like: unknown: {some(unknown)}", where=options.like)
        needed = {s for f in found for s in f.slots}
        if tied and "head" in needed:
            held["head"] = slots["embed"]
        specs = {f.name: chosen.like[f.name] for f in found}
        whole = table.relation(specs, found, dims, "the model")
        relation = pad_vocabulary(whole.invert())
    else:
        if tied and chosen.style is LEGACY:  # its converters write the head of a tied model too
            held["head"] = slots["embed"]
        relation = from_slots(held, table, dims, who=f"MindFormers ({chosen.style.name})")
    relation = as_stored(retyped(relation, held), chosen.like, options.dtype)
    made, files, notes = _files(relation.right, chosen.container, options.strategy)
    stored = {n: Stored(dtype_named(s.dtype), s.shape, ()) for n, s in made.right.items()}
    target = Target(relation.compose(made), lambda tensors: files, chosen.assets, (*chosen.notes, *notes))
    return target, replace(source, stored=stored)


def _like(options: ConvertOptions) -> _Chosen:
    path = place(options.like or "")
    model = open_checkpoint(path, ReadOptions())
    style = find_style(model.tensors) if model.producer == "mindspore" else None
    if style is None:
        raise UsageError(
            "--like: no checkpoint of MindFormers", where=path, hint="name a .ckpt or its folder"
        )
    given = _dialect(options.dialect) if options.dialect is not None else style
    if given is not style or options.qkv_concat or options.experts or options.mla:
        raise UsageError(
            "--like takes names and packing from a checkpoint; leave the flags that say them out"
        )
    yaml, run = _find_run(model, None)
    flags = _layouts(options)
    words, notes = _settled(style, model.tensors, run, flags)
    container: Container = "safetensors" if "safetensors" in model.format else "ckpt"
    lost = [n for n in model.tensors if style.is_ignored(n)]
    if lost:
        notes.append(Note("info", f"--like: buffers are not written: {some(lost)}"))
    assets: tuple[AssetFile, ...] = ()
    if yaml is not None:
        if any(_from_run(run, word) not in (None, value) for word, value in flags.items()):
            notes.append(Note("info", f"--like: {yaml.name} says another layout, so it is not written"))
        else:  # what it alone says, such as use_rearrange_rope, has to be known of what is written too
            assets = (AssetFile(yaml.name, str(yaml), yaml.read_bytes()),)
    return _Chosen(style, words, model.tensors, _container(options) or container, tuple(notes), assets)


def _chosen(options: ConvertOptions, slots: Mapping[str, Spec], family: Family) -> _Chosen:
    """Choose the form MindFormers' own converter writes, where the flags do not say another."""
    style = _dialect(options.dialect) if options.dialect is not None else style_for(family.name)
    latent = any(".mla." in s for s in slots)
    routed = any(s.endswith(".moe.router_bias") or ".moe.shared." in s for s in slots)
    flags = {"qkv_contiguous": False, "mlp_contiguous": style is CORE and latent, **_layouts(options)}
    words = {word for word, on in flags.items() if on}
    if latent:
        words |= {"mla"} | ({"q_lora"} if any(".mla.q_a" in s for s in slots) else set())
    if options.mla == "split":
        if style is not CORE or not latent:
            raise UsageError("--mla split is for latent attention under core names")
        words.add("mla_split")
    if options.qkv_concat:
        words |= {"qkv_concat", "mlp_concat"}
    if style is LEGACY:
        words |= {"routed"} if routed else set()
        words |= {"gmm"} if options.experts == "grouped" else set()
        if family.name == "internlm2":
            words |= {"qkv_concat", "wqkv"}
    if style is CORE:
        words |= {"sequential"} if options.experts == "sequential" else set()
        words |= {"wide"} if latent else set()
    if style is GLM and _layouts(options):
        raise UsageError("--qkv-layout and --mlp-layout: GLM's tensors are contiguous; leave them out")
    return _Chosen(style, frozenset(words), {}, _container(options) or "ckpt", ())


def _dialect(name: str) -> Style:
    found = next((s for s in STYLES if name in (s.name, s.name.removeprefix("mindformers-"))), None)
    if found is None:
        raise UsageError(f"no dialect {name!r}", hint="dialects: " + ", ".join(s.name for s in STYLES))
    return found


def _container(options: ConvertOptions) -> Container | None:
    if options.format == "bin":
        raise UsageError("MindFormers has no bin files", hint="give --format ckpt or safetensors")
    return options.format


def plan_merge(checkpoint: Checkpoint, options: ConvertOptions) -> Plan:
    """Plan a checkpoint with the names and packing it has: ranks merged, or cut as a strategy says.

    Raises:
        UsageError: if a flag asks for another packing.
        PlanError: if the strategy does not fit.
    """
    if _layouts(options):
        raise UsageError(
            "the source's own packing is kept, so --qkv-layout and --mlp-layout say nothing",
            hint="leave them out, or give --like or --dialect to pack anew",
        )
    states = [re.escape(n) for n in checkpoint.tensors if beside_weights(n) is not None]
    family = Family("", (), (), {}, pinned=("|".join(states),) if states else ())
    plain = replace(checkpoint, table=None)
    named: Named = name_tensors(plain, options, Architecture(None, family))
    made, files, notes = _files(named.relation.right, _container(options) or "ckpt", options.strategy)
    relation = named.relation.compose(made)
    relation.check()
    used = {p.left.tensor for p in relation.pairs}
    casts = {p.right.tensor: named.casts[p.left.tensor] for p in made.pairs if p.left.tensor in named.casts}
    return Plan(
        source=str(checkpoint.root),
        producer=checkpoint.producer,
        relation=relation,
        stored={k: s for k, s in checkpoint.stored.items() if k in used},
        casts=casts,
        files=files,
        steps=named.steps,
        inputs=checkpoint.files,
        notes=tuple((n.level, n.text) for n in (*checkpoint.notes, *notes)),
    )


# Files


def _files(
    tensors: Mapping[str, Spec], container: Container, strategy: Path | None
) -> tuple[Relation, tuple[OutFile, ...], list[Note]]:
    """Lay files out: one, or one a rank.

    Returns:
        The tensors (left) to what is placed in the files (right); the files; notes.
    """
    if strategy is None:
        made = [
            _file(f"{_STEM}.{container}", "", {n: (s, Box.whole(n, s.shape)) for n, s in tensors.items()})
        ]
        return _joined(tensors, made), tuple(f for _, _, f in made), []
    found = read_strategies(find_strategies(strategy, strategy))
    made, taken, notes = [], set[str](), []
    missing = [n for n in tensors if not any(n in s for s in found.stages.values())]
    for stage in sorted(found.stages):
        for position in range(found.ranks):
            rank = stage * found.ranks + position
            parts = {
                n: c for n, s in tensors.items() if (c := _cut(found, stage, n, s, n in missing)) is not None
            }
            boxes = {n: slice_box(n, tensors[n].shape, c, position) for n, c in parts.items()}
            held = {
                n: (Spec(_part(tensors[n].shape, c), tensors[n].dtype), boxes[n]) for n, c in parts.items()
            }
            if not held:
                raise PlanError(f"the strategy gives rank {rank} no tensor of the model", where=strategy)
            made.append(_file(f"rank_{rank}/{_STEM}_{rank}.{container}", f"rank_{rank}/", held, taken))
    if missing:
        text = (
            f"{len(missing)} tensors are in no strategy file, written whole on every rank: {some(missing, 2)}"
        )
        notes.append(Note("guess", text))
    lost = {n for names in found.stages.values() for n in names if beside_weights(n) is None} - tensors.keys()
    if lost:
        text = f"{len(lost)} parameters of the strategy are not in the model: {some(sorted(lost), 2)}"
        notes.append(Note("warning", text))
    return _joined(tensors, made), tuple(f for _, _, f in made), notes


def _cut(strategy: Strategy, stage: int, name: str, spec: Spec, everywhere: bool) -> Cut | None:
    layout = strategy.stages[stage].get(name)
    if layout is None:
        return Cut(((),) * len(spec.shape)) if everywhere else None
    made = cut(layout, len(spec.shape), name)
    if any(n % c for n, c in zip(spec.shape, made.counts, strict=True)):
        raise PlanError(
            f"{name} {list(spec.shape)} cannot be cut by {list(made.counts)} as the strategy says",
            hint="check that --strategy is of a run of this model",
        )
    return made


def _part(shape: tuple[int, ...], made: Cut) -> tuple[int, ...]:
    return tuple(n // c for n, c in zip(shape, made.counts, strict=True))


_File = tuple[dict[str, Spec], list[Pair], OutFile]


def _file(
    name: str, prefix: str, held: Mapping[str, tuple[Spec, Box]], taken: set[str] | None = None
) -> _File:
    """Lay one file out; ``taken`` collects the slices that an earlier file provides."""
    listed = [(n, dtype_named(s.dtype), s.shape) for n, (s, _) in held.items()]
    container: Container = "ckpt" if name.endswith(".ckpt") else "safetensors"
    layout, parts = _layout(listed, container)
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    for n, (spec, box) in held.items():
        key = f"{n}@{box.offset}:{box.size}:{box.stride}"
        copy = taken is not None and key in taken
        if taken is not None:
            taken.add(key)
        whole = Pair(box, Box.whole(n, spec.shape), right_copy=copy)
        for part in parts.get(n, (mindspore_out.Part(n, 0, spec.numel),)):
            placed = prefix + part.placed
            right[placed] = Spec(spec.shape if n not in parts else (part.numel,), spec.dtype)
            for piece in restrict(whole, part.start, part.start + part.numel):
                moved = Box(placed, piece.right.offset - part.start, piece.right.size, piece.right.stride)
                pairs.append(replace(piece, right=moved))
    renamed = tuple(replace(t, name=prefix + t.name) for t in layout.tensors)
    return right, pairs, OutFile(name, container, replace(layout, tensors=renamed))


def _layout(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], container: Container
) -> tuple[FileLayout, Mapping[str, tuple[mindspore_out.Part, ...]]]:
    if container == "safetensors":
        return safetensors.layout(tensors, {"format": "ms"}), {}
    made = mindspore_out.layout(tensors)
    return made.file, made.parts


def _joined(tensors: Mapping[str, Spec], files: Iterable[_File]) -> Relation:
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    for specs, more, _ in files:
        right |= specs
        pairs += more
    return Relation(dict(tensors), right, tuple(pairs))
