"""Arguments written for a config say the same of the model when they are read again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.errors import PlanError, UsageError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.reverse import ArgumentsDialect, Form, arguments_from
from ckptconv.facts.value import Fact
from ckptconv.families import Family, find_family
from ckptconv.families.config import config_from, facts_of, same
from training_args import NAMES, trained

CONFIGS = {case.config["model_type"]: case.config for case in map(trained, NAMES)}
DIALECTS: tuple[ArgumentsDialect, ...] = ("megatron", "mindspeed")
BESIDE = {"bos", "eos", "pad"}
# What Megatron-LM's arguments cannot say: a scaled embedding, norms after attention and MLP.
GEMMAS = {"gemma", "gemma2"}
LLAMA = CONFIGS["llama"]


def family_of(config: dict[str, Any]) -> Family:
    family = find_family(config["model_type"])
    assert family is not None
    return family


def again(config: dict[str, Any], dialect: ArgumentsDialect, **options: Any) -> dict[str, tuple[Any, Any]]:
    """Return the facts that differ between a config and the one made from its arguments."""
    family = family_of(config)
    made, _ = config_from(
        read_facts(arguments_from(facts_of(config, family), Form(dialect, **options))), family
    )
    one, other = facts_of(made, family), facts_of(config, family)
    none = Fact("not said", "")
    both = {n: (one.get(n, none).value, other.get(n, none).value) for n in {*one, *other}}
    return {n: v for n, v in both.items() if n not in BESIDE and not same(n, *v)}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_config_to_arguments_and_back(model_type: str, dialect: ArgumentsDialect) -> None:
    config = CONFIGS[model_type]
    if dialect == "megatron" and model_type in GEMMAS:
        with pytest.raises(PlanError, match="no word for"):
            arguments_from(facts_of(config, family_of(config)), Form(dialect))
    else:
        assert again(config, dialect, tp=2, pp=2) == {}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("model_type", sorted(set(CONFIGS) - GEMMAS))
def test_arguments_say_every_fact_they_have_a_word_for(model_type: str, dialect: ArgumentsDialect) -> None:
    config = CONFIGS[model_type]
    read = read_facts(arguments_from(facts_of(config, family_of(config)), Form(dialect)))
    wrong = {
        n: (read[n], fact)
        for n, fact in facts_of(config, family_of(config)).items()
        if n in read and not same(n, read[n].value, fact.value)
    }
    assert wrong == {}


@given(
    heads=st.sampled_from([4, 8]), groups=st.sampled_from([1, 2, 4]), head_dim=st.sampled_from([8, 16]),
    theta=st.sampled_from([1e4, 5e5, 12345.5]), eps=st.sampled_from([1e-5, 1e-6]), tied=st.booleans(),
    bias=st.booleans(), act=st.sampled_from(["silu", "quick_gelu"]), vocab=st.integers(1, 5000),
    factor=st.sampled_from([None, 8.0, 32.0]), dialect=st.sampled_from(DIALECTS),
    tp=st.sampled_from([1, 2]), pp=st.sampled_from([1, 2]),
)  # fmt: skip
def test_any_llama(
    heads: int, groups: int, head_dim: int, theta: float, eps: float, tied: bool, bias: bool, act: str,
    vocab: int, factor: float | None, dialect: ArgumentsDialect, tp: int, pp: int,
) -> None:  # fmt: skip
    scaling = None
    if factor is not None:
        scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
    config = {
        **LLAMA, "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim,
        "rope_parameters": None, "rope_theta": theta, "rope_scaling": scaling, "rms_norm_eps": eps,
        "tie_word_embeddings": tied, "attention_bias": bias, "mlp_bias": bias, "hidden_act": act,
        "vocab_size": vocab,
    }  # fmt: skip
    assert again(config, dialect, tp=tp, pp=pp) == {}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_layout(dialect: ArgumentsDialect) -> None:
    config = CONFIGS["qwen3_moe"] | {"num_hidden_layers": 8, "vocab_size": 300}
    form = Form(dialect, tp=2, pp=2, vpp=2, ep=4, etp=1, dtype="bfloat16", experts_form="grouped")
    args = arguments_from(facts_of(config, family_of(config)), form)
    facts = {n: f.value for n, f in read_facts(args).items()}
    expected = {"tp": 2, "pp": 2, "vpp": 2, "ep": 4, "etp": 1, "dtype": "bfloat16", "experts_form": "grouped"}
    assert {n: facts[n] for n in expected} == expected
    assert args["padded_vocab_size"] == 512
    assert args["num_layers_per_virtual_pipeline_stage"] == 2
    assert args["bf16"]
    assert not args["fp16"]


def test_mindspeeds_own_layouts() -> None:
    family = family_of(LLAMA)
    args = arguments_from(
        facts_of(LLAMA, family), Form("mindspeed", pp=2, noop_layers=[0, 5], schedule="dualpipev")
    )
    facts = {n: f.value for n, f in read_facts(args).items()}
    assert (args["num_layers"], facts["layers"], facts["noop_layers"]) == (6, 4, [0, 5])
    assert (facts["schedule"], facts["vpp"]) == ("dualpipev", 2)
    with pytest.raises(UsageError, match="MindSpeed"):
        arguments_from(facts_of(LLAMA, family), Form("megatron", pp=2, noop_layers=[0, 5]))


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None, "rope_theta": 1e4},
        {
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 4096,
            },
            "rope_parameters": None,
            "rope_theta": 1e4,
        },
        {"hidden_act": "gelu_pytorch_tanh"},
        {"attention_bias": True},
    ],
)  # fmt: skip
def test_what_megatron_has_no_word_for_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="no word for") as error:
        arguments_from(facts_of({**LLAMA, **change}, family_of(LLAMA)), Form("megatron"))
    assert "--no-assets" in str(error.value.hint)


def test_a_window_on_some_layers() -> None:
    qwen = CONFIGS["qwen2"] | {"use_sliding_window": True, "sliding_window": 16, "layer_types": None}
    family = family_of(qwen)
    every = arguments_from(facts_of(qwen | {"max_window_layers": 0}, family), Form("megatron"))
    assert every["window_size"] == [15, 0]
    assert again(qwen | {"max_window_layers": 0}, "megatron") == {}
    with pytest.raises(PlanError, match="window on only some layers"):
        arguments_from(facts_of(qwen | {"max_window_layers": 2}, family), Form("megatron"))


def test_an_incomplete_config_is_refused() -> None:
    with pytest.raises(PlanError, match="hidden"):
        config = {k: v for k, v in LLAMA.items() if k != "hidden_size"}
        arguments_from(facts_of(config, family_of(LLAMA)), Form("megatron"))


def test_core_has_no_bias_on_experts_that_softmax_chooses() -> None:
    ernie = LLAMA | {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 8,
    }
    facts = facts_of(ernie, family_of(ernie))
    gaps: list[str] = []
    args = arguments_from(facts, Form("megatron"), gaps)
    assert args["num_experts"] == 4
    assert any("experts that softmax chooses" in gap for gap in gaps)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}


def rotary(config: dict[str, Any]) -> tuple[list[float], float]:
    """Return the frequencies of a config, and what queries and keys are multiplied with, by transformers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    made = LlamaConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](made, "cpu")
    return frequencies.tolist(), scale


@pytest.mark.parametrize("named", ["yarn_", ""], ids=["Megatron-Bridge", "command line"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"mscale": 0.7, "mscale_all_dim": 1.2},
        {"mscale": 0.7},
        {"attention_factor": 1.3},
        {"attention_factor": 1.0},
    ],
    ids=repr,
)
def test_yarn_of_usual_attention_is_said_in_both_ways_and_computes_the_same(
    more: dict[str, Any], named: str
) -> None:
    config = {**LLAMA, "max_position_embeddings": 128, "rope_parameters": {**YARN, **more}}
    family = family_of(config)
    args = arguments_from(facts_of(config, family), Form("megatron"))
    factor, own, all_dim = (
        args[f"{named}{n}"] for n in ("rotary_scaling_factor", "mscale", "mscale_all_dim")
    )
    grown = 0.1 * math.log(factor)
    assert (1 + own * grown) / (1 + all_dim * grown) == pytest.approx(rotary(config)[1])
    other = "" if named else "yarn_"
    for name in ("rotary_scaling_factor", "mscale", "mscale_all_dim"):
        del args[f"{other}{name}"]
    made, _ = config_from(read_facts(args), family)
    assert rotary(made)[0] == pytest.approx(rotary(config)[0])
    assert rotary(made)[1] == pytest.approx(rotary(config)[1])


def test_a_scale_that_no_argument_says_is_refused() -> None:
    config = {**LLAMA, "max_position_embeddings": 128, "rope_parameters": {**YARN, "attention_factor": 1.3}}
    with pytest.raises(PlanError, match="attention_factor"):
        arguments_from(facts_of(config, family_of(config)), Form("mindspeed"))
