"""Find the family of a model by the ``model_type`` of its config; every file here is found by itself."""

from __future__ import annotations

from ckptconv.families.base import Config, Family, FamilyPart, Findings, dims, is_sparse
from ckptconv.plugins import Registry, within

__all__ = ["FAMILIES", "Config", "Family", "FamilyPart", "Findings", "dims", "find_family", "is_sparse"]


FAMILIES: Registry[Family] = Registry("families", lambda: within(__name__, Family), lambda: Family)
"""The families of this package, then those of installed plug-ins (entry point ``ckptconv.families``)."""


def family_of(config: Config) -> Family | None:
    """Return the family of a config.json; of a larger model with the language model that stands in it."""
    found = find_family(config.get("model_type"))
    return None if found is None else found.for_config(config)


def find_family(model_type: object) -> Family | None:
    """Return the family of a ``model_type``, if there is a table for it."""
    return next((f for f in FAMILIES if model_type in f.model_types), None)
