"""Values of others are what they are to be, or an error that names them; nothing is built of them before."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.errors import CkptconvError, FormatError, PlanError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.mindformers import run_facts
from ckptconv.facts.typed import KINDS, short, typed_config
from ckptconv.facts.value import Args
from ckptconv.families import FAMILIES, find_family
from ckptconv.families.config import facts_of

HUGE = 10**400
LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=96, hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64,
    rms_norm_eps=1e-6, rope_theta=1e4, hidden_act="silu", tie_word_embeddings=False,
)  # fmt: skip
ODD: list[Any] = [
    "text", 2.5, -1, HUGE, float("inf"), float("nan"), True, [], {}, [1, "a"], "9" * 5000, [[HUGE]],
]  # fmt: skip


def test_every_key_a_family_reads_has_a_kind() -> None:
    stated = {k for f in FAMILIES if f.template is not None for k in f.template.keys}
    flags = {k for f in FAMILIES for k in f.flags}
    assert sorted((stated | flags) - KINDS.keys()) == []


@pytest.mark.parametrize("key", sorted(KINDS))
def test_what_a_key_cannot_hold_is_named_with_it(key: str) -> None:
    kept = 0
    for value in ODD:
        try:
            kept += typed_config({key: value}, "config.json")[key] is not None
        except FormatError as error:
            assert key in error.message and error.where == "config.json" and len(error.message) < 400
    assert kept < len(ODD)
    assert typed_config({key: None}, None) == {key: None}


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert typed_config({"num_hidden_layers": 2.0}, None) == {"num_hidden_layers": 2}
    assert typed_config({"text_config": {"hidden_size": 8.0}, "mine": 2.0}, None) == {
        "text_config": {"hidden_size": 8},
        "mine": 2.0,
    }


@given(st.sampled_from(sorted(LLAMA)), st.one_of(st.sampled_from(ODD), st.none(), st.floats(), st.text()))
def test_a_config_with_anything_in_it(key: str, value: object) -> None:
    family = find_family("llama")
    assert family is not None
    try:
        config = typed_config({**LLAMA, key: value}, "config.json")
        facts_of(config, family)
        list(family.expected(config))
    except CkptconvError:
        pass


@pytest.mark.parametrize(
    "sizes", [{"num_hidden_layers": 10**11}, {"num_hidden_layers": 10_000, "num_experts": 9999}]
)
def test_sizes_are_bounded_before_anything_is_built_from_them(sizes: dict[str, int]) -> None:
    family = find_family("qwen3_moe")
    assert family is not None
    config = {**LLAMA, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, **sizes}
    begin = time.perf_counter()
    with pytest.raises(PlanError):
        family.compare(config, {"model.embed_tokens.weight": (96, 32)})
    with pytest.raises(PlanError):
        family.compare(
            {**config, "num_hidden_layers": 9_999, "num_experts": 15}, {"model.norm.weight": (32,)}
        )
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    "value", ["9" * 5000, "1," + "9" * 5000, [HUGE], "\u00b2,1", "-", "--1", "1_0", {1, HUGE}]
)
def test_positions_of_empty_layers(value: object) -> None:
    try:
        found = Args({"noop_layers": value}).numbers("noop_layers")
        assert found is None or all(abs(n) < 1 << 60 for n in found.value)
    except FormatError as error:
        assert "args.noop_layers" in error.message


@pytest.mark.parametrize("value", [HUGE, float("inf"), float("nan"), -HUGE, 1e301])
def test_arguments_no_model_has(value: object) -> None:
    for name in ("num_layers", "rotary_base", "norm_epsilon"):
        with pytest.raises(FormatError, match=name):
            read_facts({"hidden_size": 8, "rotary_base": 1e4, "norm_epsilon": 1e-5, name: value})


@pytest.mark.parametrize(
    "more",
    [
        {"multiple_of": 0}, {"num_layers": 10**11, "n_routed_experts": 8}, {"num_layers": "two"},
        {"hidden_size": float("inf")}, {"ffn_dim_multiplier": float("nan")}, {"theta": HUGE},
        {"num_heads": -HUGE},
        {"scaling_factor": HUGE, "extend_method": "PI"}, {"rope_scaling": {"factor": "two", "rope_type": []}},
        {"moe_config": {"expert_num": HUGE}}, {"eos_token_id": [HUGE]}, {"rope_ratio": float("inf")},
        {"tie_word_embeddings": "perhaps"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_no_model_has(more: dict[str, Any]) -> None:
    sizes = {"type": "LlamaConfig", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
    with pytest.raises(FormatError):
        run_facts({**sizes, **more})


def test_settings_that_say_none_say_nothing() -> None:
    found = run_facts({"type": "LlamaConfig", "hidden_size": 32, "num_heads": 4, "n_kv_heads": "None"})
    assert found["kv_heads"].value == 4
    assert run_facts({"eos_token_id": [1, 2]})["eos"].value == [1, 2]


def test_values_are_written_shortly() -> None:
    for value in (HUGE, [HUGE] * 3, "x" * 10_000, list(range(10**5)), {"a": 10**5000}):
        assert len(short(value)) < 120
    assert short("a") == "'a'" and short(2) == "2"
