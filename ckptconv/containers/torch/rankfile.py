"""Open what Megatron saves for one rank: ``model_optim_rng.pt``."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.alike import Outline, Text, outline, text_of
from ckptconv.containers.torch.namespaces import plain
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.containers.torch.torchtensors import refuse_odd
from ckptconv.errors import FormatError
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["RankFile", "RankReader", "read_rank", "tensor_key"]

_CHUNK: Final = re.compile(r"model([0-9]{0,4})")
_MAX_LEVELS: Final = 50
_MAX_DICTS: Final = 1_000_000
_MAX_NAME: Final = 4096
_MAX_KNOWN: Final = 64  # outlines, and files of one outline, that others are compared with


@dataclass(frozen=True, slots=True)
class RankFile:
    """Hold what one rank's file says.

    Attributes:
        path: The file.
        root: All it holds; of a file that was found to be like another, nothing.
        arguments: The training arguments as simple values; empty where there are none.
        version: ``checkpoint_version``; files without one are of version 0.
        iteration: Training step; None where it does not say.
        chunks: The model's tensors by virtual chunk and name; a chunk of no-op layers alone has none.
        beside: Bytes of tensors beside the model.
        like: The file this one was found to be like: equal but for the data and numbers of the arguments.
        within: The archive that holds the file, if it lies in one.
    """

    path: Path
    root: Mapping[str, Any]
    arguments: Mapping[str, Any]
    version: float
    iteration: int | None
    chunks: Mapping[int, Mapping[str, FileTensor]]
    beside: int = 0
    like: Path | None = None
    within: Path | None = None

    def key(self, folder: str, chunk: int, name: str) -> str:
        """Name a tensor of this file, whose rank has this folder."""
        return tensor_key(folder, chunk, len(self.chunks), name)


def tensor_key(folder: str, chunk: int, chunks: int, name: str) -> str:
    """Name a tensor of a rank: its folder, its virtual chunk if there are several, its name."""
    return f"{folder}:{name}" if chunks == 1 else f"{folder}:model{chunk}.{name}"


def tensors_of(model: Mapping[str, Any], path: Path) -> Iterator[tuple[str, FileTensor]]:
    """Yield the tensors of a model's (nested) dict by dotted names; ``_extra_state`` is none of them.

    Raises:
        FormatError: if the dicts hold themselves or one another without end, or a tensor of a kind that
            cannot be located.
    """
    # Each level is an iterator, so that tensors come in the order of the file.
    levels = [("", iter(model.items()))]
    visits = 0
    while levels:
        prefix, items = levels[-1]
        for key, value in items:
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                visits += 1
                if len(levels) > _MAX_LEVELS or visits > _MAX_DICTS or len(name) > _MAX_NAME:
                    raise FormatError("the model's dicts are nested without end")
                levels.append((f"{name}.", iter(value.items())))
                break
            if not name.endswith("_extra_state"):
                if isinstance(value, FileTensor):
                    yield name, value
                else:
                    refuse_odd(name, value, path)
        else:
            levels.pop()


def read_rank(path: Path, *, exact: bool = False) -> RankFile:
    """Open one rank's file.

    Args:
        path: The file.
        exact: Keep what only matters where the file is written again.

    Raises:
        FormatError: if it does not hold a model.
    """
    root = open_torch(path, exact=exact).root
    if not isinstance(root, dict):
        raise FormatError("no dict of a checkpoint", where=path)
    arguments = plain(root["args"]) if "args" in root else {}
    names = [k for k in root if type(k) is str and _CHUNK.fullmatch(k)]
    chunks = {
        int(k[5:] or 0): dict(tensors_of(root[k], path)) for k in sorted(names) if isinstance(root[k], dict)
    }
    if not chunks or set(chunks) != set(range(len(chunks))):
        raise FormatError(
            f"there is no model in it: it holds {', '.join(map(str, root))[:200]}",
            where=path,
            hint="checkpoints without weights cannot be converted",
        )
    iteration = root.get("iteration", root.get("total_iters"))
    version = root.get("checkpoint_version", 0)
    return RankFile(
        path,
        root,
        arguments if isinstance(arguments, dict) else {},
        float(version) if isinstance(version, (int, float)) else 0.0,
        iteration if isinstance(iteration, int) else None,
        chunks,
        _beside(root),
    )


def _beside(root: Mapping[Any, Any]) -> int:
    """Count the bytes of tensors that are no weights: optimizer states, random states."""
    count = 0
    todo = [v for k, v in root.items() if not str(k).startswith("model")]
    while todo:
        value = todo.pop()
        if isinstance(value, FileTensor):
            count += value.nbytes
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, (list, tuple)):
            todo += value
    return count


@dataclass(slots=True)
class _Known:
    """A file that was opened, and its pickle but for the numbers in which others may differ.

    ``by`` is how far its tensors lie from where the outline's file has them.
    """

    file: RankFile
    text: Text
    by: int


class RankReader:
    """Open the files of many ranks, those that are like one before without unpickling them."""

    def __init__(self) -> None:
        self._known: list[tuple[Outline, list[_Known]]] = []

    def read(self, path: Path) -> RankFile:
        """Open one rank's file; see `read_rank`."""
        with open_binary(path) as opened:
            window = Window(opened, str(path))
            alike = [(o, files, p) for o, files in self._known if (p := o.pickle_of(window)) is not None]
            for made, files, pickle in alike:
                for known in files:
                    if (numbers := known.text.numbers_of(pickle)) is not None:
                        return _as(known, numbers, path, window.size - made.size - known.by)
            file = read_rank(path)
            for made, files, pickle in alike:
                for known in files:
                    if _learn(known, pickle, file, window.size - made.size - known.by):
                        return replace(file, root={}, like=known.file.path)
            self._keep(window, file, alike)
            return file

    def _keep(self, window: Window, file: RankFile, alike: list[tuple[Outline, list[_Known], bytes]]) -> None:
        """Keep a file that was opened, for others to be compared with."""
        if alike:
            made, files, pickle = alike[0]
            if len(files) < _MAX_KNOWN:
                files.append(_Known(file, text_of(pickle), window.size - made.size))
            return
        if len(self._known) >= _MAX_KNOWN or window.read_at(0, 4) != b"PK\3\4":
            return
        own = outline(window)
        if own is not None and (whole := own.pickle_of(window)) is not None:
            self._known.append((own, [_Known(file, text_of(whole), 0)]))


def _as(known: _Known, numbers: dict[str, int], path: Path, by: int) -> RankFile:
    """Return what a file holds that is like a known one but for numbers, with its tensors further on."""
    first = known.file
    same = all(first.arguments[key] == number for key, number in numbers.items())
    return replace(
        first,
        path=path,
        root={},
        arguments=first.arguments if same else ChainMap(numbers, dict(first.arguments)),
        chunks={v: _Moved(tensors, str(path), by) for v, tensors in first.chunks.items()},
        like=first.path,
    )


def _learn(known: _Known, pickle: bytes, file: RankFile, by: int) -> bool:
    """Find the numbers of the arguments in which a file differs from a known one, if that is all."""
    first = known.file
    if (first.version, first.iteration, first.beside) != (file.version, file.iteration, file.beside):
        return False
    if first.arguments.keys() != file.arguments.keys() or first.chunks.keys() != file.chunks.keys():
        return False
    changed: dict[str, tuple[int, int]] = {}
    for key, value in first.arguments.items():
        other = file.arguments[key]
        if value != other:
            if type(value) is not int or type(other) is not int:
                return False
            changed[key] = (value, other)
    found = known.text.with_numbers(pickle, changed)
    if found is None:
        return False
    path = str(file.path)
    for v, tensors in first.chunks.items():
        if list(_Moved(tensors, path, by).items()) != list(file.chunks[v].items()):
            return False
    known.text = found
    return True


class _Moved(Mapping[str, FileTensor]):
    """The tensors of a file that is like another; only where they lie is kept once for both."""

    __slots__ = ("_by", "_path", "like")

    def __init__(self, like: Mapping[str, FileTensor], path: str, by: int) -> None:
        self.like = like
        self._path = path
        self._by = by

    def __getitem__(self, name: str) -> FileTensor:
        t, by = self.like[name], self._by
        storage = (t.storage[0] + by, t.storage[1])
        return FileTensor(t.dtype, t.shape, t.stride, self._path, t.offset + by, storage)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)
