"""Lay out the files of ranks as Megatron's ``torch`` format has them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileLayout, FileTensor
from ckptconv.containers.torch.namespaces import harmless, namespace
from ckptconv.containers.torch.rankfile import RankFile, read_rank, tensor_key
from ckptconv.containers.torch.torchbin import layout_tree, renamed
from ckptconv.containers.torch.torchpickle import TensorRef
from ckptconv.dialects import Dialect
from ckptconv.dialects.assemble import assemble
from ckptconv.dialects.spread import Layout, spread
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.parallel import Rank
from ckptconv.plans.plan import AssetFile, OutFile
from ckptconv.plans.target import Target
from ckptconv.relations import Relation, Spec
from ckptconv.slots import Dims, Sizes
from ckptconv.slots.entry import fill_in, numbers
from ckptconv.slots.translate import pad_vocabulary

__all__ = ["TRACKER", "as_laid_out", "like_ranks"]

TRACKER = "latest_checkpointed_iteration.txt"
NAME = "model_optim_rng.pt"


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
    grid, sizes = layout.grid, Sizes.of(dims)
    folders = {rank: grid.folder(rank) for rank in made.held}

    def key(rank: Rank, chunk: int, name: str) -> str:
        return tensor_key(folders[rank], chunk, grid.vpp, sizes.outer(name))

    words = layout.dialect.reading(layout.words(slots))
    joined = assemble(grid, made.held, layout.dialect, key, words=words)
    table = joined.table.with_own(dims)
    found, unknown = table.named(joined.relation.right)
    if unknown:
        raise AssertionError(f"{layout.dialect.name} writes {unknown[0]}, which it does not read")
    whole = table.relation(joined.relation.right, found, dims, "the model")
    relation = pad_vocabulary(whole.invert()).compose(joined.relation.invert())
    step = f"iter_{iteration:07d}"

    def laid_out(rank: Rank, tensors: Mapping[str, Spec]) -> FileLayout:
        models = {
            "model" if grid.vpp == 1 else f"model{v}": _model(
                layout.dialect, {sizes.outer(name): _ref(key(rank, v, name), tensors) for name in names}
            )
            for v, names in made.held[rank].items()
        }
        said = {"args": namespace(arguments), "checkpoint_version": 3.0, "iteration": iteration}
        return layout_tree({**said, **models})

    def files(tensors: Mapping[str, Spec]) -> tuple[OutFile, ...]:
        out = []
        # Ranks that share their mappings have the same file, but for whose tensors it holds.
        known: dict[tuple[object, ...], tuple[list[str], FileLayout]] = {}
        for rank, chunks in made.held.items():
            keys = [key(rank, v, name) for v, names in chunks.items() for name in names]
            form = (*map(id, chunks.values()), *map(tensors.__getitem__, keys))
            if form not in known:
                known[form] = keys, laid_out(rank, tensors)
            first, laid = known[form]
            own = laid if first is keys else renamed(laid, dict(zip(first, keys, strict=True)))
            out.append(OutFile(f"{step}/{folders[rank]}/{NAME}", "bin", own))
        return tuple(out)

    return Target(files, relation, (_tracker(str(iteration)),))


def like_ranks(joined: Relation, inner: Relation, ranks: Mapping[str, Path], data: Path) -> Target:
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
    return Target(files, relation, (_tracker(str(int(step)) if step.isdigit() else step),))


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
        k: replaced(v, chunks[k]) if k in chunks else harmless(v)
        for k, v in file.root.items()
        if k not in _LEFT
    }


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
