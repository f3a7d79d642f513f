"""Every argument that changes what a model computes is told in the config, or refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from ckptconv.errors import PlanError
from ckptconv.facts.computing import ARGUMENTS
from ckptconv.facts.facts import read_facts
from ckptconv.families import find_family
from ckptconv.families.config import config_from, unconsumed
from ckptconv.families.detect import fitting, nearest
from training_args import MEGATRON, trained

# no_rope_freq has a family that computes it.
ODD = sorted(n for a in ARGUMENTS if not a.facts for n in a.names if n != "no_rope_freq")


@pytest.mark.parametrize("name", ODD)
def test_a_value_beside_the_default_is_refused_by_name(name: str) -> None:
    case = trained("llama")
    facts = read_facts({**case.args, name: 3})
    assert fitting(facts, case.slots) == []
    found = nearest(facts, case.slots)
    assert found is not None and len(found[1]) == 1 and name in found[1][0]
    family = find_family("llama")
    assert family is not None
    with pytest.raises(PlanError, match=name):
        config_from(facts, family)
    assert name in unconsumed(None, facts)[0]  # a config.json that is given cannot say it either


@pytest.mark.parametrize("freq", [2, [0, 1, 0, 1]])
def test_a_llama_with_layers_without_rotary_embedding_is_a_smollm3(freq: object) -> None:
    case = trained("llama")
    facts = read_facts({**case.args, "num_layers": 4, "no_rope_freq": freq})
    (family,) = fitting(facts, case.slots)
    made, _ = config_from(facts, family)
    assert (made["model_type"], made["no_rope_layers"]) == ("smollm3", [1, 0, 1, 0])
    llama = find_family("llama")
    assert llama is not None
    with pytest.raises(PlanError, match="no_rope_freq"):
        config_from(facts, llama)


@pytest.mark.parametrize(
    ("fields", "naming"),
    [
        ({"softmax_scale": 0.5}, "softmax_scale"),
        ({"position_embedding_type": "none"}, "position"),
        ({"activation_func_clamp_value": 7.0}, "activation_clamp"),
        ({"glu_linear_offset": 1.0}, "gate_offset"),
        ({"window_size": [7, 0], "window_attn_skip_freq": 2}, "window"),
        ({"window_size": [7, 0], "window_attn_skip_freq": [1, 0]}, "window"),
    ],
)
def test_what_no_family_computes_names_the_argument(fields: dict[str, Any], naming: str) -> None:
    case = trained("llama")
    facts = read_facts({**case.args, **fields})
    assert fitting(facts, case.slots) == []
    found = nearest(facts, case.slots)
    assert found is not None and any(naming in why for why in found[1]), found


@pytest.mark.parametrize("slot", ["mtp.*.eh_proj", "layers.*.attn.sinks", "layers.*.attn.gate"])
def test_tensors_that_exclude_a_family_are_called_what_people_call_them(slot: str) -> None:
    case = trained("llama")
    found = nearest(read_facts(case.args), {*case.slots, slot})
    word = {"mtp": "multi-token", "attn.sinks": "attention sinks", "attn.gate": "output gate"}
    called = next(v for k, v in word.items() if k in slot)
    assert found is not None and any(called in why for why in found[1]), found


@pytest.mark.parametrize("name", MEGATRON)
def test_real_runs_set_none_of_them(name: str) -> None:
    assert unconsumed(None, read_facts(trained(name).args)) == []


def test_yarns_own_scale_is_written_where_transformers_would_take_another() -> None:
    case = trained("llama")
    said = {"position_embedding_type": "yarn", "yarn_rotary_scaling_factor": 4.0, "yarn_mscale_all_dim": 0.0}
    scaled = read_facts({**case.args, **said, "yarn_mscale": 1.2})["rope_scaling"].value
    plain = read_facts({**case.args, **said, "yarn_mscale": 1.0})["rope_scaling"].value
    assert scaled["attention_factor"] == pytest.approx(1.16635532) and "attention_factor" not in plain


def test_a_scale_that_is_the_usual_one_says_nothing() -> None:
    case = trained("llama")
    width = case.args["kv_channels"]
    facts = read_facts({**case.args, "softmax_scale": width**-0.5})
    assert [f.name for f in fitting(facts, case.slots)] == ["llama"]
