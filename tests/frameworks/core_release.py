#!/usr/bin/env python
"""Save a small Llama in torch_dist with whatever megatron-core is on the path, in one process on CPU.

    PYTHONPATH=CORE python core_release.py HF OUT

What a release asks of a GPU, or of a newer Python than this, is answered beforehand.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import typing
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

ITERATION = 5


def stand_in() -> None:
    """Tell megatron-core that its GPU is the CPU, and that this Python knows what 3.12 does."""
    import typing_extensions

    if not hasattr(typing, "override"):
        typing.override = typing_extensions.override  # type: ignore[attr-defined]
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.cuda = lambda self, *_, **__: self


def weights(hf: dict[str, torch.Tensor], config: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return a model's state under the names of core's local spec, whole."""
    groups, width = config["num_key_value_heads"], config["head_dim"]
    found = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
        "output_layer.weight": hf["lm_head.weight"],
    }
    for number in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{number}.", f"decoder.layers.{number}."
        q, k, v = (
            hf[f"{old}self_attn.{part}_proj.weight"].view(groups, -1, width, config["hidden_size"])
            for part in "qkv"
        )
        found |= {
            f"{new}input_layernorm.weight": hf[f"{old}input_layernorm.weight"],
            f"{new}pre_mlp_layernorm.weight": hf[f"{old}post_attention_layernorm.weight"],
            f"{new}self_attention.linear_qkv.weight": torch.cat([q, k, v], 1).flatten(0, 2),
            f"{new}self_attention.linear_proj.weight": hf[f"{old}self_attn.o_proj.weight"],
            f"{new}mlp.linear_fc1.weight": torch.cat(
                [hf[f"{old}mlp.gate_proj.weight"], hf[f"{old}mlp.up_proj.weight"]]
            ),
            f"{new}mlp.linear_fc2.weight": hf[f"{old}mlp.down_proj.weight"],
        }
    return found


def built(hf: Path) -> tuple[torch.nn.Module, dict[str, object], dict[str, object]]:
    """Build the model and fill it in; return it with its sizes and its config."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    parallel_state.initialize_model_parallel()
    config = json.loads((hf / "config.json").read_text())
    sizes = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "layernorm_epsilon": config["rms_norm_eps"],
    }
    model = GPTModel(
        config=TransformerConfig(
            **sizes,
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            use_cpu_initialization=True,
            bias_activation_fusion=False,
        ),
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=config["vocab_size"],
        max_sequence_length=config["max_position_embeddings"],
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )
    state = weights(load_file(hf / "model.safetensors"), config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(n.endswith("_extra_state") for n in missing), (missing, unexpected)
    return model, sizes, config


def save(hf: Path, out: Path) -> None:
    """Save the model with what its run was started with."""
    from megatron.core import dist_checkpointing

    model, sizes, config = built(hf)
    args = argparse.Namespace(
        **sizes,
        group_query_attention=True,
        swiglu=True,
        bf16=False,
        fp16=False,
        params_dtype=torch.float32,
        position_embedding_type="rope",
        rotary_base=10000,
        rotary_percent=1.0,
        rotary_interleaved=False,
        max_position_embeddings=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        padded_vocab_size=config["vocab_size"],
        untie_embeddings_and_output_weights=True,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
    )
    folder = out / f"iter_{ITERATION:07d}"
    folder.mkdir(parents=True)
    whole = {"args": args, "iteration": ITERATION, "checkpoint_version": 3.0}
    whole["model"] = model.sharded_state_dict()
    dist_checkpointing.save(whole, str(folder))
    (out / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))


if __name__ == "__main__":
    stand_in()
    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
        save(Path(sys.argv[1]), Path(sys.argv[2]))
