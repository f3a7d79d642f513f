"""What the pages' tables say, in English; chinese.py has the other language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ENGLISH", "Words"]


@dataclass(frozen=True, slots=True)
class Words:
    """A language's words.

    Attributes:
        language: Its code, for causes.json.
        titles: What to call cases, where that is not their own title.
        facts: What to call facts about the machine.
        aims: What to call the aims of targets.py; {0} is the size, {1} one of the limits.
        limits: Of small and of large files.
        stop: What ends a sentence.
        join: What parts items of a sentence.
    """

    language: str
    plots: tuple[str, str]
    copy_heading: str
    copy_columns: tuple[str, ...]
    tool_heading: str
    tool_columns: tuple[str, ...]
    scaling_heading: str
    scaling_columns: tuple[str, ...]
    missed_heading: str
    missed_columns: tuple[str, ...]
    aims: Mapping[str, str]
    limits: tuple[str, str]
    absent: str
    read: str
    not_held: str
    elsewhere: str
    titles: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    stop: str = "."
    colon: str = ": "
    join: str = "; "


ENGLISH = Words(
    language="en",
    plots=(
        "Wall time of each conversion, as a multiple of cp and sync",
        "Wall time and peak memory against the tools in use today",
    ),
    copy_heading="## Against `cp`, {}",
    copy_columns=(
        "conversion", "written, GB", "ckptconv, s", "`cp` + `sync`, s", "times", "plan alone, s", "peak, MB",
        "1 GB: times",
    ),
    tool_heading="## Against the tools in use",
    tool_columns=(
        "conversion", "tool", "1 GB: s, its : ours", "times ours", "peak MB, its : ours",
        "8 GB: s, its : ours", "times ours", "peak MB, its : ours",
    ),
    scaling_heading="## Two workers over one, {}",
    scaling_columns=(
        "conversion", "to the disk", "a copy: two `dd` over one", "to memory", "a copy: two `dd` over one",
    ),
    missed_heading="## Targets",
    missed_columns=("aim", "missed", "cause, measured"),
    aims={
        "speed": "{0}, at most {1} times `cp` + `sync`",
        "disk": "{0}, two workers 1.5 times as fast as one, or as two copies are, to the disk",
        "memory": "{0}, two workers likewise, to memory",
        "peak": "{0}, peak at most 150 MB + `--max-memory`",
    },
    limits=("1.15", "1 (FP8 1.25, experts and rows 1.3, many tensors 1.05)"),
    absent="not measured: {}",
    read="read",
    elsewhere="‡ Measured on another machine: {}.",
    not_held="† Measured before memory was held for the programs: `cp` may have waited for the host.",
)  # fmt: skip
