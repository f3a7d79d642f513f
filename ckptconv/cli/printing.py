"""Print JSON for programs: ASCII, without secrets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from ckptconv.cli.streams import own
from ckptconv.errors import without_secrets

__all__ = ["SCHEMA", "print_json"]

SCHEMA = 1
"""The version of what ``--json`` prints: raised when a field goes, or means another thing."""


def print_json(data: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Print data as JSON on stdout, with the version of its schema."""
    stream = own(sys.stdout)
    write = getattr(stream, "write_exactly", stream.write)  # a line must not be cut where it is long
    write(without_secrets(json.dumps({"schema_version": SCHEMA, **data}, indent=indent)) + "\n")
