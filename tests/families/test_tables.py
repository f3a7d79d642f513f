"""A family's table names and packs tensors as the architecture's own code reads them, in both directions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ckptconv.errors import PlanError
from ckptconv.families import FAMILIES, Family, find_family
from ckptconv.relations import Relation, Spec

Array = NDArray[np.int64]
Config = dict[str, Any]

BASE: Config = dict(
    vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
GPT: Config = dict(vocab_size=11, n_embd=16, n_head=4, n_layer=2, n_positions=7)
LATENT: Config = dict(q_lora_rank=6, kv_lora_rank=5, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3)
ROUTED: Config = dict(
    n_routed_experts=3, n_shared_experts=2, moe_intermediate_size=5, first_k_dense_replace=1
)
INDEX: Config = dict(index_n_heads=4, index_head_dim=2)
MANY: Config = dict(num_experts=3, moe_intermediate_size=5)
DELTA: Config = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=3, linear_value_head_dim=5,
    linear_conv_kernel_dim=4, shared_expert_intermediate_size=7,
)  # fmt: skip
STATE: Config = dict(vocab_size=11, hidden_size=16, num_hidden_layers=2, n_groups=2)
MAMBA: Config = dict(mamba_n_heads=4, mamba_d_head=3, mamba_n_groups=2, mamba_d_state=5, mamba_d_conv=4)
TURNS: Config = dict(layer_types=["mamba", "attention", "mamba"])
NEMOTRON: Config = STATE | dict(
    mamba_num_heads=4, mamba_head_dim=3, ssm_state_size=5, conv_kernel=4, hybrid_override_pattern="M*-EM",
    num_attention_heads=4, num_key_value_heads=2, head_dim=5, intermediate_size=12, n_routed_experts=3,
    moe_intermediate_size=5, moe_shared_expert_intermediate_size=7,
)  # fmt: skip
KDA: Config = MANY | dict(
    linear_num_heads=2, linear_head_dim=3, linear_conv_kernel_dim=4, num_shared_experts=1, q_lora_rank=None
)
V4: Config = dict(
    head_dim=4, q_lora_rank=6, num_key_value_heads=1, num_experts_per_tok=2, hc_mult=2, o_groups=2,
    o_lora_rank=3,
)  # fmt: skip
CHATGLM: Config = dict(
    padded_vocab_size=11, hidden_size=16, ffn_hidden_size=12, num_layers=2, num_attention_heads=4,
    kv_channels=4, multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True,
)  # fmt: skip
# fmt: off
CONFIGS: list[tuple[str, Config]] = [
    ("llama", BASE),
    ("llama", BASE | dict(attention_bias=True, mlp_bias=True, head_dim=6, tie_word_embeddings=True)),
    ("mistral", BASE),
    ("minicpm", BASE),
    ("minicpm", BASE | dict(tie_word_embeddings=False)),
    ("qwen", BASE | dict(num_key_value_heads=None)),
    ("qwen", BASE | dict(num_key_value_heads=None, kv_channels=6, no_bias=False)),
    ("qwen2", BASE),
    ("qwen3", BASE),
    ("qwen2_moe", BASE | MANY | dict(shared_expert_intermediate_size=7, mlp_only_layers=[0])),
    ("qwen3_moe", BASE | MANY | dict(decoder_sparse_step=2)),
    ("mixtral", BASE | dict(num_local_experts=3)),
    ("gpt2", GPT),
    ("bloom", dict(vocab_size=11, n_embed=16, n_head=4, n_layer=2)),
    ("gemma", BASE),
    ("gemma2", BASE | dict(head_dim=6)),
    ("phi3", BASE),
    ("glm", BASE),
    ("glm4", BASE | dict(attention_bias=False)),
    ("seed_oss", BASE | dict(attention_out_bias=True)),
    ("baichuan", BASE | dict(num_key_value_heads=None)),
    ("internlm2", BASE),
    ("internlm2", BASE | dict(bias=True)),
    ("chatglm", CHATGLM),
    ("chatglm", CHATGLM | dict(multi_query_attention=False, add_qkv_bias=False)),
    ("deepseek_v2", BASE | LATENT | ROUTED),
    ("deepseek_v2", BASE | LATENT | ROUTED | dict(q_lora_rank=None, mlp_bias=True, attention_bias=True)),
    ("deepseek_v3", BASE | LATENT | ROUTED),
    ("deepseek_v3", BASE | LATENT | ROUTED | dict(num_nextn_predict_layers=1)),
    ("deepseek_v3", BASE | LATENT | ROUTED | dict(num_nextn_predict_layers=2, q_lora_rank=None)),
    ("glm4_moe", BASE | ROUTED | dict(use_qk_norm=True, attention_bias=True, num_nextn_predict_layers=1)),
    ("glm4_moe", BASE | ROUTED),
    ("gpt_oss", BASE | dict(num_local_experts=3, head_dim=4)),
    ("qwen3_next", BASE | MANY | DELTA | dict(mlp_only_layers=[0])),
    ("qwen3_next", BASE | MANY | DELTA | dict(full_attention_interval=2, head_dim=6)),
    ("qwen3_next", BASE | MANY | DELTA | dict(mtp_num_hidden_layers=1, full_attention_interval=2)),
    ("qwen3_5_text", BASE | DELTA | dict(mtp_num_hidden_layers=1, full_attention_interval=2)),
    ("qwen3_5_moe_text", BASE | MANY | DELTA),
    ("mamba2", STATE | dict(num_heads=4, head_dim=3, state_size=5, conv_kernel=4, use_bias=True)),
    ("bamba", BASE | MAMBA | dict(layer_types=["mamba", "attention", "mamba"])),
    ("falcon_h1", BASE | MAMBA | dict(mamba_rms_norm=True)),
    ("falcon_h1", BASE | MAMBA | dict(mamba_proj_bias=True, mlp_bias=True, mamba_conv_bias=False)),
    ("nemotron_h", NEMOTRON),
    ("nemotron_h", NEMOTRON | dict(moe_latent_size=6, attention_bias=True, use_bias=True)),
    ("granitemoehybrid", BASE | MAMBA | TURNS | dict(num_local_experts=3, shared_intermediate_size=6)),
    ("granitemoehybrid", BASE | MAMBA | TURNS | dict(num_local_experts=0, shared_intermediate_size=6)),
    ("jamba", BASE | dict(num_experts=3, attn_layer_period=3, attn_layer_offset=1, mamba_dt_rank=3)),
    (
        "lfm2",
        BASE | dict(layer_types=["conv", "full_attention", "conv"], conv_bias=True, block_multiple_of=8),
    ),
    ("lfm2_moe", BASE | MANY | dict(layer_types=["conv", "full_attention", "conv"], num_dense_layers=1)),
    ("minimax", BASE | dict(layer_types=["full_attention", *["linear_attention"] * 2], num_local_experts=3)),
    ("bailing_hybrid", BASE | LATENT | KDA | dict(first_k_dense_replace=1, layer_group_size=2)),
    ("lfm3", BASE | dict(layer_types=["conv", "full_attention", "conv"], conv_bias=True, head_dim=4)),
    ("kimi_linear", BASE | LATENT | KDA | dict(
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    )),
    ("kimi_linear", BASE | LATENT | dict(
        q_lora_rank=None, num_experts=3, num_shared_experts=1, moe_intermediate_size=5,
        first_k_dense_replace=1,
        linear_attn_config=dict(num_heads=2, head_dim=3, short_conv_kernel_size=4, full_attn_layers=[2]),
    )),
    ("mimo_v2_flash", BASE | ROUTED | dict(
        head_dim=6, v_head_dim=4, layer_types=["full_attention", "sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    )),
    ("mistral4", BASE | LATENT | ROUTED),
    ("hy_v4", BASE | LATENT | ROUTED | INDEX | dict(hc_mult=2)),
    ("deepseek_v4", BASE | ROUTED | INDEX | V4 | dict(
        layer_types=["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        compress_rates=dict(compressed_sparse_attention=4, heavily_compressed_attention=128),
        mlp_layer_types=["hash_moe", "moe", "moe"],
    )),
    ("deepseek_v4", BASE | ROUTED | INDEX | V4 | dict(
        compress_ratios=[0, 4, 128, 0], num_hash_layers=1, num_nextn_predict_layers=1,
    )),
    ("longcat_flash", LATENT | dict(
        vocab_size=11, hidden_size=16, num_layers=2, num_attention_heads=4, ffn_hidden_size=12,
        expert_ffn_hidden_size=5, n_routed_experts=3, zero_expert_num=2,
    )),
    ("minimax_m3_vl_text", BASE | dict(
        num_local_experts=3, dense_intermediate_size=9, shared_intermediate_size=7,
        mlp_layer_types=["dense", "sparse", "sparse"],
    )),
    ("plm", BASE | LATENT | dict(q_lora_rank=None)),
    ("mimo", BASE | dict(num_nextn_predict_layers=2)),
    ("axk1", BASE | LATENT | ROUTED),
    ("afmoe", BASE | MANY | dict(num_dense_layers=1, num_shared_experts=2)),
    ("laguna", BASE | MANY | dict(shared_expert_intermediate_size=7, mlp_only_layers=[0])),
    ("flex_olmo", BASE | dict(num_experts=3)),
    ("gemma4_text", BASE | dict(
        head_dim=4, layer_types=["sliding_attention", "full_attention", "full_attention"], global_head_dim=6,
        hidden_size_per_layer_input=3, enable_moe_block=True, num_experts=3, moe_intermediate_size=5,
    )),
    ("gemma4_text", BASE | dict(layer_types=["full_attention"] * 3, attention_bias=True)),
    *((name, dict(vocab_size=11, hidden_size=16, num_hidden_layers=2)) for name in ("mamba", "falcon_mamba")),
    *((name, BASE) for name in ("apertus", "bitnet", "diffllama", "doge")),
    ("kimi_k2", BASE | LATENT | ROUTED),
    ("glm4_moe_lite", BASE | LATENT | ROUTED | dict(mlp_layer_types=["dense", "sparse", "sparse"])),
    ("deepseek_v32", BASE | LATENT | ROUTED | INDEX),
    ("glm_moe_dsa", BASE | LATENT | ROUTED | INDEX | dict(num_experts=256)),
    ("minicpm3", BASE | LATENT),
    ("youtu", BASE | LATENT | dict(mlp_bias=True)),
    *((name, BASE) for name in (
        "smollm3", "granite", "ministral", "ministral3", "internlm3", "helium", "cwm", "arcee", "nanochat",
        "ernie4_5", "hunyuan_v1_dense", "olmo", "olmo2", "olmo3", "exaone4", "cohere", "cohere2",
        "starcoder2", "nemotron", "phi", "stablelm", "persimmon", "gpt_neox", "gemma3_text", "vaultgemma",
        "hyperclovax",
    )),
    ("granitemoe", BASE | dict(num_local_experts=3)),
    ("granitemoeshared", BASE | dict(num_local_experts=3, shared_intermediate_size=7)),
    ("ernie4_5_moe", BASE | dict(
        moe_num_experts=3, moe_intermediate_size=5, moe_num_shared_experts=2, moe_layer_start_index=1,
    )),
    ("hunyuan_v1_moe", BASE | dict(num_experts=3)),
    ("hy_v3", BASE | MANY | dict(num_shared_experts=1, mlp_layer_types=["dense", "sparse", "sparse"])),
    ("olmoe", BASE | dict(num_experts=3)),
    ("exaone_moe", BASE | MANY | dict(num_shared_experts=2)),
    ("cohere2_moe", BASE | dict(num_experts=3)),
    ("llama4_text", BASE | dict(num_local_experts=3, interleave_moe_layer_step=2, intermediate_size_mlp=9)),
    ("minimax_m2", BASE | dict(num_local_experts=3)),
    ("phimoe", BASE | dict(num_local_experts=3)),
    ("phimoe", BASE | dict(num_local_experts=3, attention_bias=True, lm_head_bias=True)),
    ("dots1", BASE | ROUTED),
    ("solar_open", BASE | ROUTED | dict(first_k_dense_replace=0)),
    ("bailing_moe_v2", BASE | MANY | dict(first_k_dense_replace=1, num_shared_experts=1, use_qk_norm=True)),
    ("bailing_moe_v2", BASE | MANY | dict(first_k_dense_replace=1)),
    ("bailing_moe", BASE | MANY | dict(num_nextn_predict_layers=1, moe_router_enable_expert_bias=True)),
    ("falcon", BASE),
    ("falcon", BASE | dict(multi_query=False, parallel_attn=False, bias=True)),
    ("falcon", BASE | dict(new_decoder_architecture=True, num_kv_heads=2)),
    ("opt", BASE | dict(ffn_dim=12, max_position_embeddings=7)),
    ("opt", BASE | dict(max_position_embeddings=7, do_layer_norm_before=False, enable_bias=False)),
    ("xglm", dict(vocab_size=11, d_model=16, ffn_dim=12, num_layers=2, attention_heads=4)),
    ("biogpt", BASE | dict(max_position_embeddings=7)),
    ("gptj", GPT),
    ("codegen", GPT),
    ("gpt_neo", dict(vocab_size=11, hidden_size=16, num_layers=2, num_heads=4, max_position_embeddings=7)),
    ("gpt_bigcode", GPT),
    ("gpt_bigcode", GPT | dict(multi_query=False)),
    ("mpt", dict(vocab_size=11, d_model=16, n_layers=2, n_heads=4)),
    ("dbrx", dict(
        vocab_size=11, d_model=16, n_layers=2, n_heads=4, attn_config=dict(kv_n_heads=2),
        ffn_config=dict(ffn_hidden_size=12, moe_num_experts=3),
    )),
    *((name, dict(text_config=BASE, tie_word_embeddings=False)) for name in ("qwen2_vl", "qwen2_5_vl")),
    ("qwen3_vl", dict(text_config=BASE)),
    ("qwen2_5_omni_thinker", dict(text_config=BASE)),
    ("qwen3_omni_moe_thinker", dict(text_config=BASE | MANY)),
    ("qwen3_5", dict(text_config=BASE | DELTA | dict(mtp_num_hidden_layers=1))),
    ("qwen3_5_moe", dict(text_config=BASE | MANY | DELTA)),
    ("qwen3_vl_moe", dict(text_config=BASE | MANY)),
    ("glm4v", dict(text_config=BASE)),
    ("glm46v", dict(text_config=BASE)),
    ("glm4v_moe", dict(text_config=BASE | ROUTED)),
]
# fmt: on
each_config = pytest.mark.parametrize(
    ("model_type", "config"), CONFIGS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CONFIGS)]
)


def family_of(model_type: str) -> Family:
    found = find_family(model_type)
    assert found is not None
    return found


def made(family: Family, config: Config) -> dict[str, Spec]:
    return {name: Spec(shape, "BF16") for name, shape, _ in family.expected(config)}


def related(family: Family, config: Config, tensors: Mapping[str, Spec]) -> Relation:
    table = family.table(config)
    found, unknown = table.named(tensors)
    assert not unknown
    return table.relation(tensors, found, family.dims(config), "config.json")


def test_every_table_is_tried_here() -> None:
    tried = {model_type for model_type, _ in CONFIGS}
    assert tried == {t for f in FAMILIES if f.entries for t in f.model_types}


def test_a_model_type_has_one_family() -> None:
    counted = Counter(t for f in FAMILIES for t in f.model_types)
    assert [t for t, n in counted.items() if n > 1] == []


@each_config
def test_names_become_slots_and_the_same_names_again(model_type: str, config: Config) -> None:
    family = family_of(model_type)
    tensors = made(family, config)
    relation = related(family, config, tensors)
    relation.check()
    assert relation.left == tensors
    table = family.table(config)
    found, homeless = table.holding(relation.right)
    assert not homeless
    assert sorted(f.name for f in found) == sorted(tensors)
    assert table.specs(found, relation.right, family.dims(config)) == tensors
    assert relation.compose(relation.invert()).is_identity()


@each_config
def test_a_tensor_of_another_shape_is_refused_by_name(model_type: str, config: Config) -> None:
    family = family_of(model_type)
    tensors = made(family, config)
    for name, spec in ((n, s) for n, s in tensors.items() if s.shape):
        wrong = {**tensors, name: Spec((spec.shape[0] - 1, *spec.shape[1:]), spec.dtype)}
        with pytest.raises(PlanError, match=rf"{re.escape(name)} is \["):
            related(family, config, wrong)


@each_config
def test_a_tied_head_is_stored_once(model_type: str, config: Config) -> None:
    family = family_of(model_type)
    for tied in (True, False):
        this = {**config, "tie_word_embeddings": tied}
        relation = related(family, this, made(family, this))
        assert ("head" in relation.right) is not tied
        head = family.name_of("head")
        assert head is not None
        assert (head in relation.left) is not tied
        assert any(re.fullmatch(pattern, head) for pattern in family.ignored)


HUB_CODE: dict[str, str] = {
    "qwen": """
        transformer.wte.weight transformer.ln_f.weight lm_head.weight
        transformer.h.0.ln_1.weight transformer.h.0.attn.c_attn.weight transformer.h.0.attn.c_attn.bias
        transformer.h.0.attn.c_proj.weight transformer.h.0.ln_2.weight transformer.h.0.mlp.w1.weight
        transformer.h.0.mlp.w2.weight transformer.h.0.mlp.c_proj.weight""",
    "baichuan": """
        model.embed_tokens.weight model.norm.weight lm_head.weight
        model.layers.0.input_layernorm.weight model.layers.0.self_attn.W_pack.weight
        model.layers.0.self_attn.o_proj.weight model.layers.0.post_attention_layernorm.weight
        model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.up_proj.weight
        model.layers.0.mlp.down_proj.weight""",
    "internlm2": """
        model.tok_embeddings.weight model.norm.weight output.weight
        model.layers.0.attention_norm.weight model.layers.0.attention.wqkv.weight
        model.layers.0.attention.wo.weight model.layers.0.ffn_norm.weight
        model.layers.0.feed_forward.w1.weight model.layers.0.feed_forward.w2.weight
        model.layers.0.feed_forward.w3.weight""",
    "chatglm": """
        transformer.embedding.word_embeddings.weight transformer.encoder.final_layernorm.weight
        transformer.output_layer.weight transformer.encoder.layers.0.input_layernorm.weight
        transformer.encoder.layers.0.self_attention.query_key_value.weight
        transformer.encoder.layers.0.self_attention.query_key_value.bias
        transformer.encoder.layers.0.self_attention.dense.weight
        transformer.encoder.layers.0.post_attention_layernorm.weight
        transformer.encoder.layers.0.mlp.dense_h_to_4h.weight
        transformer.encoder.layers.0.mlp.dense_4h_to_h.weight""",
    "minicpm": """
        model.embed_tokens.weight model.norm.weight
        model.layers.0.input_layernorm.weight model.layers.0.self_attn.q_proj.weight
        model.layers.0.self_attn.k_proj.weight model.layers.0.self_attn.v_proj.weight
        model.layers.0.self_attn.o_proj.weight model.layers.0.post_attention_layernorm.weight
        model.layers.0.mlp.gate_proj.weight model.layers.0.mlp.up_proj.weight
        model.layers.0.mlp.down_proj.weight""",
}


@pytest.mark.parametrize("model_type", HUB_CODE)
def test_models_whose_code_is_on_the_hub_have_their_names(model_type: str) -> None:
    config = dict(next(c for t, c in CONFIGS if t == model_type))
    config["num_layers" if model_type == "chatglm" else "num_hidden_layers"] = 1
    assert sorted(made(family_of(model_type), config)) == sorted(HUB_CODE[model_type].split())


def test_layers_for_multi_token_prediction_are_numbered_after_the_others() -> None:
    config = BASE | LATENT | ROUTED | dict(num_nextn_predict_layers=1)
    family = family_of("deepseek_v3")
    body = {n for n in made(family, config) if n.startswith("model.layers.2.")}
    last = {n for n in made(family, config) if n.startswith("model.layers.3.")}
    own = ["enorm", "hnorm", "eh_proj", "shared_head.norm", "embed_tokens", "shared_head.head"]
    assert last == {n.replace(".2.", ".3.", 1) for n in body} | {f"model.layers.3.{n}.weight" for n in own}
    relation = related(family, config, made(family, config))
    assert relation.right["mtp.0.eh_proj"].shape == (16, 32)
    assert "mtp.0.moe.router_bias" in relation.right
    copies = {p.left.tensor: p.right.tensor for p in relation.pairs if p.left_copy}
    assert copies == {
        "model.layers.3.embed_tokens.weight": "embed",
        "model.layers.3.shared_head.head.weight": "head",
    }
    optional = {n for n, _, may_lack in family.expected(config) if may_lack}
    assert optional == last


def test_mimo_takes_the_hidden_states_first() -> None:
    """MiMo's input_proj takes (hidden, embedding), Megatron's eh_proj (embedding, hidden)."""
    name = "model.mtp_layers.1.input_proj.weight"
    stored, slots = packed("mimo", BASE | dict(num_nextn_predict_layers=2), name)
    assert_slots(slots, {"mtp.1.eh_proj": np.concatenate([stored[:, 16:], stored[:, :16]], axis=1)})


def test_without_their_slots_no_layer_for_multi_token_prediction_is_written() -> None:
    config = BASE | LATENT | ROUTED | dict(num_nextn_predict_layers=1)
    table = family_of("deepseek_v3").table(config)
    slots = related(family_of("deepseek_v3"), config, made(family_of("deepseek_v3"), config)).right
    found, _ = table.holding([s for s in slots if not s.startswith("mtp.")])
    assert not [f.name for f in found if f.name.startswith("model.layers.3.")]


def test_an_uncompressed_query_has_one_projection() -> None:
    config = BASE | LATENT | ROUTED
    compressed = made(family_of("deepseek_v2"), config)
    plain = made(family_of("deepseek_v2"), config | dict(q_lora_rank=None))
    at = "model.layers.0.self_attn."
    assert {n.removeprefix(at) for n in compressed.keys() - plain.keys() if n.startswith(at)} == {
        "q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight",
    }  # fmt: skip
    assert plain[f"{at}q_proj.weight"].shape == (4 * (4 + 2), 16)


# How tensors pack slots, computed the way each architecture's own code takes them apart.


def addresses(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    at = np.full(size, offset, np.int64)
    for axis, step in enumerate(stride):
        at += np.indices(size)[axis] * step
    return at.ravel()


def packed(model_type: str, config: Config, name: str) -> tuple[Array, dict[str, Array]]:
    """Fill a stored tensor with numbers, and return what its slots get from it."""
    family = family_of(model_type)
    tensors = made(family, config)
    relation = related(family, config, {name: tensors[name]})
    stored = np.arange(tensors[name].numel).reshape(tensors[name].shape)
    slots = {n: np.full(s.shape, -1) for n, s in relation.right.items()}
    for pair in relation.pairs:
        size, left, right = pair.aligned()
        target = slots[pair.right.tensor].reshape(-1)
        target[addresses(pair.right.offset, size, right)] = stored.ravel()[
            addresses(pair.left.offset, size, left)
        ]
    return stored, {n.removeprefix("layers.0."): a for n, a in slots.items()}


def assert_slots(got: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("model_type", "config", "name", "suffix"),
    [
        ("phi3", BASE, "model.layers.0.self_attn.qkv_proj.weight", ""),
        ("chatglm", CHATGLM, "transformer.encoder.layers.0.self_attention.query_key_value.weight", ""),
        ("chatglm", CHATGLM, "transformer.encoder.layers.0.self_attention.query_key_value.bias", ".bias"),
    ],
)
def test_query_then_key_then_value(model_type: str, config: Config, name: str, suffix: str) -> None:
    """Phi3Attention and ChatGLM's SelfAttention cut at heads * head_dim, then kv_heads * head_dim."""
    stored, slots = packed(model_type, config, name)
    want = {"attn.q": stored[:16], "attn.k": stored[16:24], "attn.v": stored[24:32]}
    assert_slots(slots, {n + suffix: a for n, a in want.items()})


@pytest.mark.parametrize(
    ("model_type", "name", "suffix"),
    [
        ("baichuan", "model.layers.0.self_attn.W_pack.weight", ""),
        ("qwen", "transformer.h.0.attn.c_attn.weight", ""),
        ("qwen", "transformer.h.0.attn.c_attn.bias", ".bias"),
    ],
)
def test_thirds_are_query_key_and_value(model_type: str, name: str, suffix: str) -> None:
    stored, slots = packed(model_type, BASE | dict(num_key_value_heads=None), name)
    want = zip(("attn.q", "attn.k", "attn.v"), np.split(stored, 3), strict=True)
    assert_slots(slots, {n + suffix: a for n, a in want})


@pytest.mark.parametrize(
    ("model_type", "config", "name"),
    [
        ("phi3", BASE, "model.layers.0.mlp.gate_up_proj.weight"),
        ("glm", BASE, "model.layers.0.mlp.gate_up_proj.weight"),
        ("glm4", BASE, "model.layers.0.mlp.gate_up_proj.weight"),
        ("chatglm", CHATGLM, "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"),
    ],
)
def test_gate_then_up(model_type: str, config: Config, name: str) -> None:
    """The activation is on the first of the two chunks."""
    stored, slots = packed(model_type, config, name)
    assert_slots(slots, {"mlp.gate": stored[:12], "mlp.up": stored[12:]})


def test_internlm2_keeps_query_groups_together() -> None:
    """InternLM2Attention: ``b q (h gs d) -> b q h gs d``; all but the last two of gs are queries."""
    stored, slots = packed("internlm2", BASE, "model.layers.0.attention.wqkv.weight")
    groups = stored.reshape(2, 2 + 2, 4, 16)
    want = {
        "attn.q": groups[:, :2].reshape(16, 16),
        "attn.k": groups[:, 2].reshape(8, 16),
        "attn.v": groups[:, 3].reshape(8, 16),
    }
    assert_slots(slots, want)
    assert slots["attn.q"][8, 0] == stored[16, 0]  # the first query of the second group


@pytest.mark.parametrize(("part", "suffix"), [("weight", ""), ("bias", ".bias")])
def test_bloom_keeps_heads_together(part: str, suffix: str) -> None:
    """BloomAttention._reshape: ``view(..., num_heads, 3, head_dim)``."""
    config = dict(vocab_size=11, n_embed=16, n_head=4, n_layer=2)
    stored, slots = packed("bloom", config, f"transformer.h.0.self_attention.query_key_value.{part}")
    heads = stored.reshape(4, 3, 4, *stored.shape[1:])
    whole = (16, *stored.shape[1:])
    want = {f"attn.{n}{suffix}": heads[:, i].reshape(whole) for i, n in enumerate("qkv")}
    assert_slots(slots, want)


def test_gpt2_stores_the_transpose() -> None:
    stored, slots = packed("gpt2", GPT, "transformer.h.0.attn.c_attn.weight")
    want = zip(("attn.q", "attn.k", "attn.v"), np.split(stored, 3, axis=1), strict=True)
    assert_slots(slots, {n: a.T for n, a in want})


@pytest.mark.parametrize(
    ("name", "rank", "widths", "parts"),
    [
        ("q_b_proj", 6, (4, 2), ("mla.q_b.nope", "mla.q_b.rope")),
        ("kv_b_proj", 5, (4, 3), ("mla.kv_b.k", "mla.kv_b.v")),
        ("q_proj", 16, (4, 2), ("mla.q.nope", "mla.q.rope")),
    ],
)
def test_latent_attention_splits_each_head(
    name: str, rank: int, widths: tuple[int, int], parts: tuple[str, str]
) -> None:
    """DeepseekV3Attention views ``(heads, a + b)`` and splits the last axis at a; no rotary reordering."""
    config = BASE | LATENT | ROUTED | (dict(q_lora_rank=None) if name == "q_proj" else {})
    stored, slots = packed("deepseek_v3", config, f"model.layers.0.self_attn.{name}.weight")
    heads = stored.reshape(4, sum(widths), rank)
    first, second = heads[:, : widths[0]], heads[:, widths[0] :]
    assert_slots(slots, {parts[0]: first.reshape(-1, rank), parts[1]: second.reshape(-1, rank)})


def test_the_activation_is_on_w2_in_qwen_1_and_on_w1_in_internlm2() -> None:
    qwen = BASE | dict(num_key_value_heads=None)
    for model_type, config, module, halves in (
        (
            "qwen",
            qwen,
            "transformer.h.0.mlp.{}.weight",
            {"w2": "mlp.gate", "w1": "mlp.up", "c_proj": "mlp.down"},
        ),
        (
            "internlm2",
            BASE,
            "model.layers.0.feed_forward.{}.weight",
            {"w1": "mlp.gate", "w3": "mlp.up", "w2": "mlp.down"},
        ),
    ):
        for name, slot in halves.items():
            stored, slots = packed(model_type, config, module.format(name))
            assert_slots(slots, {slot: stored})
    assert made(family_of("qwen"), qwen)["transformer.h.0.mlp.w1.weight"].shape == (6, 16)


def test_norms_around_attention_and_mlp() -> None:
    """HF's post_attention_layernorm is before the MLP in GLM-4, after attention in Gemma 2."""
    slots = ["attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"]
    for model_type, names in (
        ("gemma2", "input post_attention pre_feedforward post_feedforward"),
        ("glm4", "input post_self_attn post_attention post_mlp"),
        ("glm", "input - post_attention"),
    ):
        for slot, name in zip(slots, names.split(), strict=False):
            if name != "-":
                _, got = packed(model_type, BASE, f"model.layers.0.{name}_layernorm.weight")
                assert list(got) == [slot]
