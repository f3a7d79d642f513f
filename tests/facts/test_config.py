"""config.json built from training arguments computes what the true one does, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptconv.errors import PlanError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.value import Fact
from ckptconv.families import Family, find_family
from ckptconv.families.config import config_from, contradictions, facts_of, same
from ckptconv.families.detect import fitting
from training_args import MEGATRON, V1, V2, trained

# Ids of special tokens are the tokenizer's to say; a file without a layer for multi-token prediction says so.
BESIDE = {"bos", "eos", "pad", "mtp"}
MISLED = ("v1_dsv2_mc_gg_ep2", "v1_gemma_mc_tp2pp1")


def family_of(config: dict[str, Any]) -> Family:
    family = find_family(config["model_type"])
    assert family is not None
    return family


def differing(config: dict[str, Any], true: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    family = family_of(true)
    one, other = facts_of(config, family), facts_of(true, family)
    none = Fact("not said", "")
    both = {n: (one.get(n, none).value, other.get(n, none).value) for n in {*one, *other}}
    return {n: v for n, v in both.items() if n not in BESIDE and not same(n, *v)}


def completed(name: str) -> tuple[dict[str, Fact], dict[str, Any]]:
    """Return facts with what converters drop put back from the true config."""
    case = trained(name)
    true = facts_of(case.config, family_of(case.config))
    facts = dict(read_facts(case.args))
    for lost in ("rope_theta", "rope_scaling", "partial_rotary"):
        if lost in true:
            facts.setdefault(lost, true[lost])
    return facts, case.config


@pytest.mark.parametrize("name", MEGATRON)
def test_config_from_training_arguments_is_the_true_one(name: str) -> None:
    case = trained(name)
    facts = read_facts(case.args)
    [family] = fitting(facts, case.slots)
    config, origins = config_from(facts, family)
    assert differing(config, case.config) == {}
    assert set(origins) == set(config)
    assert config["architectures"] == case.config["architectures"]


@pytest.mark.parametrize("name", [*(n for n in V1 if n not in MISLED), *V2])
def test_config_from_a_converters_arguments_but_for_what_it_drops(name: str) -> None:
    facts, true = completed(name)
    if name == "v1_baichuan2_mc_tp2pp2":  # ModelLink writes 4096 whatever the model's number is
        facts["positions"] = Fact(true["max_position_embeddings"], "config")
    config, _ = config_from(facts, family_of(true))
    assert differing(config, true) == {}


# Baichuan's class fixes the base of its rotary embedding.
@pytest.mark.parametrize("name", [n for n in (*V1, *V2) if "baichuan" not in n])
def test_what_a_converter_drops_is_asked_for(name: str) -> None:
    case = trained(name)
    with pytest.raises(PlanError) as error:
        config_from(read_facts(case.args), family_of(case.config))
    if name not in MISLED:
        assert "rope" in error.value.message or "rotary" in error.value.message
    assert "--config" in str(error.value.hint)
    assert ("/models/hf" in str(error.value.hint)) == name.startswith("v2")


@pytest.mark.parametrize("name", MISLED)
def test_arguments_against_an_architecture_are_refused(name: str) -> None:
    facts, true = completed(name)
    with pytest.raises(PlanError, match="this is no"):
        config_from(facts, family_of(true))


@pytest.mark.parametrize("name", [*MEGATRON, *V2])
def test_transformers_reads_the_config_as_the_true_one(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    facts, true = completed(name)
    config, _ = config_from(facts, family_of(true))
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    reference = transformers.AutoConfig.for_model(**true).to_dict()
    beside = {"transformers_version", "architectures", "_name_or_path", "num_nextn_predict_layers"}
    beside |= {k for k in reference if k.endswith("_token_id")}
    ours = loaded.to_dict()
    wrong = {
        k: (ours.get(k), v)
        for k, v in reference.items()
        # the width of the MLP is given where the reference leaves it to be computed
        if k not in beside and ours.get(k) != v and (k, v) != ("n_inner", None)
    }
    # what decides nothing: dropout, ranges of initial weights, layers a window that is off starts from
    idle = {"attention_dropout", "residual_dropout", "max_window_layers", "sliding_window", "head_dim"}
    assert {k: v for k, v in wrong.items() if k not in idle} == {}
    if "head_dim" in wrong:
        assert wrong["head_dim"][1] is None
    if "sliding_window" in wrong:
        assert not any(wrong["sliding_window"])


def llama() -> tuple[dict[str, Fact], Family]:
    case = trained("llama")
    return dict(read_facts(case.args)), family_of(case.config)


def test_origins() -> None:
    facts, family = llama()
    _, origins = config_from(facts, family)
    assert origins["rope_theta"] == "args.rotary_base"
    assert origins["tie_word_embeddings"] == "args.untie_embeddings_and_output_weights"
    assert origins["model_type"] == "family llama"
    assert origins["bos_token_id"] == "not in the arguments"


@pytest.mark.parametrize(
    ("lost", "key", "flag"),
    [("rope_theta", "rope_theta", "--config"), ("norm_eps", "rms_norm_eps", "--config"),
     ("vocab", "vocab_size", "--vocab-size")],
)  # fmt: skip
def test_what_is_not_known_is_named(lost: str, key: str, flag: str) -> None:
    facts, family = llama()
    del facts[lost]
    with pytest.raises(PlanError, match=key) as error:
        config_from(facts, family)
    assert flag in str(error.value.hint)


def test_what_the_architecture_cannot_say_is_refused() -> None:
    facts, family = llama()
    with pytest.raises(PlanError, match="attention_bias cannot say both"):
        config_from({**facts, "qkv_bias": Fact(True, "args.add_qkv_bias")}, family)
    with pytest.raises(PlanError, match="window is 9"):
        config_from({**facts, "window": Fact(9, "args.window_size")}, family)
    deepseek = read_facts(trained("deepseek_v3").args)
    gap = {**deepseek, "moe_layers": Fact([True, False, True], "args.moe_layer_freq")}
    with pytest.raises(PlanError, match="do not follow one another"):
        config_from(gap, family_of({"model_type": "deepseek_v3"}))


def test_families_without_a_template_ask_for_the_config() -> None:
    facts, _ = llama()
    bare = replace(family_of({"model_type": "llama"}), name="bare", template=None)
    with pytest.raises(PlanError, match=bare.name):
        config_from(facts, bare)


@pytest.mark.parametrize("name", MEGATRON)
def test_a_true_config_contradicts_nothing(name: str) -> None:
    case = trained(name)
    assert contradictions(read_facts(case.args), case.config, family_of(case.config)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rope_parameters": {"rope_theta": 1e4}},
            "rope_theta: args.rotary_base says 500000, config.rope_theta",
        ),
        (
            {"rms_norm_eps": 1e-6},
            "norm_eps: args.layernorm_epsilon says 1e-05, config.rms_norm_eps says 1e-06",
        ),
        ({"hidden_act": "gelu"}, "activation: args.swiglu says silu, config.hidden_act says gelu"),
        ({"num_key_value_heads": 8}, "kv_heads: args.num_query_groups says 4"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_scaling: args."),
    ],
)
def test_contradictions_name_both_sides(change: dict[str, Any], said: str) -> None:
    facts, family = llama()
    messages = contradictions(facts, {**trained("llama").config, **change}, family)
    assert any(m.startswith(said) for m in messages), messages


def test_two_names_of_one_activation_agree() -> None:
    gpt2 = trained("gpt2")
    facts = {**read_facts(gpt2.args), "activation": Fact("gelu_new", "args.bias_gelu_fusion")}
    family = family_of(gpt2.config)
    assert contradictions(facts, {**gpt2.config, "activation_function": "gelu_pytorch_tanh"}, family) == []
    assert len(contradictions(facts, {**gpt2.config, "activation_function": "gelu"}, family)) == 1
