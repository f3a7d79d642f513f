"""Read the index of a sharded model: which file holds which tensor."""

from __future__ import annotations

from pathlib import Path

from ckptconv.errors import FormatError
from ckptconv.places.inside import is_plain_name
from ckptconv.places.jsonfile import read_json

__all__ = ["read_weight_map"]


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor by its name.

    Raises:
        FormatError: if the index is not one, or names a file outside its folder.
    """
    try:
        found = read_json(index)["weight_map"]
    except (KeyError, TypeError) as e:
        raise FormatError("the index is not JSON with a 'weight_map'", where=index) from e
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise FormatError("the 'weight_map' does not map names to files", where=index)
    if not found:
        raise FormatError("the index names no tensor", where=index, hint="copy the index again")
    for name in set(found.values()):  # in the hub's cache they are links, so the names decide
        if not is_plain_name(name):
            raise FormatError(f"the index names a file outside its folder: {name!r}", where=index)
    return found
