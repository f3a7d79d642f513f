"""Find where the members of a tar archive lie, so that they are read in their place."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ckptconv.errors import FormatError
from ckptconv.places.regular import open_binary

__all__ = ["Member", "tar_members"]

_MOST: Final = 1_000_000
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
}


class Member(NamedTuple):
    """Locate a file of an archive: where its bytes begin, and how many there are."""

    offset: int
    size: int


def tar_members(path: Path) -> Mapping[str, Member]:
    """Return the plain files of an archive by name, without a leading ``./``; of one name the last counts.

    Raises:
        FormatError: if it is compressed, so that nothing in it has a place, cut off, or no archive.
    """
    with open_binary(path) as file:
        head = file.read(8) or b""
        for magic, how in _COMPRESSED.items():
            if head.startswith(magic):
                raise FormatError(
                    f"an archive compressed with {how}: nothing in it can be read in its place",
                    where=path,
                    hint=f"unpack it (mkdir DIR && tar xf {path.name} -C DIR), and name DIR",
                )
        file.seek(0)
        size = file.seek(0, 2)
        file.seek(0)
        found: dict[str, Member] = {}
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for count, one in enumerate(tar):
                    if count > _MOST:
                        raise FormatError(f"more than {_MOST:,} files in it", where=path)
                    if one.isreg() and not one.issparse():
                        found[one.name.removeprefix("./")] = Member(one.offset_data, one.size)
        except (tarfile.TarError, EOFError, ValueError, RecursionError) as e:
            raise FormatError(
                f"no tar archive, or a damaged one: {e}", where=path, hint="copy it again"
            ) from e
    for name, member in found.items():
        if member.offset + member.size > size:
            raise FormatError(
                f"{name} reaches beyond the end of the archive", where=path, hint="copy the archive again"
            )
    return found
