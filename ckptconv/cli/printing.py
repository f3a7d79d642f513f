"""Print JSON for programs: ASCII, without secrets."""

from __future__ import annotations

import json
import sys
from typing import Any

from ckptconv.cli.streams import own
from ckptconv.errors import without_secrets

__all__ = ["print_json"]


def print_json(data: Any, *, indent: int | None = 1) -> None:
    """Print data as JSON on stdout."""
    stream = own(sys.stdout)
    write = getattr(stream, "write_exactly", stream.write)  # a line must not be cut where it is long
    write(without_secrets(json.dumps(data, indent=indent)) + "\n")
