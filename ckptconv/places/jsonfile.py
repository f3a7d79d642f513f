"""Read JSON that others wrote, within a budget of memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.places.regular import read_bytes

__all__ = ["parse_json", "read_json"]

_LEAST_BUDGET: Final = 256 << 20
_TIMES: Final = 20  # what a value may take, by the length of its text; a tokenizer's merges take 15
_CONTAINER, _ITEM = 64, 60  # bytes of an empty list or dict, and of an item with its place

Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(
    path: str | PathLike[str],
    *,
    most: int = 256 << 20,
    within: Path | None = None,
    hint: str | None = None,
) -> Any:
    """Return what a JSON file holds.

    Args:
        path: The file.
        most: The most bytes it may have.
        within: The folder that a link must not lead out of; see `read_bytes`.
        hint: What to do if it is no JSON.

    Raises:
        FormatError: if it is no JSON, too deep, too large, or would take memory out of proportion.
        OSError: if it cannot be read.
    """
    return parse_json(read_bytes(path, most=most, within=within), where=path, hint=hint)


def parse_json(
    data: bytes,
    *,
    where: str | PathLike[str],
    what: str = "",
    hint: str | None = None,
    pairs: Pairs | None = None,
) -> Any:
    """Return what a JSON text holds.

    Args:
        data: UTF-8 (or UTF-16 or -32, as `json.loads` finds out).
        where: The file it is from, for errors.
        what: What of the file it is, if it is not all.
        hint: What to do if it is no JSON.
        pairs: Makes an object from its keys and values, as ``object_pairs_hook``.

    Raises:
        FormatError: as `read_json` does.
    """
    is_not = f"{what} is not JSON" if what else "not JSON"
    weight = _CONTAINER * (data.count(b"[") + data.count(b"{")) + _ITEM * data.count(b",")
    if weight > max(_LEAST_BUDGET, _TIMES * len(data)):
        raise FormatError(
            f"{len(data):,} bytes of JSON with out of proportion many values", where=where, hint=hint
        )
    try:
        return json.loads(data, object_pairs_hook=pairs)
    except RecursionError as e:
        raise FormatError(f"{is_not}: nested too deeply", where=where, hint=hint) from e
    except ValueError as e:  # also of an integer of more than 4,300 digits
        raise FormatError(f"{is_not}: {str(e)[:300]}", where=where, hint=hint) from e
