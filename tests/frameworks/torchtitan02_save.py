#!/usr/bin/env python
"""Train a small model of torchtitan 0.2 for a step and save it with its checkpointer, in one process on CPU.

    PYTHONPATH=LIBRARY python torchtitan02_save.py NAME OUT

As ``torchtitan_save.py``; until 0.2 models, names and the checkpointer were others.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

# What a log and data need.
for _name in ("torch.utils.tensorboard", "datasets", "datasets.distributed"):
    sys.modules[_name] = mock.MagicMock()

from safetensors.torch import save_file
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.lr_scheduler import LRSchedulersContainer
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config.job_config import Checkpoint
from torchtitan.models.deepseek_v3 import DeepSeekV3Model, DeepSeekV3ModelArgs
from torchtitan.models.deepseek_v3.model.state_dict_adapter import DeepSeekV3StateDictAdapter
from torchtitan.models.llama3 import Transformer, TransformerModelArgs
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.models.moe import MoEArgs
from torchtitan.models.qwen3 import Qwen3Model, Qwen3ModelArgs
from torchtitan.models.qwen3.model.state_dict_adapter import Qwen3StateDictAdapter

SIZES: dict[str, Any] = {"dim": 128, "n_layers": 2, "n_heads": 4, "vocab_size": 256, "max_seq_len": 128}
HF: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
Built = tuple[torch.nn.Module, Any, dict[str, Any]]


def _llama() -> Built:
    args = TransformerModelArgs(**SIZES, n_kv_heads=2, multiple_of=64, norm_eps=1e-6, rope_theta=500000)
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": 384,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", **scaling, "original_max_position_embeddings": 8192},
    }
    return Transformer(args), Llama3StateDictAdapter(args, None), config


def _qwen() -> Built:
    moe = MoEArgs(num_experts=6, num_shared_experts=0, top_k=2, score_func="softmax", route_norm=True)
    moe.score_before_experts, moe.use_grouped_mm = False, False
    args = Qwen3ModelArgs(
        **SIZES,
        n_kv_heads=2,
        head_dim=48,
        hidden_dim=192,
        moe_enabled=True,
        moe_inter_dim=64,
        moe_args=moe,
    )
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "num_key_value_heads": 2,
        "head_dim": 48,
        "rope_theta": 1000000.0,
    }
    return Qwen3Model(args), Qwen3StateDictAdapter(args, None), config


def _deepseek() -> Built:
    moe = MoEArgs(num_experts=8, num_shared_experts=2, top_k=3, score_func="sigmoid", route_norm=True)
    moe.route_scale, moe.score_before_experts, moe.use_grouped_mm = 2.5, False, False
    args = DeepSeekV3ModelArgs(
        **SIZES,
        inter_dim=192,
        moe_inter_dim=64,
        n_dense_layers=1,
        moe_args=moe,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        norm_eps=1e-6,
        original_seq_len=128,
    )
    args.moe_impl = "standard"  # 0.2.2 reads it of the job's settings
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
        "rope_theta": 10000.0,
        "rope_scaling": None,
    }
    return DeepSeekV3Model(args), DeepSeekV3StateDictAdapter(args, None), config


MODELS = {"llama3": _llama, "qwen3-moe": _qwen, "deepseek_v3": _deepseek}


def main(name: str, out: Path) -> None:
    """Make, train and save."""
    torch.manual_seed(0)
    counted = torch.histc  # which the CPU does for floating point alone
    torch.histc = lambda values, *args, **kwargs: counted(values.float(), *args, **kwargs).long()
    model, adapter, config = MODELS[name]()
    with torch.no_grad():
        model.init_weights(buffer_device=torch.device("cpu"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.norm.eps = 1e-6  # DeepSeek-V3's last norm has torch's own there, whatever is asked for
    for key, buffer in model.named_buffers():
        if "expert_bias" in key and config["model_type"] == "deepseek_v3":
            torch.nn.init.normal_(buffer, std=0.1)
    optimizers = OptimizersContainer([model], torch.optim.AdamW, {"lr": 1e-3})
    tokens = torch.randint(0, 256, (2, 24))
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizers.step()
    for module in model.modules():  # what the step counted
        if hasattr(module, "tokens_per_expert"):
            module.tokens_per_expert.zero_()
    saver = CheckpointManager(
        dataloader=None,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=LRSchedulersContainer(optimizers, lambda step: 1.0),
        states={},
        checkpoint_config=Checkpoint(enable=True, interval=5),
        sd_adapter=adapter,
        base_folder=str(out / "run"),
    )
    del saver.states["dataloader"]
    saver.save(5)
    with torch.no_grad():
        torch.save({"tokens": tokens, "logits": model(tokens)}, out / "answer.pt")
    (out / "hf").mkdir()
    (out / "hf" / "config.json").write_text(json.dumps({**HF, **config}))
    made = adapter.to_hf(model.state_dict())
    save_file({n: t.contiguous().clone() for n, t in made.items()}, out / "hf" / "model.safetensors")
    saver.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        main(sys.argv[1], Path(sys.argv[2]))
        dist.destroy_process_group()
