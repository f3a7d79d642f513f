"""Ranks that are written load in megatron-core by their own arguments, and answer as the model did.

No name is missing or over on any rank. The models are transformers'; Megatron's settings are those written.
Left out is what core cannot build at all, or not without Transformer Engine: norms around zero (Gemma,
Nemotron, Qwen3-Next) or over all heads (MiniMax-M2), experts chosen by softmax with a bias (Ernie 4.5).
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from frameworks.megatron_recipe import VOCAB, prompt
from frameworks.test_core_releases import _core

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

_RECIPE = Path(__file__).with_name("core_loads.py")
_COMMAND = Path(sys.executable).with_name("ckptconv")
_RELEASE = "0.19.2"
Fields = dict[str, Any]

_TEXT: Fields = dict(
    vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, head_dim=8, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    pad_token_id=0, tie_word_embeddings=False,
)  # fmt: skip
_ROUTED: Fields = dict(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1, n_group=1,
    topk_group=1, first_k_dense_replace=1,
)  # fmt: skip
_LATENT: Fields = dict(
    q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    num_key_value_heads=8, head_dim=None,
)  # fmt: skip
_EXPERTS: Fields = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
_WIDE: Fields = dict(head_dim=None)  # a head is hidden_size / heads wide


@dataclass(frozen=True)
class Case:
    """A model, and its ranks.

    Attributes:
        fields: Of its config, beside the usual ones.
        tp: Tensor parallel ranks; likewise ``pp`` stages and ``ep``, ``etp`` ranks of experts.
    """

    fields: Fields = field(default_factory=dict)
    tp: int = 2
    pp: int = 2
    ep: int = 1
    etp: int = 2


def _spread(fields: Fields) -> Case:
    """Spread experts over two ranks, and cut them over two."""
    return Case(fields, pp=1, ep=2)


def _latent(fields: Fields) -> Case:
    """Leave latent attention whole: core's local spec, which is not made for it, cuts it in its own way."""
    return Case(_ROUTED | _LATENT | fields, tp=1, ep=2, etp=1)


CASES = {
    "llama": Case(),
    "llama-yarn": Case(
        dict(
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=1e4,
                factor=4.0,
                original_max_position_embeddings=32,
                attention_factor=1.3,
            )
        )
    ),
    "llama-biased": Case(dict(attention_bias=True, mlp_bias=True)),
    "mistral": Case(dict(sliding_window=None)),
    "qwen2": Case(_WIDE),
    "qwen3": Case(dict(tie_word_embeddings=True)),
    "phi3": Case(_WIDE),
    "seed_oss": Case(),
    "smollm3": Case(_WIDE),
    "starcoder2": Case(_WIDE | dict(sliding_window=None)),
    "arcee": Case(),
    "helium": Case(dict(head_dim=6)),
    "internlm3": Case(),
    "stablelm": Case(_WIDE | dict(num_attention_heads=6, num_key_value_heads=2)),
    "hy_v3": _spread(_EXPERTS | dict(num_shared_experts=1, first_k_dense_replace=1)),
    "ernie4_5": Case(),
    "glm": Case(),
    "gpt_neox": Case(dict(num_key_value_heads=None, head_dim=None, use_parallel_residual=False)),
    # Core has biases in experts only where these are not cut.
    "gpt_oss": Case(dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=8), pp=1, ep=2, etp=1),
    "mixtral": _spread(dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": _spread(_WIDE | _EXPERTS | dict(shared_expert_intermediate_size=16)),
    "qwen3_moe": _spread(_EXPERTS),
    "glm4_moe": _spread(_ROUTED | dict(use_qk_norm=True)),
    "dots1": _spread(_ROUTED | dict(norm_topk_prob=True)),
    "deepseek_v2": _latent({}),
    "deepseek_v3": _latent({}),
    "glm4_moe_lite": _latent({}),
}


def _run(*command: object, path: Path | None = None) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(path)} if path is not None else {})}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, env=env, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr[-4000:]}"


def _saved(kind: str, fields: Fields, folder: Path) -> torch.Tensor:
    """Save a model no two tensors of which are alike, and return its answer to the prompt."""
    made = {k: v for k, v in (_TEXT | fields).items() if v is not None or k not in _TEXT}
    config = transformers.CONFIG_MAPPING[kind](**made)
    torch.manual_seed(len(kind))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                one = tensor.ndim <= 1 and name.endswith("weight") and "bias" not in name
                tensor.copy_(torch.randn(tensor.shape) * 0.1 + (1 if one else 0))
        model.save_pretrained(folder)
        return model(input_ids=prompt()).logits


@pytest.mark.parametrize("name", CASES)
def test_ranks_load_by_their_own_arguments_and_answer_alike(name: str, tmp_path: Path) -> None:
    case, hf, run = CASES[name], tmp_path / "hf", tmp_path / "run"
    expected = _saved(name.partition("-")[0], case.fields, hf)
    tp, pp, ep = case.tp, case.pp, case.ep
    flags = (
        f"--tp={tp}",
        f"--pp={pp}",
        f"--ep={ep}",
        f"--etp={case.etp}",
        "--dialect=core-local",
        "--experts=sequential",
    )
    _run(_COMMAND, "megatron-split", hf, run, *flags, "--quiet")
    _run(sys.executable, _RECIPE, run, tp, pp, ep, case.etp, tmp_path / "answer.pt", path=_core(_RELEASE))
    torch.testing.assert_close(torch.load(tmp_path / "answer.pt"), expected, rtol=0, atol=1e-4)
