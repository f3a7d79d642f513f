#!/usr/bin/env python
"""Train a small model of torchtune's for a step and save it with its checkpointers, in one process on CPU.

    PYTHONPATH=LIBRARY python torchtune_save.py MODEL-SAVER OUT

OUT gets the run, what the model answers, and in ``hf`` what torchtune itself makes of it. SAVER is ``tune``,
``hf``, ``meta``, ``dcp``, or ``lora`` and ``lora_hf``, which save as the recipe ``lora_finetune`` does.
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
from safetensors.torch import save_file

# What data needs.
for _name in (
    *("datasets", "datasets.distributed", "torchvision", "torchvision.transforms", "kagglehub", "blobfile"),
    *("torchvision.transforms.v2", "torchvision.transforms.v2.functional", "torchvision.io", "tokenizers"),
    *("kagglehub.auth", "kagglehub.exceptions"),
):
    if _name not in sys.modules:
        sys.modules[_name] = mock.MagicMock()

from torchtune import training
from torchtune.models import convert_weights, gemma, llama2, llama3, llama3_1, llama3_2, mistral, phi3, qwen2
from torchtune.models.phi3._convert_weights import phi3_tune_to_hf
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
from torchtune.modules.peft import (
    get_adapter_params,
    get_adapter_state_dict,
    get_merged_lora_ckpt,
    set_trainable_params,
)

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 64,
    "intermediate_dim": 112,
    "max_seq_len": 128,
    "norm_eps": 1e-6,
}
HF: dict[str, Any] = {
    "vocab_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 112,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
LORA = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
RANK, ALPHA = 4, 8.0


def _scaled(factor: float) -> dict[str, Any]:
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": factor, **bounds}}


def _config(architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    return {**HF, "architectures": [architecture], "model_type": model_type, **more}


_GEMMA = _config(
    "GemmaForCausalLM", "gemma", head_dim=16, tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"
)
# The class, what else it takes, its kind for the checkpointers, and the config.
MODELS: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "llama2": (llama2.llama2, {}, "LLAMA2", _config("LlamaForCausalLM", "llama")),
    "llama3": (
        llama3.llama3,
        {},
        "LLAMA3",
        _config("LlamaForCausalLM", "llama", rope_theta=500000.0),
    ),
    "llama3_1": (llama3_1.llama3_1, {}, "LLAMA3", _config("LlamaForCausalLM", "llama", **_scaled(8.0))),
    "llama3_2": (
        llama3_2.llama3_2,
        {},
        "LLAMA3_2",
        _config("LlamaForCausalLM", "llama", **_scaled(32.0), tie_word_embeddings=True),
    ),
    "mistral": (
        mistral.mistral,
        {},
        "MISTRAL",
        _config("MistralForCausalLM", "mistral", sliding_window=None),
    ),
    "qwen2": (qwen2.qwen2, {}, "QWEN2", _config("Qwen2ForCausalLM", "qwen2", rope_theta=1000000.0)),
    "qwen2_tied": (
        qwen2.qwen2,
        {"tie_word_embeddings": True},
        "QWEN2",
        _config("Qwen2ForCausalLM", "qwen2", rope_theta=1000000.0, tie_word_embeddings=True),
    ),
    "phi3": (
        phi3.phi3,
        {},
        "PHI3_MINI",
        _config("Phi3ForCausalLM", "phi3", sliding_window=None, pad_token_id=0),
    ),
    "gemma": (gemma.gemma, {"head_dim": 16}, "GEMMA", _GEMMA),
}


def exported(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what torchtune makes of a state dict for Hugging Face."""
    if name == "phi3":
        return phi3_tune_to_hf(state)
    sizes = {"num_heads": 4, "num_kv_heads": 2, "dim": 64}
    if name.startswith("qwen2"):
        return qwen2_tune_to_hf(state, **sizes, tie_word_embeddings=name.endswith("_tied"))
    return convert_weights.tune_to_hf(state, **sizes, head_dim=16)


def built(name: str, lora: bool) -> torch.nn.Module:
    """Return a model with numbers in it."""
    make, more, *_ = MODELS[name]
    if lora:
        module = sys.modules[f"torchtune.models.{name.partition('_tied')[0]}"]
        make = getattr(module, f"lora_{make.__name__}")
        more = {**more, **LORA, "lora_rank": RANK, "lora_alpha": ALPHA}
    model = make(**SIZES, **more)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def saver_of(saver: str, base: Path, run: Path, kind: str) -> Any:
    """Return the checkpointer that a recipe's settings name."""
    if saver == "dcp":
        return training.DistributedCheckpointer(str(base), str(run))
    classes = {"hf": training.FullModelHFCheckpointer, "meta": training.FullModelMetaCheckpointer}
    cls = classes.get(saver.removeprefix("lora_"), training.FullModelTorchTuneCheckpointer)
    files = ["model.safetensors"] if "hf" in saver else ["model.pt"]
    return cls(checkpoint_dir=str(base), checkpoint_files=files, model_type=kind, output_dir=str(run))


def main(case: str, out: Path, base: Path) -> None:
    """Make, train and save."""
    torch.manual_seed(0)
    name, saver = case.split("-")
    _, _, kind, config = MODELS[name]
    model = built(name, "lora" in saver)
    if "lora" in saver:
        set_trainable_params(model, get_adapter_params(model))
    whole = lambda: get_merged_lora_ckpt(  # noqa: E731
        {k: v.clone() for k, v in model.state_dict().items()}, rank=RANK, alpha=ALPHA
    )
    (base / "config.json").write_text(json.dumps(config))
    save_file(
        {k: v.contiguous().clone() for k, v in exported(name, whole()).items()}, base / "model.safetensors"
    )
    torch.save(whole(), base / "model.pt")
    checkpointer = saver_of(saver, base, out / "run", kind)
    if "hf" in saver:
        checkpointer.load_checkpoint()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.randint(0, 96, (2, 24))
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()
    saved: dict[str, Any] = {training.MODEL_KEY: whole(), training.OPT_KEY: optimizer.state_dict()}
    saved |= {
        training.SEED_KEY: 1,
        training.EPOCHS_KEY: 1,
        training.TOTAL_EPOCHS_KEY: 2,
        training.MAX_STEPS_KEY: 1,
    }
    if "lora" in saver:
        targets = ["q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"]
        config_of = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "peft_type": "LORA"}
        saved[training.ADAPTER_KEY] = get_adapter_state_dict(model.state_dict())
        saved[training.ADAPTER_CONFIG] = config_of
    if saver == "dcp":
        checkpointer.save_checkpoint(saved, epoch=0, save_async=False)
    else:
        checkpointer.save_checkpoint(saved, epoch=0, intermediate_checkpoint=True)
    with torch.no_grad():
        torch.save({"tokens": tokens, "logits": model(tokens)}, out / "answer.pt")
    (out / "hf").mkdir()
    if saver == "dcp":  # the others take config.json along
        (out / "hf" / "config.json").write_text(json.dumps(config))
    made = exported(name, whole())
    save_file({n: t.contiguous().clone() for n, t in made.items()}, out / "hf" / "model.safetensors")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:
        dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        main(sys.argv[1], Path(sys.argv[2]), Path(store))
        dist.destroy_process_group()
