"""Read Megatron-core's ``torch_dist`` checkpoints, and the plain DCP ones of Megatron-FSDP.

Layout: megatron-core 0.16.1, ``dist_checkpointing/strategies/torch.py``; the common state as a record:
core 0.19, ``dist_checkpointing/serialization.py``. Tensors are whole: what ranks held are chunks of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.dcp import METADATA
from ckptconv.containers.dcp.dcp import DcpFolder, open_dcp
from ckptconv.containers.torch.namespaces import plain
from ckptconv.dialects.core import CORE_LOCAL, CORE_TE
from ckptconv.dialects.factors import factor_of, with_implied, without_weights
from ckptconv.dialects.hybrid import hybrid_names, without_pattern, wrapped_names
from ckptconv.dialects.saved import COMMON, COMMON_OBJECT, FORMAT, OPTIMIZER, common_state, weights_of
from ckptconv.dialects.stacked import unstacked
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.chunks import place
from ckptconv.readers.megatron.run_config import run_arguments
from ckptconv.readers.torch_dist.find import DAMAGED, MARKER, Located, find
from ckptconv.readers.torch_dist.options import TorchDistOptions
from ckptconv.relations import Spec
from ckptconv.relations.rename import under_names
from ckptconv.slots import Table, Words

__all__ = ["open_checkpoint", "opened"]

_MASTER: Final = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.fp32_param\.(.+)")
_COPY: Final = "copy the whole iteration again, from one save"


def _plain_state(dcp: DcpFolder) -> Mapping[str, Any]:
    """Return what a plain DCP checkpoint of Megatron says beside its tensors."""
    return {k: dcp.read_object(k) for k in ("args", "iteration", "checkpoint_version") if k in dcp.objects}


# Opening


def open_checkpoint(path: Path, options: TorchDistOptions) -> Checkpoint:
    """Open a distributed checkpoint of Megatron; see `ckptconv.readers.reader.Reader`."""
    found = find(path)
    if found is None:
        raise FormatError("no checkpoint of Megatron's torch_dist format found", where=path)
    if found.backend == DAMAGED:
        raise FormatError(f"{MARKER} is not JSON", where=found.data / MARKER, hint=_COPY)
    if found.backend not in ("torch_dist", ""):
        raise FormatError(
            f"saved with the {found.backend} backend, which is not read",
            where=found.data,
            hint="load it with a Megatron release that has this backend; save with --ckpt-format torch_dist",
        )
    dcp = open_dcp(found.data)
    common = common_state(dcp) if found.backend else _plain_state(dcp)
    run = run_arguments(found.data) if "args" not in common else None
    return opened(found, dcp, common, run, options)


def opened(
    found: Located,
    dcp: DcpFolder,
    common: Mapping[str, Any],
    run: tuple[dict[str, Any], tuple[Note, ...]] | None,
    options: TorchDistOptions,
) -> Checkpoint:
    """Return the checkpoint that a distributed save is.

    Args:
        found: Where it lies.
        dcp: What its metadata says.
        common: What all ranks share.
        run: Arguments that lie beside it, and what to say of them, where it holds none itself.
        options: What the user says.

    Raises:
        PlanError: if it holds no weights, or they do not fit what the arguments say.
    """
    nested = not found.backend
    arguments = plain(common["args"]) if "args" in common else {}
    arguments = arguments if isinstance(arguments, dict) else {}
    notes: list[Note] = []
    if not arguments and run is not None:
        arguments, said = run
        notes += said
    near = _model_of(arguments, notes)
    if set(arguments) == {"hf_path"}:
        arguments = {}
    _check_sizes(options.sizes, arguments, found.data)
    weights = weights_of(dcp, nested=nested)
    if not weights:
        raise PlanError("there are no weights in this checkpoint", where=found.data)
    if nested and "args" in common:
        _refuse_ranks(arguments, found.data)
    if options.weights == "master":
        weights = _masters(dcp, weights, notes)
    graph = _graph(dcp, weights, found)
    placed = graph.relation()
    names = unstacked(placed.right)
    names.check()  # has fewer pairs than what both make, which is sound if both are
    relation = placed.compose(names)
    halves = hybrid_names(relation.right)
    if own := halves or wrapped_names(relation.right):
        relation = relation.compose(under_names(relation.right, own))
        relation.check()
    arguments = without_pattern(arguments, halves=bool(halves))
    words = options.words or _words(relation.right, arguments)
    table = Table((*CORE_TE.lines, *CORE_LOCAL.lines), words=words, grid={"tp": 1}, parts=CORE_TE.parts)
    _check_layers(arguments, relation.right, found.data)
    iteration = common.get("iteration")
    files = {c.entry.file for t in dcp.tensors.values() for c in t.chunks if c.entry is not None}
    return Checkpoint(
        root=found.root,
        data=found.data,
        producer="megatron",
        format="Megatron-FSDP, distributed checkpoint" if nested else FORMAT,
        weights=options.weights or "model",
        stored=graph.stored,
        relation=relation,
        files=graph.files,
        versions={} if dcp.version is None else {"dcp": dcp.version},
        layout={"files": len(files), **_layout(arguments)},
        iteration=iteration if isinstance(iteration, int) else None,
        left_out=_left_out(dcp, weights),
        notes=tuple(notes),
        arguments=arguments,
        table=table,
        words=words,
        near=near,
        strange=_strange(table, relation.right),
    )


def _words(tensors: Mapping[str, Spec], arguments: Mapping[str, Any]) -> Words:
    """Return what names and shapes tell of the layers, those of an adapter's factors too.

    Factors of the up projection alone are taken for gated unless the arguments say how wide it is; what is
    written is checked against the model's shapes.
    """
    known = with_implied(tensors)
    inner = arguments.get("ffn_hidden_size")
    if len(known) > len(tensors) and isinstance(inner, int):
        for name, spec in list(known.items()):
            if name.endswith(".mlp.linear_fc1.weight"):
                down = Spec((spec.shape[1], inner), spec.dtype)
                known.setdefault(name.replace("linear_fc1", "linear_fc2"), down)
    return CORE_TE.told(known)


def _strange(table: Table, names: Collection[str]) -> tuple[str, ...]:
    """Return the tensors that are neither of a dialect nor factors of one of its weights."""
    weights = {n: n if (factor := factor_of(n)) is None else factor.weight for n in names}
    unknown = set(table.named(set(weights.values()))[1])
    return tuple(n for n, weight in weights.items() if weight in unknown)


def _model_of(arguments: Mapping[str, Any], notes: list[Note]) -> tuple[Path, ...]:
    """Return the folder of the model that was trained, if it is here.

    ms-swift 4.6 names it in ``model_dir`` of its arguments, Megatron-Bridge 0.6 in ``hf_model_id``.
    """
    named = arguments.get("model_dir" if "model_dir" in arguments else "hf_path")
    if not isinstance(named, str) or not named:
        return ()
    if (Path(named) / "config.json").is_file():
        notes.append(
            Note("info", f"config.json and tokenizer are looked for in {named}, which the run names")
        )
        return (Path(named),)
    if "num_layers" not in arguments:
        notes.append(Note("info", f"the run trained the model {named}, which is not here"))
    return ()


def _graph(dcp: DcpFolder, weights: Mapping[str, str], found: Located) -> GraphBuilder:
    """Relate the records to the tensors as they were saved."""
    double = [n for n, count in Counter(weights.values()).items() if count > 1]
    if double:
        raise PlanError(f"two tensors are {double[0]}", where=found.data, hint=_COPY)
    located = dcp.locate(weights)
    graph = GraphBuilder()
    for name in (METADATA, MARKER, COMMON):
        if (dcp.folder / name).is_file():
            graph.touch(dcp.folder / name)
    if found.data.is_file():  # an archive
        graph.touch(found.data)
    for key, name in weights.items():
        tensor = dcp.tensors[key]
        chunks = [(c.offsets, t) for c, t in zip(tensor.chunks, located[key], strict=True) if t is not None]
        place(graph, name, tensor.shape, tensor.dtype, chunks)
    return graph


def _masters(dcp: DcpFolder, weights: Mapping[str, str], notes: list[Note]) -> dict[str, str]:
    """Put the fp32 masters in the place of the weights.

    Raises:
        PlanError: if they have no names, or there are none.
    """
    named = {m[1]: key for key in dcp.tensors if (m := _MASTER.fullmatch(key)) is not None}
    lower = {key for key in weights if dcp.tensors[key].dtype.name != "float32"}
    if not lower:
        notes.append(Note("info", "the model was trained in fp32: its weights are the masters"))
        return dict(weights)
    if not named.keys() & weights.keys():
        flat = any(".gbuf_idx_" in key for key in dcp.tensors)
        raise PlanError(
            "the fp32 masters lie in flat buffers without the parameters' names"
            if flat
            else "this checkpoint holds no fp32 masters",
            where=dcp.folder,
            hint="leave --weights out; Megatron stores named masters with "
            "--dist-ckpt-optim-fully-reshardable (or without a distributed optimizer)",
        )
    without = sorted(key for key in lower if key not in named)
    if without:
        text = f"{len(without)} tensors have no master ({without[0]}): the weights themselves are taken"
        notes.append(Note("warning", text))
    return {named.get(key, key): name for key, name in weights.items()}


def _refuse_ranks(arguments: Mapping[str, Any], folder: Path) -> None:
    """Refuse a plain DCP save whose tensors are not whole: that of torch's FSDP with model-parallel ranks."""
    sizes = [
        k for k in ("tensor_model_parallel_size", "pipeline_model_parallel_size") if arguments.get(k, 1) != 1
    ]
    if sizes and not arguments.get("use_megatron_fsdp"):
        raise PlanError(
            f"a torch_dcp save with {sizes[0]} {arguments[sizes[0]]}: ranks overwrite each other's tensors",
            where=folder,
            hint="save it with --ckpt-format torch_dist",
        )


_LAYER: Final = re.compile(r"(?:language_model\.)?decoder\.layers\.(\d+)\..+")


def _check_layers(arguments: Mapping[str, Any], names: Collection[str], folder: Path) -> None:
    """Refuse layers that are not those the arguments tell of."""
    found = {int(m[1]) for n in names if (m := _LAYER.fullmatch(n)) is not None}
    said = arguments.get("num_layers")
    count = said if isinstance(said, int) else len(found)
    if without_weights(names) and max(found, default=0) < count:
        return  # an adapter may be of some layers alone
    if len(found) != count or found != set(range(count)):
        raise PlanError(
            f"the checkpoint holds {len(found)} layers (the last is {max(found, default=-1)}), "
            f"args.num_layers says {count}",
            where=folder,
            hint=_COPY,
        )


_SIZES: Final = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}


def _layout(arguments: Mapping[str, Any]) -> dict[str, int]:
    """Return the parallel sizes of the run that saved; they do not matter for reading."""
    shown = ("tp", "pp", "ep")
    return {k: v for k in shown if isinstance(v := arguments.get(_SIZES[k]), int)}


def _check_sizes(stated: Mapping[str, int], arguments: Mapping[str, Any], data: Path) -> None:
    """Refuse sizes that are not those the run had: it is another run than was meant."""
    for name, size in stated.items():
        found = arguments.get(_SIZES[name])
        if isinstance(found, int) and found != size:
            raise UsageError(
                f"--{name} {size} is not what the run had: {_SIZES[name]} is {found}",
                where=data,
                hint="leave it out: torch_dist holds whole tensors, whatever the sizes were",
            )


def _left_out(dcp: DcpFolder, weights: Mapping[str, str]) -> dict[str, int]:
    """Count the bytes that are not the weights that were chosen."""
    count: Counter[str] = Counter()
    for key, tensor in dcp.tensors.items():
        if key not in weights:
            master = _MASTER.fullmatch(key) is not None
            optimizer = OPTIMIZER.fullmatch(key) is not None or key.startswith("optimizer")
            kind = "fp32 masters" if master else "optimizer states" if optimizer else "other tensors"
            count[kind] += tensor.nbytes
    for key, entry in dcp.objects.items():
        name = key.partition("/")[0]
        if name.endswith("_extra_state"):
            count["extra states of modules"] += entry.length
        elif OPTIMIZER.fullmatch(name):
            count["optimizer states"] += entry.length
        elif name.startswith("rng_state"):
            count["random states"] += entry.length
        elif key not in (COMMON_OBJECT, "args", "iteration", "checkpoint_version"):
            count["other objects"] += entry.length
    return dict(count)
