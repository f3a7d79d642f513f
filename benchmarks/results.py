"""Keep measurements in files, so that the page can be made again without measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measure import Usage
from runner import Outcome

__all__ = ["STORED", "Results", "load", "save"]

STORED = {1.0: "bench", 8.0: "bench-full"}
"""Sizes whose results are kept and shown, and their files."""


@dataclass(slots=True)
class Results:
    """All that was measured at one size.

    Attributes:
        size: Gigabytes asked for.
        machine: Facts by name.
        cases: Outcomes by the name of the case.
    """

    size: float
    machine: dict[str, str] = field(default_factory=dict)
    cases: dict[str, Outcome] = field(default_factory=dict)

    def label(self) -> str:
        """Return the size as the tables write it."""
        return f"{self.size:g} GB"


def save(path: Path, results: Results) -> None:
    """Write results; a run may be interrupted after each case and goes on with ``--cases``."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(results), indent=1) + "\n")
    part.replace(path)


def load(path: Path) -> Results | None:
    """Read results; None if there are none."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return Results(found["size"], found["machine"], {n: _outcome(o) for n, o in found["cases"].items()})


def _outcome(found: Mapping[str, Any]) -> Outcome:
    runs = {
        setting: {program: [Usage(**u) for u in usages] for program, usages in programs.items()}
        for setting, programs in found["runs"].items()
    }
    return Outcome(**{**found, "runs": runs})
