"""Certify an output's files, and check them later without the source."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, cast

import xxhash

from ckptconv.engine.events import FileDone, Listener, Progress, Started
from ckptconv.engine.options import threads
from ckptconv.errors import CkptconvError, FormatError, OutputError, without_secrets
from ckptconv.numbers.sizes import size_text
from ckptconv.places.inside import is_inside
from ckptconv.places.jsonfile import read_json
from ckptconv.places.places import PathArg, forget, is_remote, place
from ckptconv.places.regular import open_binary
from ckptconv.plans.loaded import is_model, part_of
from ckptconv.plans.shown import Shown, count
from ckptconv.records import dataclass
from ckptconv.verify.result import FileDigest, Result
from ckptconv.version import __version__

__all__ = ["NAME", "Checked", "check", "read", "write"]

NAME = "ckptconv-verify.json"
_VERSION = 2
_PIECE = 1 << 20
_BY_ERROR = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP), "make the folder writable"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space"),
}


@dataclass(frozen=True, slots=True, repr=False)
class Checked(Shown):
    """Say how files compare with their certificate.

    Attributes:
        folder: The folder.
        certificate: What the certificate says.
        files: How many files it names.
        bytes: How many bytes of them were read.
        wrong: What differs, by file.
        extra: Files it does not name.
    """

    folder: str
    certificate: Mapping[str, Any]
    files: int
    bytes: int
    wrong: Mapping[str, str]
    extra: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file is there and unchanged."""
        return not self.wrong

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        return {
            "ok": self.ok,
            "folder": self.folder,
            "read": f"{count(self.files, 'file')}, {size_text(self.bytes)}",
            "wrong": ", ".join(f"{name} {text}" for name, text in self.wrong.items()),
            "beside": ", ".join(self.extra),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data."""
        return {
            "ok": self.ok,
            "out": self.folder,
            "digest": self.certificate["plan"],
            "source": self.certificate["source"],
            "tool": self.certificate["tool"],
            "files": self.files,
            "bytes": self.bytes,
            "wrong": [{"file": name, "text": text} for name, text in self.wrong.items()],
            "extra": list(self.extra),
        }


def write(folder: Path, result: Result, *, names: Sequence[str] | None = None, sha256: bool = False) -> Path:
    """Write the certificate of a folder that was compared with its source, and return its path.

    Args:
        folder: The output.
        result: What was found; digests in it are not computed again.
        names: The files that were compared; None for all that are there.
        sha256: Whether files have SHA-256 as well.

    Raises:
        OutputError: if it cannot be written.
    """
    known = {os.path.realpath(path): digest for path, digest in result.files.items()}
    files = {}
    for name in _files(folder) if names is None else sorted(names):
        path = folder / name
        files[name] = known.get(os.path.realpath(path)) or _digest(path, lambda event: None, sha256=sha256)
    data = {
        "version": _VERSION,
        "tool": f"ckptconv {__version__}",
        "source": result.source,
        "origin": dict(result.origin),
        "plan": result.plan,
        "result": {k: v for k, v in result.to_dict().items() if k not in ("out", "source", "plan", "notes")},
        "files": {n: _entry(d) for n, d in files.items()},
    }
    target = folder / NAME
    text = without_secrets(json.dumps(data, indent=1)) + "\n"
    if is_remote(folder):
        from ckptconv.places import objects

        objects.put(str(target), text.encode())
        return target
    part = folder / (NAME + ".part")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(part, flags, 0o666), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as e:
        with suppress(OSError):
            if not part.is_symlink():
                part.unlink(missing_ok=True)
        raise OutputError(
            f"the certificate cannot be written: {e.strerror}",
            where=target,
            hint=f"{_BY_ERROR.get(e.errno or 0, 'see to the cause')}; then ckptconv verify-roundtrip, where "
            "--no-certificate writes none",
        ) from e
    return target


def read(folder: Path) -> dict[str, Any]:
    """Read a folder's certificate.

    Raises:
        CkptconvError: if there is none.
        FormatError: if it is no certificate of this version.
    """
    path = folder / NAME
    if not path.is_file():
        raise CkptconvError(
            f"there is no {NAME}",
            where=folder,
            hint="make one from the source: ckptconv verify-roundtrip SRC OUT, or convert with --verify",
        )
    try:
        data = read_json(path)
        if data["version"] != _VERSION:
            raise FormatError(
                f"the certificate is of version {data['version']!r}, this ckptconv reads {_VERSION}",
                where=path,
                hint="update ckptconv, or verify against the source again",
            )
        for name, held in data["files"].items():
            if not is_inside(name) or not (
                isinstance(held["bytes"], int)
                and isinstance(held["xxh3"], str)
                and isinstance(held.get("sha256"), str | None)
            ):
                raise ValueError(f"entry {name!r}")
        if not all(isinstance(data[key], str) for key in ("tool", "source", "plan")):
            raise ValueError("no tool, source or plan")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise FormatError(
            f"this is no certificate: {e}", where=path, hint="make one anew with verify-roundtrip SRC OUT"
        ) from e
    return dict(data)


def check(folder: PathArg, listen: Listener | None = None, workers: int = 0) -> Checked:
    """Compare a folder's files with its certificate.

    Args:
        folder: The folder.
        listen: Told of progress.
        workers: Files read at a time; 0 is two a core, at most 8.

    Raises:
        CkptconvError: as `read` does.
    """
    tell = listen or (lambda event: None)
    forget()
    folder = place(folder)
    said = read(folder)
    wanted = {
        name: FileDigest(held["bytes"], held["xxh3"], held.get("sha256"))
        for name, held in said["files"].items()
    }
    wrong: dict[str, str] = {}
    todo = []
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file():
            wrong[name] = "is missing"
        elif (size := path.stat().st_size) != digest.size:
            wrong[name] = f"has {size:,} bytes, the certificate says {digest.size:,}"
        else:
            todo.append(name)
    total = sum(wanted[n].size for n in todo)
    tell(Started(total, 0))
    with ThreadPoolExecutor(threads(workers)) as pool:
        found = pool.map(lambda n: (n, _digest(folder / n, tell, sha256=wanted[n].sha256 is not None)), todo)
        for name, digest in found:
            if digest != wanted[name]:
                wrong[name] = "has another content than was certified"
    extra = [name for name in _files(folder) if name not in wanted]
    preferred = [name for name in extra if _is_preferred(name, wanted)]
    wrong |= dict.fromkeys(preferred, "was added, and loaders read it with or instead of the certified files")
    order = [*wanted, *preferred]
    return Checked(
        str(folder),
        said,
        len(wanted),
        total,
        dict(sorted(wrong.items(), key=lambda w: order.index(w[0]))),
        tuple(name for name in extra if name not in preferred),
    )


def _is_preferred(name: str, certified: Collection[str]) -> bool:
    """Whether loaders would read a file that is not certified, so that the model is another one."""
    if not is_model(certified):
        return False
    part = part_of(name)
    if part == "weights" and name.endswith((".bin", ".bin.index.json", ".h5", ".h5.index.json", ".msgpack")):
        return not any(n.endswith(".safetensors") for n in certified)
    if part == "tokenizer":  # where no tokenizer was certified, one may well be put beside the model later
        return any(part_of(n) == "tokenizer" for n in certified)
    if part == "config":
        return name != "config.json" or name in certified
    return part is not None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") and name != ".metadata"  # by which a distributed checkpoint is read


def _is_its_own(name: str) -> bool:
    """Whether a file is the certificate, or a signature of it."""
    return name.startswith(NAME)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder; hidden ones and those of an unfinished run are none of a model's."""
    if is_remote(folder):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            inside = path.relative_to(folder)
            hidden = any(_is_hidden(part) for part in inside.parts)
            if not hidden and path.suffix != ".part" and not _is_its_own(inside.as_posix()):
                yield inside.as_posix()
        return
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            found = path.relative_to(folder).as_posix()
            if _is_hidden(name) or name.endswith(".part") or not path.is_file() or _is_its_own(found):
                continue
            yield found


def _entry(digest: FileDigest) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": digest.size, "xxh3": digest.xxh3}
    return found if digest.sha256 is None else {**found, "sha256": digest.sha256}


def _digest(path: Path, tell: Listener, *, sha256: bool) -> FileDigest:
    secure, xxh3, size = hashlib.sha256() if sha256 else None, xxhash.xxh3_128(), 0
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    with open_binary(path) as opened:
        file = cast(RawIOBase, opened)
        while count := file.readinto(buffer):
            if secure is not None:
                secure.update(view[:count])
            xxh3.update(view[:count])
            size += count
            tell(Progress(count))
    tell(FileDone(path.name, size, xxh3.hexdigest()))
    return FileDigest(size, xxh3.hexdigest(), secure.hexdigest() if secure is not None else None)
