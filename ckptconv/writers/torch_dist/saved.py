"""Lay out a model as megatron-core's ``torch_dist`` checkpoints hold it.

Tensors are whole, so one checkpoint loads in any parallel layout (megatron-core 0.16.1,
``dist_checkpointing``). The common state is written as ``common.pt``, which every release reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Final

from ckptconv.containers.dcp.dcp_out import OutChunk, OutObject, cut, layout
from ckptconv.containers.torch.torchbin import TensorRef, complete
from ckptconv.dialects.core import CORE_LOCAL, CORE_TE
from ckptconv.dialects.spread import Layout, spread
from ckptconv.dialects.stacked import are_alike, stacked_axes, stacks, unstacked
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.parallel import Rank
from ckptconv.plans.plan import AssetFile, OutFile
from ckptconv.plans.target import Target
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec, renamed
from ckptconv.relations.packing import tiled
from ckptconv.slots import Dims, Sizes
from ckptconv.slots.translate import pad_vocabulary
from ckptconv.writers.dcp.target import as_files
from ckptconv.writers.megatron.files import TRACKER

__all__ = ["CONTENT", "Saved", "as_saved", "as_target"]

_MARKER: Final = json.dumps({
    "sharded_backend": "torch_dist", "sharded_backend_version": 1,
    "common_backend": "torch", "common_backend_version": 1,
})  # fmt: skip
# What Megatron-LM says of the form of a save (core_v0.16.1, megatron/training/checkpointing.py).
CONTENT: Final = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}

# Modules without an extra state: torch's own, and those Megatron leaves out when it saves.
_STATELESS: Final = re.compile(r"embedding\..+|output_layer|.*\.mlp\.router")


@dataclass(frozen=True, slots=True)
class Saved:
    """Hold the tensors to be saved.

    Attributes:
        relation: Slots (left) to tensors by the keys they are saved under (right).
        states: Names of the extra states of their modules, which a model asks for even where they are empty.
        content: What ``content_metadata`` is to say.
    """

    relation: Relation
    states: tuple[str, ...]
    content: Mapping[str, object]


def as_saved(model: Layout, slots: Mapping[str, Spec], dims: Dims, arguments: Mapping[str, object]) -> Saved:
    """Name and stack the tensors of a model as Megatron would.

    Layers are stacked if all are alike, and the arguments do not say which have experts
    (``TransformerBlock.sharded_state_dict``).

    Args:
        model: The dialect (``core-te`` or ``core-local``) and the padded vocabulary; a single rank.
        slots: Shape and dtype of the model's slots.
        dims: Its sizes.
        arguments: What ``args`` is to say.

    Raises:
        PlanError: if the dialect has no place for a slot.
    """
    model_te = replace(model, dialect=CORE_TE, apart=True)
    held = spread(model_te, slots, dims).held[Rank(0, 0, 0)][0]
    table = CORE_TE.table(CORE_TE.reading(model_te.words(slots)), {"tp": 1}).with_own(dims)
    found, unknown = table.named(held)
    if unknown:
        raise AssertionError(f"{CORE_TE.name} writes {unknown[0]}, which it does not read")
    whole = pad_vocabulary(table.relation(held, found, dims, "the model").invert())
    if model.dialect.name == CORE_LOCAL.name:
        names = {name: _as_local(name) for name in held}
        whole = whole.compose(Relation.union(renamed(name, new, held[name]) for name, new in names.items()))
        held = {new: held[name] for name, new in names.items()}
    freq = arguments.get("moe_layer_freq")
    together = are_alike(held) and not isinstance(freq, (list, str)) and freq in (None, 1)
    keys = stacks(held, layers=together)
    content = CONTENT if together else {**CONTENT, "non_homogeneous_layers": True}
    outer = Sizes.of(dims).outer
    saved = whole.compose(unstacked(keys).invert())
    if any(outer(k) != k for k in keys):
        saved = saved.compose(Relation.union(renamed(k, outer(k), spec) for k, spec in keys.items()))
    return Saved(saved, tuple(map(outer, _states(keys))), content)


def _as_local(name: str) -> str:
    """Return the key a model of the local spec saves a tensor under.

    Its map to TransformerEngine's names takes every layer for a dense one (core 0.16.1,
    ``models/gpt/gpt_layer_specs.py``, ``sharded_state_dict_keys_map``).
    """
    return name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")


def _states(keys: Mapping[str, Spec]) -> Iterator[str]:
    """Yield the names of extra states: ``<module>._extra_state/shard_<place>_<of how many>``."""
    for key, spec in keys.items():
        module, _, leaf = key.rpartition(".")
        if leaf != "weight" or _STATELESS.fullmatch(module):
            continue
        axes = spec.shape[: stacked_axes(key)] or (1,)
        for place in product(*map(range, axes)):
            yield f"{module}._extra_state/shard_{_dotted(place)}_{_dotted(axes)}"


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def as_target(
    saved: Saved,
    arguments: object,
    iteration: int | None,
    limit: int,
    dtypes: Mapping[str, str] | None = None,
) -> Target:
    """Lay out the files.

    Args:
        saved: The tensors.
        arguments: The ``argparse.Namespace`` to write, as an inert record.
        iteration: The training step to write; None for ``release``.
        limit: The most bytes of a file.
        dtypes: Element types by key that may be written in place of the slots'.

    Returns:
        The target.
    """
    boxes: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {}
    parts: list[Relation] = []
    wanted: dict[str, Spec] = {}
    for key, spec in saved.relation.right.items():
        dtype = (dtypes or {}).get(key, spec.dtype)
        itemsize = max(dtype_named(dtype).itemsize, dtype_named(spec.dtype).itemsize)
        cuts = list(cut(spec.shape, itemsize, limit, stacked=stacked_axes(key)))
        names = [key] if len(cuts) == 1 else [f"{key}@{','.join(map(str, at))}" for at, _ in cuts]
        boxes |= {name: (key, *box) for name, box in zip(names, cuts, strict=True)}
        wanted |= {name: Spec(sizes, dtype) for name, (_, sizes) in zip(names, cuts, strict=True)}
        parts.append(tiled(dict(zip(names, cuts, strict=True)), key, spec).invert())
    relation = saved.relation.compose(Relation.union(parts))
    step = "release" if iteration is None else f"iter_{iteration:07d}"
    empty = [TensorRef("empty", dtype_named("uint8"), (0,))]

    def files(tensors: Mapping[str, Spec]) -> tuple[OutFile, ...]:
        chunks = [
            OutChunk(name, key, dtype_named(tensors[name].dtype), saved.relation.right[key].shape, at, sizes)
            for name, (key, at, sizes) in boxes.items()
        ]
        objects = [OutObject(saved.states, empty)] if saved.states else []
        return as_files(layout(chunks, objects, limit=limit, flat=False), f"{step}/")

    common: dict[str, Any] = {
        "args": arguments,
        "checkpoint_version": 3.0,
        "iteration": iteration or 0,
        "content_metadata": dict(saved.content),
    }
    assets = (
        AssetFile(f"{step}/common.pt", "the arguments", complete(common)),
        AssetFile(f"{step}/metadata.json", "the format", _MARKER.encode()),
        AssetFile(
            TRACKER, "the iteration written", ("release" if iteration is None else str(iteration)).encode()
        ),
    )
    return Target(files, relation, assets, dtypes={n: s.dtype for n, s in wanted.items()} if dtypes else {})
