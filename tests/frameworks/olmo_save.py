#!/usr/bin/env python
"""Train a small model of OLMo-core's for a step and save it with its checkpointer, in one process on CPU.

    PYTHONPATH=LIBRARY python olmo_save.py NAME OUT

OUT gets the run, what the model answers, and in ``hf`` the weights as OLMo-core exports them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file

# What reads over the network.
for _name in ("cached_path", "cached_path.schemes"):
    sys.modules[_name] = mock.MagicMock()

from olmo_core.nn.attention import AttentionBackendName, SlidingWindowAttentionConfig
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.hf.convert import convert_state_to_hf
from olmo_core.nn.layer_norm import LayerNormType
from olmo_core.nn.rope import StepwiseRoPEScalingConfig, YaRNRoPEScalingConfig
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from olmo_core.optim import AdamWConfig
from olmo_core.train.checkpoint import Checkpointer
from olmo_core.train.train_module import TransformerTrainModule

SIZES = {"d_model": 64, "vocab_size": 96, "n_layers": 5, "n_heads": 4, "layer_norm_eps": 1e-6}
OLMO = {"block_name": TransformerBlockType.reordered_norm, "qk_norm": True, "rope_theta": 500000}
WINDOWS = {
    "sliding_window": SlidingWindowAttentionConfig(
        pattern=[8, 8, -1], force_full_attention_on_first_layer=False, force_full_attention_on_last_layer=True
    ),
    "attn_backend": AttentionBackendName.torch,
}


def _made(**more: object) -> TransformerConfig:
    inner = FeedForwardConfig(hidden_size=112, bias=False)
    return TransformerConfig.llama_like(**{**SIZES, "feed_forward": inner, **more})


def _scaled(config: TransformerConfig) -> TransformerConfig:
    """Scale the rotary embedding of layers without a window, as OLMo 3 is made longer."""
    return config.with_rope_scaling(
        YaRNRoPEScalingConfig(factor=4, beta_fast=32, beta_slow=1, old_context_len=32),
        full_attn_layers_only=True,
    )


MODELS = {
    "llama": lambda: _made(
        n_kv_heads=2,
        rope_theta=500000,
        rope_scaling=StepwiseRoPEScalingConfig(
            factor=8.0, low_freq_proportion=0.0, high_freq_proportion=0.25, old_context_len=32
        ),
    ),
    "qwen3": lambda: _made(
        n_kv_heads=2,
        head_dim=24,
        qk_norm=True,
        use_head_qk_norm=True,
        rope_theta=1000000,
        layer_norm_name=LayerNormType.qwen_rms,
        tie_word_embeddings=True,
    ),
    "olmo2": lambda: _made(**OLMO, n_kv_heads=2),
    "olmo3": lambda: _made(**OLMO, **WINDOWS),
    "olmo3-long": lambda: _scaled(_made(**OLMO, **WINDOWS)),
}


def main(name: str, out: Path) -> None:
    """Make, train and save."""
    torch.manual_seed(0)
    config = MODELS[name]()
    model = config.build(init_device="cpu")
    module = TransformerTrainModule(
        model, AdamWConfig(), rank_microbatch_size=128, max_sequence_length=128, device=torch.device("cpu")
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randint(0, 96, (2, 24))
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    module.optim.step()
    run = out / "run" / "step10"
    Checkpointer(work_dir=out / "work").save(run, module, {"global_step": 10})
    # scripts/train: ConfigSaverCallback writes the run's settings beside the first save, and into each.
    said = {"model": config.as_config_dict(), "train_module": {"max_sequence_length": 128}}
    (run / "config.json").write_text(json.dumps(said))
    with torch.no_grad():
        torch.save({"tokens": tokens, "logits": model(tokens)}, out / "answer.pt")
    (out / "hf").mkdir()
    kind = SimpleNamespace(model_type="olmo2" if name.startswith("olmo") else name, num_hidden_layers=5)
    made = convert_state_to_hf(kind, dict(model.state_dict()))
    if config.tie_word_embeddings:
        del made["lm_head.weight"]
    save_file({n: t.contiguous().clone() for n, t in made.items()}, out / "hf" / "model.safetensors")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        main(sys.argv[1], Path(sys.argv[2]))
        dist.destroy_process_group()
