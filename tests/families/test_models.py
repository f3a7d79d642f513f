"""A true model goes to ranks and back bit for bit, and its config.json comes from the arguments there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from running import assert_equal, loaded, succeeds

pytestmark = pytest.mark.filterwarnings("ignore")
Fields = dict[str, Any]

TINY: Fields = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
N_TINY: Fields = dict(
    vocab_size=61, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
)
LATENT: Fields = dict(
    q_lora_rank=16,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    num_key_value_heads=4,
)
ROUTED: Fields = dict(
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    n_group=2,
    topk_group=1,
)
SPARSE = ["dense", "sparse", "sparse", "sparse"]
INDEX: Fields = dict(mlp_layer_types=SPARSE, index_topk=64, index_n_heads=4, index_head_dim=8)
EXPERTS: Fields = dict(num_experts=4, num_experts_per_tok=2)
LOCAL: Fields = dict(num_local_experts=4, num_experts_per_tok=2)
FACTORS: Fields = dict(
    embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=2.0
)
MIXED = ["sliding_attention", "full_attention"] * 2
TURNS = ["linear_attention", "full_attention"] * 2
DELTA: Fields = dict(
    layer_types=[*["linear_attention"] * 3, "full_attention"],
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    head_dim=16,
)  # fmt: skip
KDA: Fields = dict(
    linear_num_heads=2, linear_head_dim=16, linear_conv_kernel_dim=4,
    layer_types=["linear_attention", "full_attention"] * 2,
)  # fmt: skip
MAMBA: Fields = dict(
    mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=8, mamba_chunk_size=8, mamba_expand=2
)
# fmt: off
MODELS: dict[str, Fields] = {
    "glm4_moe_lite": LATENT | ROUTED | dict(mlp_layer_types=SPARSE),
    "deepseek_v32": LATENT | ROUTED | INDEX,
    "glm_moe_dsa": LATENT | ROUTED | INDEX,
    "minicpm3": LATENT | dict(scale_emb=3, scale_depth=1.1, dim_model_base=16),
    "youtu": LATENT,
    "ministral": dict(head_dim=8, sliding_window=8, layer_types=MIXED),
    "ministral3": dict(head_dim=16),
    "dots1": ROUTED | dict(first_k_dense_replace=1),
    "solar_open": ROUTED | dict(head_dim=8),
    "hunyuan_v1_dense": dict(head_dim=8),
    "hunyuan_v1_moe": dict(head_dim=8, num_experts=4, moe_topk=2),
    "hy_v3": EXPERTS | dict(head_dim=8, moe_intermediate_size=16, mlp_layer_types=SPARSE),
    "smollm3": dict(no_rope_layers=[1, 0, 1, 1]),
    "granite": FACTORS | dict(mlp_bias=True, attention_bias=True),
    "granitemoe": FACTORS | LOCAL,
    "granitemoeshared": FACTORS | LOCAL | dict(shared_intermediate_size=24),
    "hyperclovax": FACTORS | dict(head_dim=8),
    "phi": {},
    "phimoe": dict(num_local_experts=4, num_experts_per_tok=2, lm_head_bias=True, attention_bias=True),
    "gemma": dict(head_dim=8),
    "gemma2": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3_text": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=16, layer_types=MIXED),
    "vaultgemma": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=16),
    "minimax_m2": dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "olmo": dict(clip_qkv=2.0),
    "olmo2": {},
    "olmo3": dict(sliding_window=8, layer_types=MIXED),
    "olmoe": dict(num_experts=4, num_experts_per_tok=2),
    "exaone4": dict(sliding_window=8, layer_types=MIXED),
    "exaone_moe": dict(
        num_experts=4, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=16,
        sliding_window=8, layer_types=MIXED, mlp_layer_types=SPARSE,
    ),
    "ernie4_5": dict(head_dim=8),
    "ernie4_5_moe": dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_layer_end_index=3),
    "cohere": dict(logit_scale=0.5),
    "cohere2": dict(head_dim=8, sliding_window=8, layer_types=MIXED),
    "cohere2_moe": EXPERTS | dict(head_dim=8, sliding_window=8, layer_types=MIXED),
    "starcoder2": dict(sliding_window=None),
    "nemotron": dict(head_dim=8),
    "llama4_text": dict(
        head_dim=8, num_local_experts=4, interleave_moe_layer_step=2, intermediate_size_mlp=24,
        no_rope_layers=[1, 0, 1, 1], attention_chunk_size=8,
    ),
    "arcee": dict(head_dim=8),
    "helium": dict(head_dim=8),
    "cwm": dict(head_dim=8, sliding_window=8, layer_types=MIXED),
    "nanochat": {},
    "glm4": dict(head_dim=8),
    "axk1": LATENT | ROUTED | dict(mlp_layer_types=SPARSE),
    "afmoe": EXPERTS | dict(
        head_dim=8, moe_intermediate_size=16, num_dense_layers=1, num_shared_experts=1, sliding_window=8
    ),
    "laguna": EXPERTS | dict(
        head_dim=8, moe_intermediate_size=16, shared_expert_intermediate_size=24, mlp_layer_types=SPARSE
    ),
    "flex_olmo": EXPERTS,
    "gemma4_text": dict(
        head_dim=8, global_head_dim=16, sliding_window=8, layer_types=MIXED, hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=61, enable_moe_block=True, num_experts=4, top_k_experts=2,
        moe_intermediate_size=16,
    ),
    "apertus": {},
    "bitnet": {},
    "diffllama": dict(head_dim=8),
    "doge": {},
    "mamba": dict(state_size=4, time_step_rank=2),
    "gpt_oss": LOCAL | dict(head_dim=8, sliding_window=8, layer_types=MIXED),
    "qwen3_next": EXPERTS | DELTA | dict(moe_intermediate_size=16, shared_expert_intermediate_size=24),
    "qwen3_5_text": DELTA,
    "mamba2": dict(num_heads=4, head_dim=16, n_groups=2, state_size=8, chunk_size=8),
    "falcon_h1": MAMBA | dict(mamba_d_ssm=64, mamba_rms_norm=True),
    "nemotron_h": ROUTED | dict(
        layers_block_type=["mamba", "moe", "attention", "mlp"], mamba_num_heads=4, mamba_head_dim=16,
        n_groups=2, ssm_state_size=8, chunk_size=8, head_dim=8, moe_shared_expert_intermediate_size=16,
    ),
    "granitemoehybrid": FACTORS | LOCAL | MAMBA | dict(layer_types=TURNS, shared_intermediate_size=24),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2, block_multiple_of=8),
    "lfm2_moe": EXPERTS | dict(
        layer_types=["conv", "full_attention"] * 2, moe_intermediate_size=16, num_dense_layers=1
    ),
    "lfm3": dict(layer_types=["conv", "full_attention"] * 2, head_dim=8),
    "kimi_linear": LATENT | KDA | dict(
        q_lora_rank=None, head_dim=16, num_experts=4, num_experts_per_token=2, num_shared_experts=1,
        moe_intermediate_size=16, num_expert_group=2, topk_group=1,
    ),
    "mimo_v2_flash": ROUTED | dict(head_dim=16, v_head_dim=8, layer_types=MIXED, mlp_layer_types=SPARSE),
    "hy_v4": LATENT | ROUTED | INDEX | dict(hc_mult=2),
    "deepseek_v4": ROUTED | dict(
        head_dim=16, q_lora_rank=16, qk_rope_head_dim=8, o_groups=2, o_lora_rank=8, hc_mult=2,
        index_n_heads=4, index_head_dim=8, index_topk=8, num_key_value_heads=1,
        layer_types=["sliding_attention", "compressed_sparse_attention",
                     *["heavily_compressed_attention"] * 2],
        mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
    ),
    "minimax_m3_vl_text": LOCAL | dict(
        head_dim=8, dense_intermediate_size=48, shared_intermediate_size=24, mlp_layer_types=SPARSE,
    ),
    "minimax": LOCAL | dict(head_dim=8, block_size=8),
    "gpt_neox": {},
    "stablelm": dict(use_qkv_bias=True),
    "persimmon": {},
    "falcon": dict(num_kv_heads=2, new_decoder_architecture=True),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "biogpt": {},
    "bloom": dict(n_layer=4, n_head=4),
    "gptj": N_TINY | dict(rotary_dim=4),
    "codegen": N_TINY | dict(rotary_dim=4, n_ctx=64),
    "gpt_bigcode": N_TINY,
    "gpt_neo": dict(num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=8),
    "xglm": dict(d_model=32, ffn_dim=48, num_layers=4, attention_heads=4),
    "mpt": dict(d_model=32, n_heads=4, n_layers=4, max_seq_len=64),
}
# fmt: on
ALONE = ("gptj", "codegen", "gpt_bigcode", "gpt_neo", "xglm", "mpt", "bloom")  # their own names of sizes


def model_of(kind: str, fields: Fields) -> torch.nn.Module:
    """Return a model with weights that no two tensors share, and norms that are not ones."""
    sizes = {k: v for k, v in TINY.items() if kind not in ALONE or k.endswith("_id") or k == "vocab_size"}
    sizes |= {"hidden_size": 32} if kind in ("bloom", "gpt_neo") else {}
    sizes |= {"max_position_embeddings": 64} if kind in ("gpt_neo", "xglm") else {}
    config = transformers.CONFIG_MAPPING[kind](**{**sizes, **fields})
    torch.manual_seed(len(kind))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                one = tensor.ndim <= 1 and name.endswith("weight")
                tensor.copy_(torch.randn(tensor.shape) * 0.1 + (1 if one else 0))
    return model  # type: ignore[no-any-return]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.randint(3, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(tokens).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", MODELS)
def test_to_ranks_and_back(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, MODELS[kind])
    model.save_pretrained(tmp_path / "hf")  # type: ignore[operator]
    sparse = any(".experts." in name for name in model.state_dict())
    layout = ["--tp", "2", "--ep", "2"] if sparse else ["--tp", "2", "--pp", "2", "--vpp", "2"]
    succeeds("megatron-split", tmp_path / "hf", tmp_path / "ranks", *layout)
    succeeds("megatron-merge", tmp_path / "ranks", tmp_path / "out", "--vocab-size", "61")
    assert_equal(loaded(tmp_path / "hf"), loaded(tmp_path / "out"))
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["model_type"] == kind
    assert torch.equal(logits(tmp_path / "hf"), logits(tmp_path / "out"))
