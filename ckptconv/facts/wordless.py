"""Refuse what training arguments have no word for."""

from __future__ import annotations

from ckptconv.errors import PlanError

__all__ = ["cannot"]


def cannot(what: str, value: object = "") -> PlanError:
    """Return the error for a value that the framework's arguments cannot say."""
    return PlanError(
        f"the framework's arguments have no word for {what} {value}".strip(),
        hint="convert the weights alone with --no-assets, and give the framework its arguments by hand",
    )
