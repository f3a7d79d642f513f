"""Lay out the files of ranks as Megatron's ``torch`` format has them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.namespaces import EnumValue, namespace, plain
from ckptconv.containers.torch.picklevm import Record
from ckptconv.containers.torch.rankfile import RankFile, read_rank, tensor_key
from ckptconv.containers.torch.torchbin import layout_tree
from ckptconv.containers.torch.torchpickle import TensorRef
from ckptconv.dialects import Dialect
from ckptconv.dialects.assemble import assemble
from ckptconv.dialects.spread import Layout, spread
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.plans.checkpoint import Note
from ckptconv.plans.plan import AssetFile, OutFile
from ckptconv.relations import Box, Pair, Relation, Spec
from ckptconv.slots import Dims
from ckptconv.slots.entry import fill_in, numbers

__all__ = ["Target", "as_laid_out", "like", "pad_vocabulary"]

TRACKER = "latest_checkpointed_iteration.txt"
NAME = "model_optim_rng.pt"


@dataclass(frozen=True, slots=True)
class Target:
    """Hold what is to be written.

    Attributes:
        relation: Slots (left) to the tensors of the files (right).
        files: Makes the files once the dtypes are known: takes the tensors of the right side.
        assets: Small files beside them.
        notes: What a user should know.
    """

    relation: Relation
    files: Callable[[Mapping[str, Spec]], tuple[OutFile, ...]]
    assets: tuple[AssetFile, ...]
    notes: tuple[Note, ...] = ()


def as_laid_out(
    layout: Layout, slots: Mapping[str, Spec], dims: Dims, arguments: Mapping[str, object], iteration: int
) -> Target:
    """Lay a model out over ranks.

    Args:
        layout: Ranks, stages and dialect.
        slots: Shape and dtype of the model's slots.
        dims: Its sizes.
        arguments: What ``args`` is to say.
        iteration: The training step to write.

    Raises:
        PlanError: if the model does not fit the layout.
    """
    made = spread(layout, slots, dims)
    grid = layout.grid

    def key(rank: Any, chunk: int, name: str) -> str:
        return tensor_key(grid.folder(rank), chunk, grid.vpp, name)

    words = layout.dialect.reading(layout.words(slots))
    joined = assemble(grid, made.held, layout.dialect, key, words=words)
    found, unknown = joined.table.named(joined.relation.right)
    if unknown:
        raise AssertionError(f"{layout.dialect.name} writes {unknown[0]}, which it does not read")
    whole = joined.table.relation(joined.relation.right, found, dims, "the model")
    relation = pad_vocabulary(whole.invert()).compose(joined.relation.invert())
    step = f"iter_{iteration:07d}"

    def files(tensors: Mapping[str, Spec]) -> tuple[OutFile, ...]:
        out = []
        for rank, chunks in made.held.items():
            models = {
                "model" if grid.vpp == 1 else f"model{v}": _model(
                    layout.dialect, {name: _ref(key(rank, v, name), tensors) for name in names}
                )
                for v, names in chunks.items()
            }
            root = {
                "args": namespace(arguments),
                "checkpoint_version": 3.0,
                "iteration": iteration,
                **models,
            }
            out.append(OutFile(f"{step}/{grid.folder(rank)}/{NAME}", "bin", layout_tree(root)))
        return tuple(out)

    return Target(relation, files, (_tracker(str(iteration)),))


def like(joined: Relation, inner: Relation, ranks: Mapping[str, Path], data: Path) -> Target:
    """Lay a model out as an existing checkpoint is, with its arguments.

    Args:
        joined: Tensors of that checkpoint's files (left) to whole ones (right).
        inner: Those (left) to slots (right).
        ranks: Its files by the folders of their ranks.
        data: Its iteration's folder.
    """

    def files(tensors: Mapping[str, Spec]) -> tuple[OutFile, ...]:
        return tuple(
            OutFile(
                f"{data.name}/{folder}/{path.name}",
                "bin",
                layout_tree(_root(read_rank(path, exact=True), folder, tensors)),
            )
            for folder, path in ranks.items()
        )

    step = data.name.removeprefix("iter_")
    relation = pad_vocabulary(inner.invert()).compose(joined.invert())
    return Target(relation, files, (_tracker(str(int(step)) if step.isdigit() else step),))


# The state of training, which the weights of another model do not continue.
_LEFT = ("optimizer", "opt_param_scheduler", "rng_state", "rerun_state_machine", "random_rng_state")


def _root(file: RankFile, folder: str, tensors: Mapping[str, Spec]) -> dict[str, Any]:
    """Return a rank's file with its tensors replaced."""

    def replaced(value: Any, chunk: int, prefix: str = "") -> Any:
        made: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        for k, v in value.items():
            name = f"{prefix}{k}"
            if isinstance(v, Mapping):
                made[k] = replaced(v, chunk, f"{name}.")
            elif isinstance(v, FileTensor) and not name.endswith("_extra_state"):
                made[k] = _ref(file.key(folder, chunk, name), tensors)
            elif isinstance(v, FileTensor):
                made[k] = TensorRef(f"{folder}:{chunk}:{name}", v.dtype, (0,))
            else:
                made[k] = v
        return made

    chunks = {"model": 0} if "model" in file.root else {f"model{v}": v for v in file.chunks}
    return {
        k: replaced(v, chunks[k]) if k in chunks else _harmless(v)
        for k, v in file.root.items()
        if k not in _LEFT
    }


def _harmless(value: Any) -> Any:
    """Keep simple values, element types and enums; others would be called on loading."""
    if isinstance(value, Record) and value.cls == "argparse.Namespace" and isinstance(value.state, dict):
        return namespace({k: _harmless(v) for k, v in value.state.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(_harmless(v) for v in value)
    if isinstance(value, dict):
        return {k: _harmless(v) for k, v in value.items()}
    if isinstance(value, (bool, int, float, str, type(None))) or isinstance(plain(value), (str, EnumValue)):
        return value
    return None


def _ref(key: str, tensors: Mapping[str, Spec]) -> TensorRef:
    spec = tensors[key]
    return TensorRef(key, dtype_named(spec.dtype), spec.shape)


def _tracker(text: str) -> AssetFile:
    return AssetFile(TRACKER, "the iteration written", text.encode())


def _model(dialect: Dialect, tensors: Mapping[str, TensorRef]) -> OrderedDict[str, Any]:
    """Return the ``model`` of a file, with the extra states its modules look for."""
    flat: OrderedDict[str, Any] = OrderedDict()
    for name, ref in tensors.items():
        flat[name] = ref
        module = name.rpartition(".")[0]
        if name.endswith("weight") and _has_extra_state(dialect, module):
            flat[f"{module}._extra_state"] = None
    if not dialect.nested:
        return flat
    root: OrderedDict[str, Any] = OrderedDict()
    for name, value in flat.items():
        *path, leaf = _nested(name)
        at = root
        for part in path:
            at = at.setdefault(part, OrderedDict())
        at[leaf] = value
    return root


def _nested(name: str) -> list[str]:
    """Split a legacy name into its dictionaries and the key in the last one.

    Layers are flat inside ``encoder`` (Megatron-LM core_v0.16.1,
    ``megatron/legacy/model/language_model.py``).
    """
    parts = name.split(".")
    if parts[:2] == ["language_model", "encoder"]:
        return [*parts[:2], ".".join(parts[2:])]
    return parts


def _has_extra_state(dialect: Dialect, module: str) -> bool:
    shape, _ = numbers(module)
    return any(shape == _form(m) or shape.endswith("." + _form(m)) for m in dialect.extra_states)


def _form(module: str) -> str:
    return numbers(fill_in(module, (0, 0)))[0]


def pad_vocabulary(relation: Relation) -> Relation:
    """Fill the padding of a vocabulary (rows of the right side no slot holds) with its last true row.

    So do Megatron's and ModelLink's own converters (Megatron-LM core_v0.16.1,
    ``tools/checkpoint/saver_base.py``; ModelLink d4feda79, ``modellink/tasks/checkpoint/saver.py``).
    """
    pairs = list(relation.pairs)
    kept = []
    for drop in relation.right_only:
        name = drop.box.tensor
        source = next((p.left.tensor for p in relation.pairs if p.right.tensor == name), None)
        if source is None or drop.reason != "vocabulary padding":
            kept.append(drop)
            continue
        shape = relation.right[name].shape
        rows, width = relation.left[source].shape[0], max(1, relation.right[name].numel // shape[0])
        last = Box.interval(source, (rows - 1) * width, rows * width)
        pairs += [
            Pair(last, Box.interval(name, r * width, (r + 1) * width), right_copy=True)
            for r in range(rows, shape[0])
        ]
    return Relation(relation.left, relation.right, tuple(pairs), relation.left_only, tuple(kept))
