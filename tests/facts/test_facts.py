"""Facts are read from both dialects of arguments, and the traps in them are not stepped into."""

from __future__ import annotations

from typing import Any

import pytest

from ckptconv.containers.torch.picklevm import Global
from ckptconv.facts.facts import read_facts
from training_args import NAMES, trained

# A training Namespace has num_query_groups, that of MindSpeed-LLM's converter has not.
TRAINING: dict[str, Any] = {
    "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 8,
    "num_query_groups": 1, "group_query_attention": False, "kv_channels": 8, "swiglu": True,
    "add_bias_linear": False,
}  # fmt: skip
CONVERTED: dict[str, Any] = {
    "load_model_type": "hf", "num_layers": 4, "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 8, "num_key_value_heads": 4, "group_query_attention": False,
}  # fmt: skip
MLA: dict[str, Any] = {
    "multi_latent_attention": True, "q_lora_rank": None, "kv_lora_rank": 16, "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4, "v_head_dim": 6, "rotary_scaling_factor": 1.0,
}  # fmt: skip
MOE: dict[str, Any] = {"num_experts": 4, "moe_router_topk": 2, "moe_router_score_function": "softmax"}


def values(args: dict[str, Any]) -> dict[str, Any]:
    return {name: fact.value for name, fact in read_facts(args).items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_says_where_it_is_from(name: str) -> None:
    for fact in read_facts(trained(name).args).values():
        assert fact.origin.startswith("args.")


@pytest.mark.parametrize(
    ("change", "kv_heads"),
    [
        ({}, 8),
        ({"num_query_groups": 2}, 8),
        ({"group_query_attention": True}, 1),
        ({"group_query_attention": True, "num_query_groups": 2}, 2),
    ],
    ids=["default is multi-head", "groups unused", "multi-query", "grouped"],
)
def test_query_groups_count_only_beside_their_flag(change: dict[str, Any], kv_heads: int) -> None:
    assert values({**TRAINING, **change})["kv_heads"] == kv_heads


def test_converter_sets_the_flag_to_false_whatever_the_model() -> None:
    assert values(CONVERTED)["kv_heads"] == 4


def test_arguments_older_than_query_groups_are_multi_head() -> None:
    old = {k: v for k, v in TRAINING.items() if k not in ("num_query_groups", "group_query_attention")}
    assert values(old)["kv_heads"] == 8


@pytest.mark.parametrize("name", ["norm_epsilon", "layernorm_epsilon"])
def test_norm_epsilon_has_two_names(name: str) -> None:
    fact = read_facts({**TRAINING, name: 1e-6})["norm_eps"]
    assert (fact.value, fact.origin) == (1e-6, f"args.{name}")


def test_kv_channels_mean_nothing_with_latent_attention() -> None:
    found = values({**TRAINING, **MLA})
    assert "head_dim" not in found
    assert {n: found[n] for n in ("q_rank", "kv_rank", "nope", "rope", "v_dim")} == {
        "q_rank": None, "kv_rank": 16, "nope": 8, "rope": 4, "v_dim": 6,
    }  # fmt: skip
    assert "kv_rank" not in values({**TRAINING, **MLA, "multi_latent_attention": False})


def test_a_configs_qk_head_dim_is_not_megatrons() -> None:
    mla = {
        "kv_lora_rank": 16,
        "qk_head_dim": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    }
    assert values({**CONVERTED, **mla})["nope"] == 8


@pytest.mark.parametrize(
    ("change", "activation", "gated"),
    [
        ({"swiglu": True}, "silu", True),
        ({"add_bias_linear": True, "bias_gelu_fusion": True}, "gelu_new", False),
        ({"add_bias_linear": True, "bias_gelu_fusion": False}, "gelu", False),
        ({"add_bias_linear": False, "bias_gelu_fusion": True}, "gelu", False),
        ({"openai_gelu": True}, "gelu_new", False),
        ({"squared_relu": True}, "relu2", False),
        ({"quick_geglu": True}, "quick_gelu", True),
        ({"geglu": True, "swiglu": True}, "gelu", True),
        ({"gelu_tanh": True, "swiglu": True}, "gelu_pytorch_tanh", True),
        ({"use_te_activation_func": True, "bias_gelu_fusion": False}, None, False),
    ],
)
def test_activation(change: dict[str, Any], activation: str | None, gated: bool) -> None:
    found = values({**TRAINING, "swiglu": False, **change})
    assert (found.get("activation"), found["gated"]) == (activation, gated)


def test_converter_keeps_the_configs_activation() -> None:
    assert values({**CONVERTED, "hidden_act": "gelu_pytorch_tanh", "swiglu": True})["activation"] != "silu"


@pytest.mark.parametrize(("size", "window"), [([4095, 0], 4096), ([-1, 0], None), (None, None)])
def test_window_counts_the_token_itself(size: list[int] | None, window: int | None) -> None:
    found = read_facts({**TRAINING, "window_size": size})["window"]
    assert (found.value, found.origin) == (window, "args.window_size")


def test_a_window_that_is_not_used_is_none() -> None:
    args = {**CONVERTED, "sliding_window": 131072, "use_sliding_window": False}
    assert values(args)["window"] is None


@pytest.mark.parametrize(("vocab", "padded", "true"), [(131, 144, 131), (None, 144, None), (160, 144, None)])
def test_true_vocabulary(vocab: int | None, padded: int, true: int | None) -> None:
    found = values({**TRAINING, "vocab_size": vocab, "padded_vocab_size": padded})
    assert (found.get("vocab"), found["padded_vocab"]) == (true, padded)


@pytest.mark.parametrize("noop", ["0,5", [0, 5], {0, 5}])
def test_empty_layers_do_not_count(noop: Any) -> None:
    found = values({**TRAINING, "num_layers": 6, "noop_layers": noop})
    assert (found["layers"], found["noop_layers"]) == (4, [0, 5])


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"moe_layer_freq": 1}, [True] * 4),
        ({"moe_layer_freq": 2}, [True, False, True, False]),
        ({"moe_layer_freq": [0, 1, 1, 1]}, [False, True, True, True]),
        ({"moe_layer_freq": [0, 0, 1, 1, 1], "num_layers": 5, "noop_layers": "1"}, [False, True, True, True]),
        ({"first_k_dense_replace": 2, "moe_layer_freq": None}, [False, False, True, True]),
        ({"moe_layer_freq": "[0]*1+[1]*3"}, None),
    ],
)
def test_layers_with_experts(change: dict[str, Any], layers: list[bool] | None) -> None:
    assert values({**TRAINING, **MOE, **change}).get("moe_layers") == layers


@pytest.mark.parametrize(
    ("change", "norm"),
    [
        ({"moe_router_pre_softmax": False}, True),
        ({"moe_router_pre_softmax": True}, False),
        ({"moe_router_pre_softmax": False, "moe_router_score_function": "sigmoid"}, True),
        ({"moe_router_load_balancing_type": "softmax_topk", "norm_topk_prob": False}, False),
        ({"moe_router_load_balancing_type": "group_limited_greedy", "norm_topk_prob": True}, True),
    ],
)
def test_whether_expert_weights_sum_to_one(change: dict[str, Any], norm: bool) -> None:
    assert values({**TRAINING, **MOE, **change})["norm_topk"] is norm


def test_no_routing_facts_without_experts() -> None:
    found = values({**TRAINING, "moe_router_topk": 2, "num_experts": None})
    assert not {"topk", "experts", "moe_layers", "expert_inner"} & set(found)


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        ({}, None),
        (
            {"use_rope_scaling": True, "rope_scaling_factor": 32.0},
            {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        ({"rotary_seq_len_interpolation_factor": 4}, {"rope_type": "linear", "factor": 4.0}),
        ({"rotary_scaling_factor": 40.0}, None),
        ({**MLA, "rotary_scaling_factor": 40.0, "rope_type": "rope"}, None),
        ({**MLA, "rotary_scaling_factor": 1.0, "rope_type": None}, None),
        (
            {**MLA, "rotary_scaling_factor": 40.0, "rope_type": None, "mscale": 1.0, "mscale_all_dim": 1.0},
            {
                "rope_type": "yarn", "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
            },
        ),
        (
            {
                "rope_scaling_type": "yarn", "max_position_embeddings": 512, "rope_scaling_factor": 1.0,
                "rope_scaling_original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1,
            },
            {
                "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 128,
            },
        ),
    ],
)  # fmt: skip
def test_rope_scaling(change: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    assert values({**TRAINING, **change})["rope_scaling"] == scaling


def test_what_the_converter_drops_is_not_known() -> None:
    assert not {"rope_theta", "rope_scaling"} & set(values(CONVERTED))


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        ({"params_dtype": Global("torch", "bfloat16")}, "bfloat16"),
        ({"params_dtype": "torch.float32"}, "float32"),
        ({"params_dtype": object(), "fp16": True}, "float16"),
        ({"params_dtype": Global("os", "system")}, None),
    ],
)
def test_dtype(change: dict[str, Any], dtype: str | None) -> None:
    assert values({**TRAINING, **change}).get("dtype") == dtype


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama", {"tp": 1, "pp": 2, "first_stage": 1}),
        ("llama_vpp", {"pp": 2, "vpp": 2}),
        ("llama_old", {"tp": 2, "legacy_model": True}),
        ("mixtral", {"tp": 2, "ep": 2, "etp": 1, "experts_form": "grouped"}),
        ("mixtral_old_grouped", {"etp": 2, "experts_form": "legacy_grouped"}),
        ("v1_llama_mc_pp2list13", {"pp": 2, "layers_per_stage": [1, 3]}),
        ("v1_llama8_mc_pp4vpp1", {"pp": 4, "vpp": 2}),
        ("v1_llama_v131_mc_tp2pp2_pad8", {"divisible": 8, "vocab": 131, "padded_vocab": 144}),
        ("v2_llama6_pp2vppnoop", {"layers": 6, "noop_layers": [1, 6], "vpp": 2, "hf_path": "/models/hf"}),
        ("v2_llama_pp2dualpipev", {"schedule": "dualpipev", "vpp": 2}),
        ("v2_dsv3_gg_mmsplit_tp2pp2ep2", {"mla_mm_split": True, "moe_tp_extend_ep": False, "mtp": 0}),
        ("v2_dsv3_gg_tpext_tp2ep2", {"moe_tp_extend_ep": True, "experts_form": "grouped"}),
        ("v2_dsv3mtp_gg_tp2pp2ep2", {"mtp": 1, "model_type": "deepseek_v3"}),
        ("v2_qwen3_moe_etp1_tp2ep2", {"etp": 1, "tp": 2, "experts_form": "sequential"}),
    ],
)
def test_layout_of_real_checkpoints(name: str, layout: dict[str, Any]) -> None:
    found = values(trained(name).args)
    assert {n: found.get(n) for n in layout} == layout


def test_an_object_counts_as_absent() -> None:
    assert "model_type" not in read_facts(trained("llama").args)
