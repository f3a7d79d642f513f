"""Find the files of a TensorFlow model and list the variables in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.hdf5 import Group, open_hdf5
from ckptconv.containers.safetensors import read_header
from ckptconv.containers.tf1 import INDEX
from ckptconv.containers.torch.picklevm import short
from ckptconv.dialects.tensorflow.names import stripped, unscoped
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.jsonfile import read_json
from ckptconv.places.regular import read_text
from ckptconv.readers.reader import Save
from ckptconv.readers.weight_map import read_weight_map
from ckptconv.records import dataclass

__all__ = ["Found", "bundle_of", "config_of", "looks_like_tensorflow", "saves", "step_of", "variables"]

# transformers 4.57, utils/__init__.py (TF2_WEIGHTS_NAME, TF2_WEIGHTS_INDEX_NAME).
_SINGLE: Final = "tf_model.h5"
_SHARDS: Final = "tf_model.h5.index.json"
_SUFFIXES: Final = (".h5", ".hdf5")
_CONFIGS: Final = ("config.json", "bert_config.json", "electra_config.json", "albert_config.json")
_MOST_CONFIG: Final = 16 << 20
_DATA: Final = re.compile(r"\.data-\d+-of-(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Found:
    """Locate a variable.

    Attributes:
        key: Its name for the stored side of a relation.
        name: Its name without the model's scope.
        scope: That scope; empty where the file does not say it.
        tensor: Where it lies.
    """

    key: str
    name: str
    scope: str
    tensor: FileTensor


def looks_like_tensorflow(path: Path) -> bool:
    """Whether a path looks like a TensorFlow model: a ``.h5`` file, their index, or a saver's index."""
    if path.is_file():
        return path.suffix in _SUFFIXES or path.name == _SHARDS or _stem(path) is not None
    return path.is_dir() and (
        any((path / n).is_file() for n in (_SINGLE, _SHARDS)) or any(path.glob(f"*{INDEX}"))
    )


def _stem(path: Path) -> Path | None:
    """Return the index of the saver's checkpoint a file belongs to."""
    if path.suffix == INDEX:
        return path
    if path.suffix.startswith(".data-") or path.suffix == ".meta":
        index = path.with_suffix(INDEX)
        return index if index.is_file() else None
    return None


def bundle_of(path: Path) -> Path | None:
    """Return the index of the saver's checkpoint that a path names; None if it names another kind of file.

    Args:
        path: A folder or a file.

    Raises:
        PlanError: if a folder has several, and its ``checkpoint`` file says of none.
    """
    if path.is_file():
        return _stem(path)
    if any((path / n).is_file() for n in (_SINGLE, _SHARDS)):
        return None
    found = sorted(path.glob(f"*{INDEX}"))
    if len(found) < 2:
        return found[0] if found else None
    newest = _newest(path / "checkpoint")
    for index in found:
        if index.name == f"{newest}{INDEX}":
            return index
    raise PlanError(
        f"{len(found)} checkpoints are here: {', '.join(p.name for p in found[:6])}",
        where=path,
        hint="name the .index file of the one to read, or give --step",
    )


def step_of(index: Path) -> int | None:
    """Return the training step in a name such as ``model.ckpt-1000.index``."""
    number = index.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < 16 else None


def saves(path: Path) -> Iterator[Save]:
    """Yield the saver's checkpoints in a folder that have a step in their names."""
    for index in sorted(path.glob(f"*{INDEX}")) if path.is_dir() else ():
        step = step_of(index)
        if step is None:
            continue
        data = sorted(path.glob(f"{escape(index.stem)}.data-*"))
        counts = {int(m[1]) for p in data if (m := _DATA.fullmatch(p.suffix)) is not None}
        lack = max(counts, default=1) - len(data)
        why = f"{lack} of {max(counts, default=1)} data files are not there" if lack > 0 else None
        yield Save(step, index.stem, index, files=(index, *data), lacking=why)


def _newest(state: Path) -> str | None:
    """Return the name of the newest checkpoint as the saver's ``checkpoint`` file says it."""
    if not state.is_file():
        return None
    for line in read_text(state, most=_MOST_CONFIG).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model_checkpoint_path":
            return value.strip().strip('"').rsplit("/", 1)[-1]
    return None


def config_of(folder: Path, names: tuple[str, ...] = _CONFIGS) -> tuple[dict[str, Any], str]:
    """Return the configuration beside the weights and its file's name; nothing where there is none."""
    for name in names:
        path = folder / name
        if path.is_file() and isinstance(found := read_json(path, most=_MOST_CONFIG), dict):
            return found, name
    return {}, ""


def variables(path: Path) -> tuple[list[Found], list[Path], str]:
    """List the variables of a model's ``.h5`` or safetensors files.

    Returns:
        The variables, the files, and the format in words. A variable that lies in two layers is there twice.

    Raises:
        FormatError: if a file is damaged, or of another kind than transformers writes.
        PlanError: if a shard is missing or does not hold what the index says.
    """
    if path.is_dir():
        names = (_SINGLE, _SHARDS, "model.safetensors", "model.safetensors.index.json")
        path = next(path / n for n in names if (path / n).is_file())
    if path.suffix == ".json":
        mapped = read_weight_map(path)
        files = sorted({path.parent / name for name in mapped.values()})
        for file in files:
            if not file.is_file():
                raise PlanError(
                    f"the shard {file.name} is missing", where=path, hint="copy every shard the index names"
                )
        return list(_from_shards(path, mapped, files)), [path, *files], _said(files)
    found = list(_safetensors(path) if path.suffix == ".safetensors" else _layers(path, open_hdf5(path)))
    if not found:
        raise FormatError("the file holds no variables", where=path)
    return found, [path], _said([path])


def _said(files: list[Path]) -> str:
    kind = "TF safetensors" if files[0].suffix == ".safetensors" else "HDF5"
    return f"{kind}, {len(files)} file" + ("s" if len(files) > 1 else "")


def _safetensors(path: Path) -> Iterator[Found]:
    for name, tensor in read_header(path)[0].items():
        yield Found(f"{path.name}/{name}", stripped(name), "", tensor)


def _layers(path: Path, root: Group) -> Iterator[Found]:
    """Yield the variables of a file with groups by layer, as Keras 2 lays it out."""
    _refuse_others(path, root)
    for layer, group in root.groups.items():
        listed = _listed(path, layer, group)
        inside = dict(group.walk())
        missing = sorted(listed - inside.keys())
        if missing:
            raise FormatError(
                f"the layer {short(layer)} lists {short(missing[0])}, which is not there", where=path
            )
        for name, tensor in inside.items():
            if name not in listed:
                raise FormatError(f"the layer {short(layer)} does not list its {short(name)}", where=path)
            scope = name.partition("/")[0] if "/" in name else ""
            yield Found(f"{path.name}/{layer}/{name}", unscoped(name), scope, tensor)


def _listed(path: Path, layer: str, group: Group) -> set[str]:
    """Return the names a layer lists: in one attribute, or in several where they are long."""
    parts = [k for k in group.attributes if k.startswith("weight_names")]
    if not parts:
        raise FormatError(f"the group {short(layer)} lists no weights", where=path)
    if any(k not in group.texts for k in parts):
        raise FormatError(f"the weight_names of {short(layer)} are no texts", where=path)
    return {name for k in parts for name in group.texts[k]}


def _refuse_others(path: Path, root: Group) -> None:
    """Refuse by name what other tools and other versions of Keras save."""
    if any(k.startswith("layer_names") for k in root.attributes):
        if root.tensors or not any(
            k.startswith("weight_names") for g in root.groups.values() for k in g.attributes
        ):
            raise FormatError(
                "this is one shard of a model",
                where=path,
                hint=f"name the folder, or {_SHARDS}, which says what lies where",
            )
        return
    if "model_weights" in root.groups:
        raise FormatError(
            "a whole model of Keras (Model.save)",
            where=path,
            hint="save its weights with transformers' save_pretrained",
        )
    if {"layers", "_layer_checkpoint_dependencies"} & root.groups.keys():
        raise FormatError(
            "Keras 3 weights (.weights.h5) carry no names of variables: only the model's code knows them",
            where=path,
            hint="load them in Keras and save them with transformers' save_pretrained",
        )
    raise FormatError("an HDF5 file, but not of a TensorFlow model: its root names no layers", where=path)


def _from_shards(index: Path, mapped: dict[str, str], files: list[Path]) -> Iterator[Found]:
    """Yield the variables of shards: the index has whole names, a shard mostly those without the scope."""
    held: dict[Path, dict[str, FileTensor]] = {}
    for file in files:
        is_plain = file.suffix == ".safetensors"
        held[file] = dict(read_header(file)[0] if is_plain else open_hdf5(file).walk())
    for name, shard in mapped.items():
        file = index.parent / shard
        bare = unscoped(name)
        tensor = held[file].pop(bare, None) or held[file].pop(name, None)
        if tensor is None:
            raise PlanError(f"{short(name)} is in the index, but not in {shard}", where=index)
        scope = name.partition("/")[0] if "/" in name else ""
        yield Found(f"{shard}/{bare}", bare, scope, tensor)
    for file, rest in held.items():
        if rest:
            raise PlanError(
                f"{short(next(iter(rest)))} lies in {file.name}, but not in the index", where=index
            )
