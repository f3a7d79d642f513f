"""`families` names the dialects that models of a family can be in: no more than is planned, and no fewer."""

from __future__ import annotations

from collections import defaultdict

import pytest

from ckptconv.api.architectures import architectures
from ckptconv.api.spoken import group_of, places, spoken
from ckptconv.dialects import DIALECTS, Dialect
from ckptconv.dialects.spread import Layout, spread
from ckptconv.errors import PlanError
from ckptconv.families import FAMILIES
from ckptconv.families.base import Config, Family
from ckptconv.parallel import Grid, stage_layers
from ckptconv.relations import Spec
from families.test_tables import CONFIGS, family_of, made, related

MODELS: dict[str, list[Config]] = defaultdict(list)
for model_type, config in CONFIGS:
    MODELS[family_of(model_type).name].append(config)
NAMED = {f.name: f for f in FAMILIES}


def slots_of(family: Family, config: Config) -> dict[str, Spec]:
    """Return the slots of a true model's language part, without multi-token prediction."""
    held = related(family, config, made(family, config)).right
    return {s: spec for s, spec in held.items() if not s.startswith("mtp.") and "/" not in s}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_named_is_what_true_models_can_be_in(name: str) -> None:
    models = [slots_of(NAMED[name], config) for config in MODELS[name]]
    held = {group_of(d) for d in DIALECTS if any(places(d, slots) for slots in models)}
    assert set(spoken(NAMED[name])) == held


def is_planned(dialect: Dialect, family: Family, config: Config) -> bool:
    """Whether ranks are laid out as `megatron-split` does it, all of it under the framework's own names."""
    slots, dims = slots_of(family, config), family.dims(config)
    grid = Grid()
    for experts in ("sequential", "grouped"):
        layout = Layout(grid, stage_layers(grid, dims["layers"]), dialect, experts)
        try:
            names = spread(layout, slots, dims).whole
        except PlanError:
            continue
        return not any("own" in name.split(".") for name in names)
    return False


@pytest.mark.parametrize("name", MODELS)
def test_ranks_are_planned_in_every_dialect_named(name: str) -> None:
    family = NAMED[name]
    groups = set(spoken(family))
    planned = {
        group_of(d) for d in DIALECTS if d.ranks and any(is_planned(d, family, c) for c in MODELS[name])
    }
    assert planned == {group_of(d) for d in DIALECTS if d.ranks} & groups


def test_every_family_is_listed_with_them() -> None:
    listed = {f.family: f.dialects for f in architectures()}
    assert {"core", "legacy", "modellink", "mindspeed", "mindformers", "meta"} <= set(listed["llama"])
    assert "meta" not in listed["gemma2"] and "core" in listed["gemma2"]
    assert listed["longcat_flash"] == ("mindspeed",)
    assert listed["llava"] == ()
