"""Write Megatron's ``torch_dist`` format: two files of every rank that saves, and one ``.metadata``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileLayout
from ckptconv.containers.dcp.dcp_out import OutChunk, Place, describe
from ckptconv.containers.torch.namespaces import namespace
from ckptconv.containers.torch.picklevm import Record
from ckptconv.containers.torch.torchbin import TensorRef, complete, layout_tree
from ckptconv.containers.torch.torchpickle import Alike, dump
from ckptconv.dialects.spread import Layout, spread
from ckptconv.dtypes import dtype
from ckptconv.families import find_family
from ckptconv.parallel import Grid, Rank, stage_layers
from ckptconv.relations import Spec
from sparse.megatron import ITERATION, arguments, model_layout
from sparse.models import Parallel, slots_of

__all__ = ["write_torch_dist"]

_MARKER = {
    "sharded_backend": "torch_dist", "sharded_backend_version": 1,
    "common_backend": "torch", "common_backend_version": 1,
}  # fmt: skip
Shape = tuple[int, ...]


def write_torch_dist(run: Path, config: Mapping[str, Any], parallel: Parallel) -> None:
    """Write the run's folder with its tracker and config.json."""
    layout = model_layout(config, parallel)
    step = run / f"iter_{ITERATION:07d}"
    step.mkdir(parents=True)
    number = {rank: i for i, rank in enumerate(layout.grid.ranks())}
    ends: dict[str, int] = defaultdict(int)
    written: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    cuts: dict[str, list[OutChunk]] = defaultdict(list)
    places: dict[tuple[str, Shape | None], Place] = {}
    for rank, chunk in _chunks(layout, config):
        file = f"__{number[rank]}_{len(cuts[chunk.tensor]) % 2}.distcp"
        record = _record(chunk.dtype.name, chunk.sizes)
        at = ends[file]
        places[chunk.tensor, chunk.offsets] = Place(file, at, record.size)
        cuts[chunk.tensor].append(chunk)
        written[file] += [(at + begin, content) for begin, content in record.fixed]
        ends[file] = at + record.size
    objects: dict[str, object] = {}
    content = complete(None)
    held: dict[int, list[str]] = defaultdict(list)
    for rank, name in _objects(layout, config):
        file = f"__{number[rank]}_0.distcp"
        places[name, None] = Place(file, ends[file], len(content))
        objects[name] = _new("metadata.BytesStorageMetadata", {})
        held[number[rank]].append(name)
        written[file].append((ends[file], content))
        ends[file] += len(content)
    for file, pieces in written.items():
        with open(step / file, "wb", buffering=0) as out:
            out.truncate(ends[file])
            for at, content in pieces:
                out.seek(at)
                out.write(content)
    written.clear()
    (step / ".metadata").write_bytes(dump(_metadata(objects, places, cuts, held))[0])
    args = namespace(arguments(config, parallel, layout.vocab or 0))
    common = {"args": args, "checkpoint_version": 3.0, "iteration": ITERATION}
    (step / "common.pt").write_bytes(complete(common))
    (step / "metadata.json").write_text(json.dumps(_MARKER))
    (run / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    (run / "config.json").write_text(json.dumps(config, indent=2))


def _new(name: str, state: object) -> Record:
    module = f"torch.distributed.checkpoint.{name.rpartition('.')[0]}"
    return Record(f"torch.distributed.checkpoint.{name}", state=state, form="new", module=module)


def _metadata(
    objects: Mapping[str, object],
    places: Mapping[tuple[str, Shape | None], Place],
    cuts: Mapping[str, list[OutChunk]],
    held: Mapping[int, list[str]],
) -> Record:
    """Return what torch's ``Metadata`` says, and the plan of each rank, which Megatron-core keeps with it.

    The plans (core 0.16.1, ``dist_checkpointing/strategies/state_dict_saver.py``) tell of every record once
    more, and so are half of the file.
    """
    root = describe(objects, places, cuts, flat=False)
    assert isinstance(root.state, dict)
    tensors = root.state["state_dict_metadata"]
    items: dict[int, list[Record]] = defaultdict(list)
    for name, chunks in cuts.items():
        tensors[name] = _made(tensors[name])  # what the plans repeat is one object in both
        about = tensors[name].state
        about["chunks"] = [_made(chunk) for chunk in about["chunks"]]
        for chunk, stored in zip(chunks, about["chunks"], strict=True):
            index = {"fqn": name, "index": None, "offset": stored.state["offsets"]}
            chunk_state = {"offsets": stored.state["offsets"], "sizes": stored.state["sizes"]}
            data = {
                "chunk": _new("metadata.ChunkStorageMetadata", chunk_state),
                "properties": _new("metadata.TensorProperties", about["properties"].state),
                "size": about["size"],
            }
            rank = int(places[name, chunk.offsets].file.split("_")[2])
            items[rank].append(_item(index, 2, _new("planner.TensorWriteData", data)))
    for rank, names in held.items():
        items[rank] += [_item({"fqn": name, "index": None}, 3, None) for name in names]
    rest = {"storage_data": None, "planner_data": {}, "usable": True}
    plans = [_new("planner.SavePlan", {"items": items[rank], **rest}) for rank in sorted(items)]
    root.state["all_local_plans"] = plans
    return root


def _made(value: Any) -> Any:
    """Return the value that `Alike` stands for; others as they are."""
    return value.make(*value.same, *value.varying) if isinstance(value, Alike) else value


def _item(index: Mapping[str, object], kind: int, data: Record | None) -> Record:
    planner = "torch.distributed.checkpoint.planner"
    state = {
        "index": _new("metadata.MetadataIndex", index),
        "type": Record(f"{planner}.WriteItemType", (kind,), module=planner),
        "bytes_io_data": None,
        "tensor_data": data,
    }
    return _new("planner.WriteItem", state)


def _objects(layout: Layout, config: Mapping[str, Any]) -> Iterator[tuple[Rank, str]]:
    """Yield who saves which object: the extra states of TransformerEngine's modules, random states."""
    grid = layout.grid
    experts = config.get("n_routed_experts") or 0
    dense = config.get("first_k_dense_replace", config["num_hidden_layers"])
    first = {rank.pp: rank for rank in reversed(grid.ranks())}
    of_block = {(rank.pp, grid.experts(rank)[0]): rank for rank in reversed(grid.ranks())}
    for place, layers in layout.stages.items():
        for layer in layers.values():
            at = f"decoder.layers.{layer}"
            for module in (
                "self_attention.linear_proj",
                "self_attention.linear_q_up_proj",
                "input_layernorm",
            ):
                yield first[place.pp], f"{at}.{module}._extra_state/shard_0_1"
            for expert in range(experts if layer >= dense else 0):
                rank = of_block[place.pp, expert // (experts // grid.blocks)]
                for module in ("linear_fc1", "linear_fc2"):
                    name = f"{at}.mlp.experts.experts.{module}._extra_state/shard_{expert}_{experts}"
                    yield rank, name
    shape = (grid.pp, grid.tp, len(grid.ranks()) // (grid.pp * grid.tp))
    of_replica: dict[tuple[int, int], int] = defaultdict(int)
    for rank in grid.ranks():
        dp = of_replica[rank.pp, rank.tp]
        of_replica[rank.pp, rank.tp] += 1
        yield rank, f"rng_state/shard_{rank.pp}.{rank.tp}.{dp}_{'.'.join(map(str, shape))}"


@lru_cache(maxsize=256)
def _record(kind: str, sizes: Shape) -> FileLayout:
    return layout_tree(TensorRef("tensor", dtype(kind), sizes))


def _chunks(layout: Layout, config: Mapping[str, Any]) -> Iterator[tuple[Rank, OutChunk]]:
    """Yield who saves what: of equal copies, the first rank's."""
    family = find_family(config["model_type"])
    assert family is not None
    grid = layout.grid
    alone = Layout(
        Grid(), stage_layers(Grid(), config["num_hidden_layers"]), layout.dialect, "grouped",
        vocab=layout.vocab,
    )  # fmt: skip
    whole = spread(alone, slots_of(config), family.dims(config)).held[Rank(0, 0, 0)][0]
    stage_of = {layer: c.pp for c, layers in layout.stages.items() for layer in layers.values()}
    experts = config.get("n_routed_experts") or 0
    of_expert = {grid.experts(r): r for r in grid.ranks() if r.pp == 0}
    first = {r.tp: r for r in reversed(grid.ranks()) if r.pp == 0}
    for name, spec in whole.items():
        parts = name.split(".")
        pp = stage_of[int(parts[2])] if parts[1] == "layers" else 0
        pp = grid.pp - 1 if name.startswith(("output_layer", "decoder.final")) else pp
        gated = 2 if ".linear_fc1.weight" in name else 1
        if ".mlp.experts." in name:
            e = int(parts[-1].removeprefix("weight"))
            key = ".".join([*parts[:5], "experts", parts[5], "weight"])
            block = e // (experts // grid.blocks)
            for t in range(grid.etp):
                rank = of_expert[block, t]._replace(pp=pp)
                for offset, sizes in _slices(spec, gated, grid.etp, t, 1 if "fc2" in name else 0):
                    yield (
                        rank,
                        _chunk(key, Spec((experts, *spec.shape), spec.dtype), (e, *offset), (1, *sizes)),
                    )
            continue
        axis = _cut_axis(name)
        for t in range(grid.tp if axis is not None else 1):
            for offset, sizes in _slices(spec, gated, grid.tp, t, axis):
                yield first[t]._replace(pp=pp), _chunk(name, spec, offset, sizes)


def _cut_axis(name: str) -> int | None:
    if "norm" in name or "down_proj" in name or "router" in name:
        return None
    return 1 if "linear_proj" in name or "linear_fc2" in name else 0


def _slices(spec: Spec, gated: int, ranks: int, rank: int, axis: int | None) -> Iterator[tuple[Shape, Shape]]:
    """Yield the slices one rank holds: gate and up of a gated projection are apart."""
    if axis is None:
        yield (0,) * len(spec.shape), spec.shape
        return
    size = spec.shape[axis] // (gated * ranks)
    for part in range(gated):
        start = [0] * len(spec.shape)
        start[axis] = (part * ranks + rank) * size
        yield tuple(start), (*spec.shape[:axis], size, *spec.shape[axis + 1 :])


def _chunk(key: str, spec: Spec, offsets: Shape, sizes: Shape) -> OutChunk:
    return OutChunk("", key, dtype(spec.dtype), spec.shape, offsets, sizes)
