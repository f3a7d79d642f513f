#!/usr/bin/env python
"""Train a small model of torchtitan's for a step and save it with its checkpointer, in one process on CPU.

    PYTHONPATH=LIBRARY python torchtitan_save.py NAME OUT

OUT gets the run, what the model answers, and in ``hf`` what torchtitan's own adapter makes of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.attention.flex_attention import flex_attention
from torchtitan.components.checkpointer.dcp import CheckpointManager
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.models import deepseek_v3, llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, RMSNorm, moe
from torchtitan.models.common.attention import FlexAttention
from torchtitan.protocols.model_spec import ModelSpec

SEQUENCE = 24
ROPE: dict[str, Any] = {
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "vocab_size": 2048,
    "hidden_size": 256,
}


def _llama(tied: bool) -> tuple[ModelSpec, dict[str, Any]]:
    spec = llama3.model_registry("debugmodel", attn_backend="flex")
    config = spec.model
    rope = ComplexRoPE.Config(dim=16, max_seq_len=128, theta=500000, scaling="llama")
    config.layers = llama3._build_llama3_layers(
        n_layers=3, dim=256, n_heads=16, n_kv_heads=4, hidden_dim=384, rope=rope, attn_backend="flex"
    )
    config.enable_weight_tying = tied
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return spec, {
        **ROPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", **scaling, "original_max_position_embeddings": 8192},
        "tie_word_embeddings": tied,
    }


def _qwen(sparse: bool) -> tuple[ModelSpec, dict[str, Any]]:
    spec = qwen3.model_registry("debugmodel_moe" if sparse else "debugmodel", attn_backend="flex")
    config = spec.model
    own: dict[str, Any] = {
        "n_layers": 3,
        "dim": 256,
        "n_heads": 8,
        "n_kv_heads": 2,
        "head_dim": 64,
        "rope": CosSinRoPE.Config(dim=64, max_seq_len=128, theta=1000000.0),
        "attn_backend": "flex",
    }
    if sparse:
        config.layers = qwen3._build_qwen3_moe_layers(
            **own, moe_hidden_dim=64, num_experts=6, top_k=2, moe_comm_backend="standard"
        )
    else:
        config.layers = qwen3._build_qwen3_layers(**own, hidden_dim=384)
    moe = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    return spec, {
        **ROPE,
        **(moe if sparse else {}),
        "architectures": ["Qwen3MoeForCausalLM" if sparse else "Qwen3ForCausalLM"],
        "model_type": "qwen3_moe" if sparse else "qwen3",
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": not sparse,
    }


def _deepseek(rank: int, ahead: int) -> tuple[ModelSpec, dict[str, Any]]:
    spec = deepseek_v3.model_registry("debugmodel", attn_backend="flex")
    config = spec.model
    config.layers = deepseek_v3._build_dsv3_layers(
        n_layers=3,
        n_dense_layers=1,
        dim=256,
        n_heads=4,
        q_lora_rank=rank,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        mscale=1.0,
        dense_hidden_dim=384,
        moe_hidden_dim=64,
        num_experts=8,
        num_shared_experts=2,
        router_top_k=3,
        router_score_func="sigmoid",
        router_num_expert_groups=4,
        router_num_limited_groups=2,
        router_route_scale=2.5,
        router_route_norm=True,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(
            dim=16,
            max_seq_len=128,
            theta=10000.0,
            scaling="yarn",
            rope_factor=4.0,
            beta_fast=32.0,
            beta_slow=1.0,
            original_seq_len=32,
        ),
    )
    config.mtp_layers = deepseek_v3._build_mtp_layers(config.layers[-1], dim=256, num_mtp_layers=ahead)
    yarn = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}
    return spec, {
        **ROPE,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "intermediate_size": 384,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": rank or None,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": ahead,
        "rope_theta": 10000.0,
        "rope_interleave": True,
        "rope_scaling": {
            **yarn,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 32,
        },
        "tie_word_embeddings": False,
    }


MODELS = {
    "llama3": lambda: _llama(False),
    "llama3-tied": lambda: _llama(True),
    "qwen3": lambda: _qwen(False),
    "qwen3-moe": lambda: _qwen(True),
    "deepseek_v3": lambda: _deepseek(48, 0),
    "deepseek_v3-mtp": lambda: _deepseek(0, 1),
}


def stand_in() -> None:
    """Compute attention as it is written, and experts in float32, not in bfloat16 whatever is trained."""

    def product(self: Any, A: torch.Tensor, B_t: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        starts = [0, *offs.tolist()]
        parts = [A[lo:hi] @ b for lo, hi, b in zip(starts, starts[1:], B_t, strict=False)]
        return torch.cat([*parts, A.new_zeros(A.shape[0] - starts[-1], B_t.shape[-1])])

    FlexAttention._compiled_flex_attn = staticmethod(flex_attention)
    moe.GroupedExperts._grouped_mm = product
    torch.Tensor.bfloat16 = torch.Tensor.float


def main(name: str, out: Path) -> None:
    """Make, train and save."""
    torch.manual_seed(0)
    stand_in()
    spec, config = MODELS[name]()
    model = spec.model.build()
    model.init_states(buffer_device=torch.device("cpu"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(
            module, RMSNorm
        ):  # transformers' DeepSeek-V3 has 1e-6 in latent attention whatever is said
            module.eps = 1e-6
    for key, buffer in model.named_buffers():
        if "expert_bias" in key and config["model_type"] == "deepseek_v3":
            torch.nn.init.normal_(buffer, std=0.1)
    adamw = default_adamw()
    adamw.implementation = "for-loop"
    optimizers = adamw.build(model_parts=[model])
    schedulers = LRSchedulersContainer.Config().build(optimizers=optimizers, training_steps=10)
    for parameter in model.parameters():  # flexible attention has no backward on CPU
        parameter.grad = torch.randn_like(parameter)
    optimizers.step()
    adapter = spec.state_dict_adapter(spec.model, None)
    saver = CheckpointManager.Config(enable=True, interval=5).build(
        dataloader=None,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={},
        sd_adapter=adapter,
        base_folder=str(out / "run"),
    )
    del saver.states["dataloader"]
    saver.save(5)
    tokens = torch.randint(0, 2048, (2, SEQUENCE))
    positions = torch.arange(SEQUENCE).expand(2, -1)
    with torch.no_grad():
        found = model(tokens, positions, model.get_attention_masks(positions))
    logits = found[0] if isinstance(found, list | tuple) else found
    torch.save({"tokens": tokens, "logits": logits}, out / "answer.pt")
    (out / "hf").mkdir()
    (out / "hf" / "config.json").write_text(json.dumps(config))
    made = adapter.to_hf(model.state_dict())
    save_file({n: t.contiguous().clone() for n, t in made.items()}, out / "hf" / "model.safetensors")
    saver.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        main(sys.argv[1], Path(sys.argv[2]))
        dist.destroy_process_group()
