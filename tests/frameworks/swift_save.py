#!/usr/bin/env python
"""Save a small Llama of megatron-core's with ms-swift's own saver, in one process on CPU.

    PYTHONPATH=LIBRARY:CORE python swift_save.py NAME OUT

NAME is ``full``. OUT gets the run, what the model answers, and in ``hf`` the model it was made of.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import core_release
import torch
import torch.distributed as dist
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def _swift() -> types.ModuleType:
    """Import the module of the saver, without what swift's packages import for models and data."""
    root = next(Path(p) for p in sys.path if (Path(p) / "swift" / "megatron").is_dir())
    for name in ("swift", "swift.utils", "swift.megatron", "swift.megatron.utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")))]
    said = {"get_logger": lambda: logging.getLogger("swift"), "is_master": lambda: True, "set_device": None}
    sys.modules["swift.utils"].__dict__.update(said, check_json_format=dict, init_process_group=None)
    sys.modules["mcore_bridge"] = mock.MagicMock(unwrap_model=lambda models: models)
    from swift.megatron.utils import megatron_lm_utils

    return megatron_lm_utils


def _model(folder: Path) -> None:
    """Make a model as it is published."""
    torch.manual_seed(0)
    shapes = {"model.embed_tokens.weight": (96, 64), "model.norm.weight": (64,), "lm_head.weight": (96, 64)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (64, 64) for part in "qo"}
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (32, 64) for part in "kv"}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (96, 64) for part in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (64, 96), f"{layer}input_layernorm.weight": (64,)}
        shapes |= {f"{layer}post_attention_layernorm.weight": (64,)}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(
        {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors"
    )


def main(out: Path) -> None:
    """Make and save."""
    saver = _swift()
    base = out / "published"
    _model(base)
    model, _, _ = core_release.built(base)
    args = argparse.Namespace(
        model="org/published",
        model_dir=str(base),
        model_type="llama3",
        tuner_type="full",
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        expert_model_parallel_size=1,
        data_parallel_random_init=False,
        dist_ckpt_save_pre_mcore_014=False,
        dist_ckpt_optim_fully_reshardable=False,
        no_save_optim=True,
        no_save_rng=True,
        async_save=False,
        output_dir=str(out / "run" / "checkpoint-5"),
    )
    saver._get_rng_state = lambda **_: None
    saver.save_mcore_checkpoint(args, [model], iteration=5)
    said = {name: value for name, value in vars(args).items() if name != "output_dir"}
    (Path(args.output_dir) / "args.json").write_text(json.dumps(said))
    # Dropout, of which there is none, asks for the state of a GPU's random numbers.
    tracker = sys.modules["megatron.core.tensor_parallel.random"].get_cuda_rng_tracker()
    tracker.fork = lambda *_: contextlib.nullcontext()
    model.eval()
    tokens = torch.randint(0, 96, (2, 24))
    mask = torch.ones(1, 1, 24, 24, dtype=torch.bool).triu(1)
    with torch.no_grad():
        logits = model(tokens, torch.arange(24).expand(2, -1), mask)
    torch.save({"tokens": tokens, "logits": logits}, out / "answer.pt")
    (out / "hf").mkdir()
    (out / "hf" / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())


if __name__ == "__main__":
    core_release.stand_in()
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        main(Path(sys.argv[2]))
