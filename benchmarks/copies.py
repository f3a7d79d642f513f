"""Say how a plain copy of files is made by one ``dd`` or by two at once, half of the bytes each."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["command", "halves"]

Piece = tuple[Path, int, int]  # file, first byte, number of bytes


def halves(files: Sequence[tuple[Path, int]], parts: int) -> list[list[Piece]]:
    """Cut files of given sizes into runs of equally many bytes, in their order."""
    total = sum(size for _, size in files)
    ends = [total * (i + 1) // parts for i in range(parts)]
    found: list[list[Piece]] = [[] for _ in ends]
    at = i = 0
    for file, size in files:
        done = 0
        while done < size:
            while at == ends[i]:
                i += 1
            step = min(size - done, ends[i] - at)
            found[i].append((file, done, step))
            done, at = done + step, at + step
    return found


def command(folder: Path, copy: Path, parts: int, *, sync: bool) -> list[str]:
    """Return a shell's command that copies a folder's files into pieces in ``copy``.

    Each piece is a file of its own: two that write one file would wait for each other.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    runs = halves([(f, f.stat().st_size) for f in files], parts)
    lines = [f"mkdir -p {shlex.quote(str(copy))}"]
    for i, run in enumerate(runs):
        lines += [f"({' && '.join(_dd(run, copy, i))}) & p{i}=$!"]
    lines += [f"wait $p{i}" for i in range(parts)]
    if sync:
        lines.append(f"find {shlex.quote(str(copy))} -type f -exec sync {{}} +")
    return ["sh", "-ec", "\n".join(lines)]


def _dd(run: Sequence[Piece], copy: Path, part: int) -> Iterator[str]:
    for j, (file, at, size) in enumerate(run):
        source, target = shlex.quote(str(file)), shlex.quote(str(copy / f"{part}-{j}"))
        where = f"skip={at} count={size} iflag=skip_bytes,count_bytes"
        yield f"dd if={source} of={target} bs=1M {where} status=none"
