"""Read a Hugging Face model folder or a ``.safetensors`` file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.safetensors import read_header
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.places.places import is_remote
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.options import NoOptions
from ckptconv.readers.reader import Reader
from ckptconv.readers.tensorflow import READER as TENSORFLOW
from ckptconv.readers.torch_file import named_tensors
from ckptconv.readers.weight_map import read_weight_map

__all__ = ["READER"]

# In the order they win, as in from_pretrained: transformers 5.23, utils/__init__.py; diffusers 0.36,
# utils/constants.py; accelerate 1.15, utils/constants.py (FSDP's full state dict in a Trainer's folder).
_ENTRIES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "pytorch_model_fsdp.bin",
)
_FURTHER = "pytorch_model_fsdp_1.bin"
_STEP = re.compile(r"checkpoint-(\d+)")  # transformers 5.23, trainer_utils.py (PREFIX_CHECKPOINT_DIR)


def _recognise(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".safetensors" or path.name in _ENTRIES[1::2]
    return path.is_dir() and (_entry(path) is not None or bool(_steps(path)))


def _entry(folder: Path) -> Path | None:
    """Return the file by which a model's folder is read."""
    return next((folder / n for n in _ENTRIES if (folder / n).is_file()), None)


def _steps(folder: Path) -> dict[int, Path]:
    """Return the folders of a Trainer's run that hold a model, by step, oldest first."""
    if is_remote(folder):
        return {}
    found = {int(m[1]): p for p in folder.iterdir() if (m := _STEP.fullmatch(p.name)) and p.is_dir()}
    return {step: found[step] for step in sorted(found) if _entry(found[step]) is not None}


def _chosen(path: Path) -> tuple[Path, list[Note]]:
    """Return the folder to be read: of a run, that of the newest model."""
    if path.is_file() or _entry(path) is not None:
        return path, []
    steps = _steps(path)
    newest = max(steps)
    text = f"checkpoint-{newest} is the newest of {len(steps)} in {path}"
    return steps[newest], [Note("info", text)] if len(steps) > 1 else []


def _tensors(path: Path) -> dict[str, FileTensor]:
    if path.suffix == ".safetensors":
        tensors, metadata = read_header(path)
        if metadata.get("format") == "flax":
            raise FormatError(
                "the file holds a Flax model: other names and other shapes than torch's",
                where=path,
                hint="load it with from_flax=True in transformers 4, and save_pretrained",
            )
        return tensors
    return state_dict_of(open_torch(path).root, str(path))[0]


def _is_tensorflow(names: Iterable[str]) -> bool:
    """Whether the names are those of TensorFlow's variables: each the first output of an operation."""
    return any(n.endswith(":0") for n in names)


def _open(path: Path, options: NoOptions) -> Checkpoint:
    path, notes = _chosen(path)
    root = path if path.is_dir() else path.parent
    entry = path if path.is_file() else _entry(path)
    assert entry is not None
    if (root / _FURTHER).is_file() and path.is_dir() and "_fsdp" in entry.name:
        raise UsageError(
            f"accelerate saved several models here: {entry.name}, {_FURTHER}",
            where=root,
            hint="name the file of one of them",
        )
    tensors: dict[str, FileTensor] = {}
    if entry.name.endswith(".json"):
        mapped = read_weight_map(entry)
        if _is_tensorflow(mapped):
            return TENSORFLOW.open(path, NoOptions())
        files = sorted(set(mapped.values()))
        for name in files:
            if not (root / name).is_file():
                raise PlanError(
                    f"the shard {name} is missing", where=root, hint="copy every shard the index names"
                )
            for key, tensor in _tensors(root / name).items():
                if mapped.get(key) != name:
                    raise PlanError(
                        f"{key} lies in {name}, but the index says {mapped.get(key)}", where=entry
                    )
                tensors[key] = tensor
        missing = sorted(set(mapped) - set(tensors))
        if missing:
            raise PlanError(f"{missing[0]} is in the index, but not in {mapped[missing[0]]}", where=entry)
        tensors = {k: tensors[k] for k in mapped}
    else:
        files = [entry.name]
        tensors = _tensors(entry)
        if _is_tensorflow(tensors):
            return TENSORFLOW.open(path, NoOptions())
    graph = GraphBuilder()
    graph.touch(entry)
    aliases = named_tensors(graph, tensors)
    kind = "safetensors" if any(f.endswith(".safetensors") for f in files) else "bin"
    return Checkpoint(
        root=root,
        data=entry,
        producer="huggingface",
        format=f"{kind}, {len(files)} file" + ("s" if len(files) > 1 else ""),
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        aliases=aliases,
        notes=tuple(notes),
    )


def _lacking(path: Path) -> str | None:
    entry = path if path.is_file() else _entry(path)
    if entry is None or entry.suffix != ".json":
        return None
    try:
        names = sorted(set(read_weight_map(entry).values()))
    except FormatError as e:
        return e.message
    absent = [n for n in names if not (entry.parent / n).is_file()]
    return f"{len(absent)} of {len(names)} shards are not there: {absent[0]}" if absent else None


READER = Reader("huggingface", _recognise, _open, lacking=_lacking)
