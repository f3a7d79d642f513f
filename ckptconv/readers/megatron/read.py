"""Open a checkpoint of ranks as whole tensors under Megatron's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Extent, Stored, dense_axes, from_file_tensor
from ckptconv.containers.torch.rankfile import RankFile, RankReader, tensor_key
from ckptconv.dialects import find_dialect
from ckptconv.dialects.assemble import Assembled, assemble
from ckptconv.dialects.factors import own_name, with_implied, without_weights
from ckptconv.dialects.saved import beneath
from ckptconv.errors import FormatError, PlanError
from ckptconv.parallel import Grid, Rank
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.megatron.find import Run, find_run
from ckptconv.readers.megatron.layout import grid_of
from ckptconv.readers.megatron.options import MegatronOptions
from ckptconv.relations import Box, Pair, Relation, Spec

__all__ = ["joined", "open_checkpoint"]

_ALONE = "save the adapter together with the frozen weights: its layers cannot be numbered alone"
_COPY = "copy the whole iteration again, from one save"


def open_checkpoint(path: Path, options: MegatronOptions) -> Checkpoint:
    """Open a save of ranks; see `ckptconv.readers.reader.Reader`."""
    if options.weights == "master":
        raise PlanError(
            "the fp32 masters of this format have no names, so they cannot be converted",
            where=path,
            hint="leave --weights out; Megatron's torch_dist format stores named masters",
        )
    run = find_run(path)
    reader = RankReader()
    return joined(run, {name: reader.read(file) for name, file in run.files.items()}, options)


def joined(run: Run, files: Mapping[str, RankFile], options: MegatronOptions) -> Checkpoint:
    """Join the ranks of one save.

    Args:
        run: Where they are from.
        files: What the file of each says, by the name of its folder.
        options: What the user says.

    Raises:
        PlanError: if a rank is missing, of another save, or does not fit the others.
        FormatError: if there is no model in them.
    """
    first = next(iter(files.values()))
    notes: list[Note] = []
    grid = grid_of(run, files, options, notes)
    ranks = _ranks(run, grid, files)
    _agree(files)
    prefix = beneath(n for f in ranks.values() if f.like is None for t in f.chunks.values() for n in t)
    held = _held(ranks, prefix)
    kinds = {id(tensors): tensors for chunks in held.values() for tensors in chunks.values()}
    every = {n: s for tensors in kinds.values() for n, s in tensors.items()}
    if not every:
        raise FormatError(
            f"there is no model in it: the ranks hold {', '.join(map(str, first.root))[:200]}",
            where=run.data,
            hint="checkpoints without weights cannot be converted",
        )
    whose = "mindspeed" if "hf_path" in first.arguments else "megatron"
    dialect = find_dialect(with_implied(every), whose, options.words)
    graph = GraphBuilder()
    turned = _store(graph, grid, ranks)
    every_name = (n for f in ranks.values() if f.like is None for t in f.chunks.values() for n in t)
    names = {own_name(n).removeprefix(prefix): n for n in every_name}
    before = {
        (rank, v): tensor_key(grid.folder(rank), v, len(f.chunks), "")
        for rank, f in ranks.items()
        for v in f.chunks
    }
    made = assemble(
        grid,
        held,
        dialect,
        lambda rank, v, name: before[rank, v] + names[name],
        version=first.version,
        words=options.words,
    )
    relation = _unturned(made.relation, turned)
    relation.check()
    _layers(first.arguments, made, run, without_weights(every))
    return Checkpoint(
        root=run.root,
        data=run.data,
        producer=_producer(first.arguments, dialect.name),
        format=f"torch format, {len(files)} ranks, {dialect.name} names",
        weights="model",
        stored=graph.stored,
        relation=relation,
        files=graph.files,
        layout=grid.describe(),
        iteration=first.iteration,
        left_out=_left_out(run, files),
        notes=tuple(notes),
        arguments=first.arguments,
        table=made.table,
        words=made.words,
        strange=made.unknown,
        ranks=run.files,
        stages=_stages(made),
    )


def _held(ranks: Mapping[Rank, RankFile], prefix: str) -> dict[Rank, dict[int, dict[str, Spec]]]:
    """Return what each rank holds; the tensors of files that are alike are one mapping."""

    def plain(name: str) -> str:
        return own_name(name).removeprefix(prefix)

    held: dict[Rank, dict[int, dict[str, Spec]]] = {}
    known: dict[Path, dict[int, dict[str, Spec]]] = {}
    for rank, file in ranks.items():
        of = file.like or file.path
        if of not in known:
            known[of] = {v: {plain(n): _spec(t) for n, t in ts.items()} for v, ts in file.chunks.items()}
            for v, tensors in file.chunks.items():
                if len(tensors) != len(known[of][v]):
                    double = [n for n, c in Counter(map(plain, tensors)).items() if c > 1]
                    raise FormatError(f"two tensors are named {double[0]}", where=file.path)
        held[rank] = known[of]
    return held


def _store(graph: GraphBuilder, grid: Grid, ranks: Mapping[Rank, RankFile]) -> dict[str, FileTensor]:
    """Add the ranks' tensors to the graph; return those whose axes are stored in another order."""
    turned: dict[str, FileTensor] = {}
    plain: dict[tuple[Path, int], frozenset[str]] = {}
    for rank, file in ranks.items():
        graph.touch(file.within or file.path)
        folder, of = grid.folder(rank), file.like or file.path
        for v, tensors in file.chunks.items():
            if (of, v) not in plain:
                plain[of, v] = frozenset(n for n, t in tensors.items() if t.is_contiguous)
            straight, before = plain[of, v], tensor_key(folder, v, len(file.chunks), "")
            for name, tensor in tensors.items():
                key = before + name
                if name in straight:
                    extent = Extent(0, tensor.path, tensor.offset)
                    graph.store(key, Stored(tensor.dtype, tensor.shape, (extent,)))
                    continue
                graph.store(key, from_file_tensor(tensor))
                if dense_axes(tensor):
                    turned[key] = tensor
    return turned


def _stages(made: Assembled) -> dict[str, tuple[int, ...]]:
    chunked = any(c.vpp for c in made.stages)
    return {
        f"{c.pp}.{c.vpp}" if chunked else str(c.pp): tuple(layers.values())
        for c, layers in made.stages.items()
    }


def _spec(tensor: FileTensor) -> Spec:
    return Spec(tensor.shape, tensor.dtype.name)


def _unturned(relation: Relation, turned: Mapping[str, FileTensor]) -> Relation:
    """Put a view whose axes are stored in another order in front of the relation."""
    if not turned:
        return relation
    pairs = [
        Pair(Box.strided(n, 0, zip(turned[n].shape, turned[n].stride, strict=True)), Box.whole(n, s.shape))
        if n in turned
        else Pair(Box.whole(n, s.shape), Box.whole(n, s.shape))
        for n, s in relation.left.items()
    ]
    return Relation(relation.left, relation.left, tuple(pairs)).compose(relation)


def _ranks(run: Run, grid: Grid, files: Mapping[str, RankFile]) -> dict[Rank, RankFile]:
    """Match the ranks that should exist with the folders that do."""
    expected = {grid.folder(rank): rank for rank in grid.ranks()}
    sizes = ", ".join(f"{k} {v}" for k, v in grid.describe().items())
    if missing := sorted(expected.keys() - files.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PlanError(
            f"the folder {missing[0]}{more} is missing ({sizes})",
            where=run.data,
            hint="copy every rank's folder",
        )
    if odd := sorted(files.keys() - expected.keys()):
        raise PlanError(
            f"{odd[0]} is no rank of {sizes}",
            where=run.data,
            hint="two saves of different layouts may lie in one folder; move the other away",
        )
    return {rank: files[name] for name, rank in expected.items()}


def _agree(files: Mapping[str, RankFile]) -> None:
    """Refuse ranks of several saves."""
    first_name, first = next(iter(files.items()))
    for name, file in files.items():
        for what, ours, theirs in (
            ("iteration", first.iteration, file.iteration),
            ("checkpoint_version", first.version, file.version),
            ("number of virtual chunks", len(first.chunks), len(file.chunks)),
            *(
                (f"args.{key}", first.arguments.get(key), file.arguments.get(key))
                for key in (
                    "tensor_model_parallel_size",
                    "pipeline_model_parallel_size",
                    "num_layers",
                    "hidden_size",
                )
            ),
        ):
            if ours != theirs:
                raise PlanError(
                    f"{name} is of another save: its {what} is {theirs}, that of {first_name} is {ours}",
                    where=file.path,
                    hint=_COPY,
                )


def _layers(args: Mapping[str, Any], made: Assembled, run: Run, factors: bool) -> None:
    """Refuse a number of layers that is not the one of the arguments (no-op layers aside).

    Of an adapter saved alone only they tell whether every layer has one, so that layers are numbered right.
    """
    found = sum(len(layers) for layers in made.stages.values())
    said = args.get("num_layers")
    if not isinstance(said, int):
        if factors:
            raise PlanError(
                "the adapter's checkpoint does not say how many layers the model has",
                where=run.data,
                hint=_ALONE,
            )
        return
    noop = args.get("noop_layers")
    skipped = (
        len(noop.split(","))
        if isinstance(noop, str) and noop
        else len(noop)
        if isinstance(noop, (list, set))
        else 0
    )
    if found not in (said, said - skipped):
        stages = ", ".join(
            f"stage {c.pp}" + (f".{c.vpp}" if c.vpp else "") + f": {len(n)}" for c, n in made.stages.items()
        )
        raise PlanError(
            f"the ranks hold {found} layers, args.num_layers says {said} ({stages})",
            where=run.data,
            hint=_ALONE if factors else "a pipeline stage is missing or of another model",
        )


def _producer(args: Mapping[str, Any], dialect: str) -> str:
    if "hf_path" in args or "model_type_hf" in args or dialect.startswith("mindspeed"):
        return "mindspeed-llm"
    return "modellink" if dialect == "modellink" or "noop_layers" in args else "megatron"


def _left_out(run: Run, files: Mapping[str, RankFile]) -> dict[str, int]:
    """Count the bytes that are no weights: optimizer states, random states."""
    count = sum(f.beside for f in files.values())
    beside = sum(
        p.stat().st_size for f in files.values() for p in f.path.parent.glob("*.pt") if p.name != f.path.name
    )
    return {k: v for k, v in {"optimizer states": count, "optimizer files": beside}.items() if v}
