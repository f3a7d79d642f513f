"""A module whose ``state_dict()`` renames its parameters: each is written once, as its master.

The forms are those of TRL's value heads (trl 0.9, ``models/modeling_value_head.py``).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptconv
from ckptconv.errors import PlanError

SHAPES = {
    "model.embed.weight": (7, 4),
    "model.layers.0.q_proj.weight": (4, 4),
    "model.layers.1.q_proj.weight": (4, 4),
    "lm_head.weight": (7, 4),
    "v_head.summary.weight": (1, 4),
    "v_head.summary.bias": (1,),
}
TRUE = {
    n: torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, (n, s) in enumerate(SHAPES.items())
}
HALF = {n: t.to(torch.bfloat16) for n, t in TRUE.items()}
LORA = [f"base_model.model.model.layers.{i}.q_proj.lora_{x}.default.weight" for i in (0, 1) for x in "AB"]


def inner(name: str) -> str:
    """The name of a parameter as ``named_parameters()`` of the wrapper gives it."""
    return name if name.startswith("v_head.") else f"pretrained_model.{name}"


def shapes(names: list[str]) -> OrderedDict[str, torch.Size]:
    return OrderedDict((inner(n), torch.Size(SHAPES[n])) for n in names)


def save(
    run: Path, stage: int, head: dict[str, Any], trained: dict[str, torch.Tensor], frozen: Any = None
) -> Path:
    """Write a run of two ranks (stages 1 and 2) or of one (3)."""
    tag = run / "global_step3"
    tag.mkdir(parents=True)
    (run / "latest").write_text("global_step3")
    flat = torch.cat([t.flatten() for t in trained.values()])
    listed = OrderedDict((n, t.shape) for n, t in trained.items())
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
    head = {"param_shapes": [listed], "buffer_names": [], "ds_config": config, "ds_version": "0.19.8", **head}
    if frozen is not None:
        head["frozen_param_shapes"] = OrderedDict((n, t.shape) for n, t in frozen.items())
        head["frozen_param_fragments"] = {n: t.flatten() if stage == 3 else t for n, t in frozen.items()}
    ranks = 1 if stage == 3 else 2
    size = -(-flat.numel() // ranks)
    for r in range(ranks):
        part = flat[r * size : (r + 1) * size].clone()
        state: dict[str, Any] = {"zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks]}
        state["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"] = [part]
        torch.save({"optimizer_state_dict": state}, tag / f"bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt")
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
    torch.save(head, tag / name)
    return run


def placeholders(names: Any) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((n, torch.empty(0, dtype=torch.bfloat16)) for n in names)


def check(model: ckptconv.Model, want: dict[str, torch.Tensor]) -> None:
    assert set(model) == set(want)
    for name, tensor in want.items():
        assert (model.read(name) == tensor.float().numpy()).all(), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_value_heads_parameters_are_written_once_as_masters(tmp_path: Path, stage: int) -> None:
    module = OrderedDict(HALF) if stage < 3 else placeholders(TRUE)
    run = save(tmp_path, stage, {"module": module}, {inner(n): t for n, t in TRUE.items()})
    model = ckptconv.open(run)
    check(model, TRUE)
    assert not any("frozen" in n.text for n in model.checkpoint.notes)
    check(ckptconv.open(run, weights="model"), HALF)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_is_what_the_files_call_frozen(tmp_path: Path, stage: int) -> None:
    cold = {"model.embed.weight", "lm_head.weight"}
    trained = {inner(n): t for n, t in TRUE.items() if n not in cold}
    frozen = {inner(n): HALF[n] for n in TRUE if n in cold} if stage > 1 else None
    module = OrderedDict(HALF) if stage < 3 else placeholders(TRUE)
    model = ckptconv.open(save(tmp_path, stage, {"module": module}, trained, frozen))
    check(model, {n: HALF[n] if n in cold else t for n, t in TRUE.items()})
    assert any("2 frozen parameters" in n.text for n in model.checkpoint.notes)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_base_of_an_adapter_that_the_module_does_not_save(tmp_path: Path, stage: int) -> None:
    """With PEFT inside, ``state_dict()`` gives the head alone: the base is among the frozen parameters."""
    heads = [n for n in TRUE if n.startswith("v_head.")]
    lora = {n: torch.randn((2, 4) if "lora_A" in n else (4, 2)) for n in LORA}
    base = {f"base_model.model.{n}": t for n, t in HALF.items() if n not in heads}
    trained = {inner(n): t for n, t in lora.items()} | {n: TRUE[n] for n in heads}
    module = {n: HALF[n] for n in heads} if stage < 3 else placeholders(heads)
    run = save(tmp_path, stage, {"module": module}, trained, {inner(n): t for n, t in base.items()})
    check(ckptconv.open(run), base | lora | {n: TRUE[n] for n in heads})
    half = {n: t.to(torch.bfloat16) for n, t in (lora | {n: TRUE[n] for n in heads}).items()}
    check(ckptconv.open(run, weights="model"), base | half)


def test_an_adapter_that_only_the_optimizers_files_hold_is_not_left_out(tmp_path: Path) -> None:
    heads = [n for n in TRUE if n.startswith("v_head.")]
    trained = {inner(n): torch.randn((2, 4) if "lora_A" in n else (4, 2)) for n in LORA}
    module = {n: HALF[n] for n in heads}
    run = save(tmp_path, 2, {"module": module}, trained | {n: TRUE[n] for n in heads}, {})
    for path in run.glob("*/*optim_states.pt"):
        path.unlink()
    with pytest.raises(PlanError, match="optimizer states of mp_rank_00 are missing") as caught:
        ckptconv.open(run, weights="model")
    assert "--weights model" not in str(caught.value)


def test_a_value_head_stands_beside_its_model(tmp_path: Path) -> None:
    """The plan for Hugging Face has every parameter of the architecture once, and the head."""
    size = {"hidden_size": 8, "vocab_size": 5, "intermediate_size": 6, "num_hidden_layers": 1}
    config = {"model_type": "qwen2", **size, "num_attention_heads": 2, "tie_word_embeddings": False}
    layer = {f"self_attn.{x}_proj.weight": (8, 8) for x in "qkvo"}
    layer |= {f"self_attn.{x}_proj.bias": (8,) for x in "qkv"}
    layer |= {"mlp.gate_proj.weight": (6, 8), "mlp.up_proj.weight": (6, 8), "mlp.down_proj.weight": (8, 6)}
    layer |= {"input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,)}
    shapes = {f"model.layers.0.{n}": s for n, s in layer.items()}
    shapes |= {"model.embed_tokens.weight": (5, 8), "model.norm.weight": (8,), "lm_head.weight": (5, 8)}
    shapes |= {"v_head.summary.weight": (1, 8), "v_head.summary.bias": (1,)}
    true = {n: torch.randn(s) for n, s in shapes.items()}
    module = OrderedDict((n, t.to(torch.bfloat16)) for n, t in true.items())
    run = save(tmp_path / "run", 2, {"module": module}, {inner(n): t for n, t in true.items()})
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = ckptconv.plan(run, config=str(tmp_path))
    assert {t.name for f in plan.files for t in f.layout.tensors} == set(true)
    assert not any("not in the checkpoint" in text for _, text in plan.notes)


def test_tied_parameters_of_a_wrapped_model(tmp_path: Path) -> None:
    module = OrderedDict(HALF)
    module["lm_head.weight"] = module["model.embed.weight"]
    trained = {inner(n): t for n, t in TRUE.items() if n != "lm_head.weight"}
    shared = {"pretrained_model.lm_head.weight": "pretrained_model.model.embed.weight"}
    model = ckptconv.open(save(tmp_path, 2, {"module": module, "shared_params": shared}, trained))
    check(model, {n: t for n, t in TRUE.items() if n != "lm_head.weight"})
    assert model.checkpoint.aliases == {"lm_head.weight": "model.embed.weight"}


@pytest.mark.parametrize("prefix", ["policy.", "a.b."])
def test_any_other_word_before_the_names(tmp_path: Path, prefix: str) -> None:
    check(
        ckptconv.open(
            save(tmp_path, 2, {"module": OrderedDict(HALF)}, {prefix + n: t for n, t in TRUE.items()})
        ),
        TRUE,
    )


def test_names_that_have_nothing_in_common_are_told_by_the_values(tmp_path: Path) -> None:
    trained = {f"weights_{i}": t for i, t in enumerate(TRUE.values())}
    check(ckptconv.open(save(tmp_path, 2, {"module": OrderedDict(HALF)}, trained)), TRUE)


def test_a_parameter_saved_under_no_known_name_is_refused(tmp_path: Path) -> None:
    trained = {f"weights_{i}": t + 1 for i, t in enumerate(TRUE.values())}
    with pytest.raises(PlanError, match="the optimizer knows a parameter weights_0"):
        ckptconv.open(save(tmp_path, 2, {"module": OrderedDict(HALF)}, trained, {}))


def test_what_is_no_parameter_keeps_its_dtype(tmp_path: Path) -> None:
    """Such as the states of a quantised base: nothing calls them frozen."""
    extra = {"model.layers.0.absmax": torch.ones(3, dtype=torch.float16)}
    model = ckptconv.open(save(tmp_path, 2, {"module": OrderedDict(HALF) | extra}, TRUE, {}))
    assert model.checkpoint.tensors["model.layers.0.absmax"].dtype == "float16"
    assert not any("frozen" in n.text for n in model.checkpoint.notes)
