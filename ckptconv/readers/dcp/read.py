"""Read PyTorch distributed checkpoints (DCP): the sharded state dicts of FSDP, accelerate, torchtitan, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.dcp import METADATA
from ckptconv.containers.dcp.dcp import DcpFolder, open_dcp
from ckptconv.containers.torch.namespaces import plain
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.chunks import place
from ckptconv.readers.dcp.find import NUMBERED, OPTIMIZER, find
from ckptconv.readers.reader import Weighed
from ckptconv.records import dataclass

__all__ = ["check_masters", "open_checkpoint"]

# Keys under which trainers put a model's state dict, outermost first: torch's own tutorial ("app"),
# accelerate (00b1b181, utils/fsdp_utils.py) and Lightning Fabric ("model"), and others.
_WRAPPERS = ("app", "state_dict", "model", "module", "model_state_dict")
_TRAINING = frozenset({
    "callbacks", "dataloader", "loops", "lr_scheduler", "lr_schedulers", "rng", "rng_state", "scheduler",
    "schedulers", "train_state", "trainer",
})  # fmt: skip
# Lightning modules and the like hold the model as an attribute: these names are of one inside another.
_INNER = ("model.model.", "model.module.", "model.lm_head.")

_STEPS = ("step", "global_step", "checkpoint", "iter")


@dataclass(slots=True)
class _Sorted:
    """The model's tensors, name in the files to name in the model, and the bytes of all else by kind."""

    weights: dict[str, str]
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[Note] = field(default_factory=list)


def _sort(dcp: DcpFolder) -> _Sorted:
    """Tell the model's tensors from the optimizer's and the trainer's, and take wrappers off their names."""
    paths: dict[str, tuple[str | int, ...]] = {n: dcp.paths.get(n, (n,)) for n in dcp.tensors}
    if any(n.startswith("state.model.") for n in paths):  # Composer 0.32, core/state.py
        paths = {n: _of_composer(n) for n in paths}
    out = _Sorted({})
    beside: Counter[str] = Counter()

    def leave(name: str, key: str) -> None:
        kind = "optimizer states" if OPTIMIZER.fullmatch(key) else f"{key!r}, beside the model"
        out.left_out[kind] += dcp.tensors[name].nbytes
        if kind != "optimizer states" and key not in _TRAINING:
            beside[key] += 1

    taken: list[str] = []
    while (wrapper := _wrapper(paths)) is not None:
        for name in [n for n, p in paths.items() if len(p) < 2 or p[0] != wrapper]:
            leave(name, _key(paths.pop(name)))
        paths = {n: p[1:] for n, p in paths.items()}
        taken.append(wrapper)
    for name in [n for n, p in paths.items() if _is_training(_key(p)) and (len(p) > 1 or "." in str(p[0]))]:
        leave(name, _key(paths.pop(name)))
    out.weights = {n: ".".join(map(str, p)) for n, p in paths.items()}
    out.left_out["objects that are no tensors"] += sum(e.length for e in dcp.objects.values())
    _take_prefixes(out, taken)
    if taken:
        out.notes.append(Note("info", f"the model lies under {'.'.join(taken)!r}: taken off its names"))
    for key, count in beside.items():
        out.notes.append(Note("warning", f"left out: {count} tensors under {key!r}, beside the model"))
    return out


def _of_composer(name: str) -> tuple[str, ...]:
    """Return the keys of what Composer saves: the kind of state, and the name."""
    kind, _, rest = name.removeprefix("state.").partition(".")
    return (kind, rest) if rest else (kind,)


def _wrapper(paths: Mapping[str, tuple[str | int, ...]]) -> str | None:
    keys = {p[0] for p in paths.values() if len(p) > 1}
    return next((w for w in _WRAPPERS if w in keys), None)


def _key(path: tuple[str | int, ...]) -> str:
    """Return the first key of a path, or the first word of a name that is not cut into keys."""
    return str(path[0]).split(".", 1)[0]


def _is_training(key: str) -> bool:
    return key in _TRAINING or OPTIMIZER.fullmatch(key) is not None


def _take_prefixes(out: _Sorted, taken: list[str]) -> None:
    """Take off the words that all names begin with where the metadata does not say what they are."""
    for prefix in ("app.", "state_dict.", "model_state_dict."):
        if out.weights and all(n.startswith(prefix) for n in out.weights.values()):
            out.weights = {n: w.removeprefix(prefix) for n, w in out.weights.items()}
            taken.append(prefix[:-1])
    while (
        out.weights
        and all(n.startswith("model.") for n in out.weights.values())
        and any(n.startswith(_INNER) for n in out.weights.values())
    ):
        out.weights = {n: w.removeprefix("model.") for n, w in out.weights.items()}
        text = "all names begin with 'model.' and hold another model's after it, so it was taken off"
        out.notes.append(Note("guess", text))


def _root(folder: Path, path: Path) -> Path:
    """Return the folder to look for assets in: the nearest that has a config, else the one named."""
    named = path if path.is_dir() else folder
    near = (folder, folder.parent, named)
    return next((p for p in near if (p / "config.json").is_file()), named)


def _iteration(folder: Path) -> int | None:
    for name in (folder.name, folder.parent.name):
        m = NUMBERED.fullmatch(name)
        if m and m["kind"].endswith(_STEPS):
            return int(m["number"])
    return None


def check_masters(graph: GraphBuilder, folder: Path) -> Note:
    """Say that FSDP's own parameters are the masters, if they are fp32.

    Raises:
        UsageError: if they are not, so that there are none.
    """
    lower = sorted({s.dtype for s in graph.right.values() if s.dtype in ("bfloat16", "float16")})
    if lower:
        raise UsageError(
            f"there are no fp32 masters: the weights were trained as {' and '.join(lower)}",
            where=folder,
            hint="leave --weights out; FSDP's optimizer states are moments alone",
        )
    return Note("info", "FSDP keeps no masters beside the weights; the fp32 weights are what it trained")


def open_checkpoint(path: Path, options: Weighed) -> Checkpoint:
    """Open a distributed checkpoint; see `ckptconv.readers.reader.Reader`."""
    found = find(path)
    if found is None:
        raise FormatError("no distributed checkpoint found", where=path)
    folder, notes = found
    dcp = open_dcp(folder)
    if {"args", "checkpoint_version"} <= dcp.objects.keys():
        raise FormatError(
            "this distributed checkpoint was written by Megatron-LM (torch_dcp or fsdp_dtensor)",
            where=folder,
            hint="save it with --ckpt-format torch_dist",
        )
    kept = _sort(dcp)
    if not kept.weights:
        held = ", ".join(kind for kind, n in kept.left_out.items() if n) or "nothing"
        raise PlanError(
            f"no weights in this distributed checkpoint; it holds {held}",
            where=folder,
            hint="name the folder of the model (accelerate keeps it in pytorch_model_fsdp_0)",
        )
    _check_names(kept.weights, folder)
    located = dcp.locate(kept.weights)
    graph = GraphBuilder()
    graph.touch(folder / METADATA)
    for name, bare in kept.weights.items():
        tensor = dcp.tensors[name]
        chunks = [(c.offsets, t) for c, t in zip(tensor.chunks, located[name], strict=True) if t is not None]
        place(graph, bare, tensor.shape, tensor.dtype, chunks)
    relation = graph.relation()
    if options.weights == "master":
        notes.append(check_masters(graph, folder))
    files = {c.entry.file for t in dcp.tensors.values() for c in t.chunks if c.entry is not None}
    return Checkpoint(
        root=_root(folder, path),
        data=folder,
        producer="dcp",
        format="PyTorch distributed checkpoint",
        weights="model",
        stored=graph.stored,
        relation=relation,
        files=graph.files,
        versions={} if dcp.version is None else {"dcp": dcp.version},
        layout={"files": len(files)},
        iteration=_iteration(folder),
        left_out=dict(kept.left_out),
        config=_config(dcp),
        notes=(*notes, *kept.notes),
    )


# Where Composer keeps the model's config.json (0.32, ``models/huggingface.py``, get_metadata).
_CONTENT: Final = ("state", "integrations", "huggingface", "model", "config", "content")


def _config(dcp: DcpFolder) -> dict[str, Any]:
    """Return the config.json that Composer saves with a model, each value of it a record."""
    found: dict[str, Any] = {}
    for name in dcp.objects:
        path = dcp.paths.get(name, tuple(name.split(".")))
        keys = path[len(_CONTENT) :]
        if path[: len(_CONTENT)] != _CONTENT or not keys or not all(isinstance(k, str) for k in keys):
            continue
        at = found
        for key in keys[:-1]:
            inner = at.setdefault(str(key), {})
            at = inner if isinstance(inner, dict) else {}
        at[str(keys[-1])] = plain(dcp.read_object(name))
    return found if isinstance(found.get("model_type"), str) else {}


def _check_names(weights: Mapping[str, str], folder: Path) -> None:
    double = [n for n, count in Counter(weights.values()).items() if count > 1]
    if double:
        raise PlanError(f"two tensors would be named {double[0]}", where=folder)
