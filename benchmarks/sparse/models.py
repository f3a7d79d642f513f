"""Hold the published sizes of large models, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileLayout
from ckptconv.families import find_family
from ckptconv.relations import Spec
from ckptconv.slots.shapes import shape_of

__all__ = ["MODELS", "Parallel", "parameters", "slots_of", "write_holes"]

_DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129_280,
    "hidden_size": 7168, "intermediate_size": 18_432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_nextn_predict_layers": 0, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5, "hidden_act": "silu", "max_position_embeddings": 163_840,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000, "attention_bias": False, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS: Mapping[str, dict[str, Any]] = {
    "deepseek-v3": _DEEPSEEK_V3,
    "kimi-k2": {
        **_DEEPSEEK_V3, "vocab_size": 163_840, "num_attention_heads": 64, "num_key_value_heads": 64,
        "n_routed_experts": 384, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.827, "rope_theta": 50_000, "max_position_embeddings": 131_072,
    },
    "llama-405b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256,
        "hidden_size": 16_384, "intermediate_size": 53_248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parallel:
    """Parallel sizes of a run of Megatron-LM; ``etp`` is that of the experts."""

    tp: int
    pp: int
    ep: int
    etp: int

    def layers(self, total: int) -> tuple[int, ...]:
        """Divide layers over stages, the first ones taking one more each."""
        each, more = divmod(total, self.pp)
        return tuple(each + (stage < more) for stage in range(self.pp))


def parameters(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by their Hugging Face names."""
    family = find_family(config["model_type"])
    assert family is not None
    return {name: shape for name, shape, optional in family.expected(config) if not optional}


def slots_of(config: Mapping[str, Any], dtype: str = "bfloat16") -> dict[str, Spec]:
    """Return a model's logical tensors; the router's bias is float32, as training keeps it."""
    family = find_family(config["model_type"])
    assert family is not None
    sizes = family.dims(config)
    words = family.words(config)
    found = dict.fromkeys(family._slots(sizes, words, words.layers))
    return {s: Spec(shape_of(s, sizes), "float32" if s.endswith("router_bias") else dtype) for s in found}


def write_holes(path: Path, layout: FileLayout) -> None:
    """Write a file of a layout but for its tensors' data, which the file system keeps as a hole."""
    with open(path, "wb", buffering=0) as file:
        file.truncate(layout.size)
        for at, content in layout.fixed:
            file.seek(at)
            file.write(content)
