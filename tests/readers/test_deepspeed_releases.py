"""Files as older DeepSpeed releases wrote them, made by hand: their layouts are read, or refused by name."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptconv
from ckptconv.errors import PlanError

SHAPES = OrderedDict(
    [
        ("embed.weight", (5, 3)),
        ("a.weight", (2, 3)),
        ("norm.weight", (3,)),
        ("b.bias", (1,)),
        ("c.weight", (4, 2)),
    ]
)
TRUE = {
    n: torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, (n, s) in enumerate(SHAPES.items())
}
DECAY = [n for n in SHAPES if SHAPES[n] != (3,) and n != "b.bias"]
GROUPS = [DECAY, [n for n in SHAPES if n not in DECAY]]


def stage2(ranks: int, *, groups: list[list[str]] = GROUPS, align: int = 2) -> list[list[torch.Tensor]]:
    """The flat partitions ``[group][rank]``, without the padding at their ends."""
    out = []
    for names in groups:
        flat = torch.cat([TRUE[n].flatten() for n in names])
        part = -(-flat.numel() // (align * ranks)) * align
        out.append([flat[r * part : (r + 1) * part].clone() for r in range(ranks)])
    return out


def stage3(ranks: int) -> list[torch.Tensor]:
    """Each rank's row: its part of every parameter, the last ones padded with zeros."""
    rows = []
    for r in range(ranks):
        parts = []
        for name in SHAPES:
            flat = TRUE[name].flatten()
            part = -(-flat.numel() // ranks)
            padded = torch.cat([flat, torch.zeros(part * ranks - flat.numel())])
            parts.append(padded[r * part : (r + 1) * part])
        rows.append(torch.cat(parts))
    return rows


def write(run: Path, files: dict[str, Any]) -> Path:
    tag = run / "global_step7"
    tag.mkdir(parents=True)
    (run / "latest").write_text("global_step7")
    for name, content in files.items():
        torch.save(content, tag / name)
    return run


def module16() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((n, t.to(torch.bfloat16)) for n, t in TRUE.items())


def placeholders(*more: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((n, torch.empty(1, dtype=torch.float16)) for n in [*SHAPES, *more])


def check(run: Path) -> None:
    model = ckptconv.open(run)
    assert list(model) == list(SHAPES)
    for name, want in TRUE.items():
        assert (model.read(name) == want.numpy()).all(), name


def shapes_by_group(groups: list[list[str]] = GROUPS) -> list[OrderedDict[str, torch.Size]]:
    return [OrderedDict((n, torch.Size(SHAPES[n])) for n in names) for names in groups]


def test_one_dict_of_shapes_over_all_groups_before_0_5_4(tmp_path: Path) -> None:
    parts = stage2(2)
    one = OrderedDict((n, torch.Size(SHAPES[n])) for names in GROUPS for n in names)
    files: dict[str, Any] = {"mp_rank_00_model_states.pt": {"module": module16(), "param_shapes": one}}
    for r in range(2):
        state = {
            "zero_stage": 2,
            "partition_count": 2,
            "single_partition_of_fp32_groups": [p[r] for p in parts],
        }
        files[f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt"] = {"optimizer_state_dict": state}
    check(write(tmp_path, files))


def test_shapes_in_the_optimizer_file_from_0_3_14_to_0_5(tmp_path: Path) -> None:
    parts = stage2(3)
    files: dict[str, Any] = {"mp_rank_00_model_states.pt": {"module": module16(), "dp_world_size": 3}}
    for r in range(3):
        state = {
            "zero_stage": 2,
            "partition_count": 3,
            "single_partition_of_fp32_groups": [p[r] for p in parts],
        }
        files[f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt"] = {
            "optimizer_state_dict": state,
            "param_shapes": shapes_by_group(),
        }
    check(write(tmp_path, files))


def test_file_names_without_underscore_before_0_3_14(tmp_path: Path) -> None:
    parts = stage2(2)
    files: dict[str, Any] = {
        "mp_rank_00_model_states.pt": {"module": module16(), "param_shapes": shapes_by_group()}
    }
    for r in range(2):
        state = {
            "zero_stage": 2,
            "partition_count": 2,
            "single_partition_of_fp32_groups": [p[r] for p in parts],
        }
        files[f"zero_pp_rank_{r}_mp_rank_00optim_states.pt"] = {"optimizer_state_dict": state}
    check(write(tmp_path, files))


def test_partitions_that_keep_their_padding_as_bf16_optimizer_stores_them(tmp_path: Path) -> None:
    parts = [[torch.cat([p, torch.zeros(g[0].numel() - p.numel())]) for p in g] for g in stage2(3)]
    files: dict[str, Any] = {
        "mp_rank_00_model_states.pt": {"module": module16(), "param_shapes": shapes_by_group()}
    }
    for r in range(3):
        state = {"partition_count": [3, 3], "single_partition_of_fp32_groups": [p[r] for p in parts]}
        files[f"bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt"] = {"optimizer_state_dict": state}
    check(write(tmp_path, files))


def stage3_files(ranks: int, head: dict[str, Any], rows: list[torch.Tensor]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for r in range(ranks):
        files[f"zero_pp_rank_{r}_mp_rank_00_model_states.pt"] = head
        state = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": [rows[r]]}
        files[f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt"] = {"optimizer_state_dict": state}
    return files


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_stage_3_with_placeholders_of_one_element_and_one_dict_of_shapes(tmp_path: Path, ranks: int) -> None:
    one = OrderedDict((n, torch.Size(s)) for n, s in SHAPES.items())
    head = {"module": placeholders(), "param_shapes": one}
    check(write(tmp_path, stage3_files(ranks, head, stage3(ranks))))


def test_frozen_stage_3_parameters_before_0_9_1_were_not_saved_and_are_refused(tmp_path: Path) -> None:
    one = OrderedDict((n, torch.Size(s)) for n, s in SHAPES.items())
    head = {"module": placeholders("frozen.weight"), "param_shapes": [one], "buffer_names": []}
    run = write(tmp_path, stage3_files(2, head, stage3(2)))
    with pytest.raises(PlanError, match=r"frozen\.weight.*no data"):
        ckptconv.plan(run, assets=False)
    kept = ckptconv.plan(run, assets=False, drop=("frozen.*",))
    assert {t.name for f in kept.files for t in f.layout.tensors} == set(SHAPES)


def test_a_tied_head_without_shared_params_before_0_9_2_is_explained_by_the_config(tmp_path: Path) -> None:
    names = OrderedDict([("model.embed_tokens.weight", (5, 3)), ("model.norm.weight", (3,))])
    flat = [torch.arange(15.0), torch.arange(3.0)]
    head = {
        "module": OrderedDict((n, torch.empty(1, dtype=torch.float16)) for n in [*names, "lm_head.weight"]),
        "param_shapes": [OrderedDict((n, torch.Size(s)) for n, s in names.items())],
    }
    run = write(tmp_path / "run", stage3_files(1, head, [torch.cat(flat)]))
    sizes = '"hidden_size": 3, "vocab_size": 5, "num_hidden_layers": 0, "num_attention_heads": 1'
    (tmp_path / "config.json").write_text(
        f'{{"model_type": "qwen2", "tie_word_embeddings": true, {sizes}, "intermediate_size": 4}}'
    )
    plan = ckptconv.plan(run, config=str(tmp_path))
    assert {t.name for f in plan.files for t in f.layout.tensors} == set(names)
    assert [s.what for s in plan.steps if s.kind == "alias"] == ["lm_head.weight = model.embed_tokens.weight"]
    with pytest.raises(PlanError, match=r"lm_head\.weight"):
        ckptconv.plan(run, assets=False)


def test_an_optimizer_offloaded_to_nvme_is_refused_by_name(tmp_path: Path) -> None:
    one = OrderedDict((n, torch.Size(s)) for n, s in SHAPES.items())
    head = {"module": placeholders(), "param_shapes": [one]}
    with pytest.raises(PlanError, match="NVMe"):
        ckptconv.open(write(tmp_path, stage3_files(2, head, [torch.empty(0)] * 2)))


def test_partitions_of_another_model_are_refused(tmp_path: Path) -> None:
    one = OrderedDict((n, torch.Size(s)) for n, s in SHAPES.items())
    head = {"module": placeholders(), "param_shapes": [one]}
    rows = [torch.cat([row, torch.zeros(1)]) for row in stage3(2)]
    with pytest.raises(PlanError, match="each rank holds"):
        ckptconv.open(write(tmp_path, stage3_files(2, head, rows)))


def test_a_tie_to_a_frozen_parameter_that_the_save_left_out(tmp_path: Path) -> None:
    """Stages 1 and 2 still hold it under the tie's other name; stage 3 holds it nowhere, which is said."""
    names = ["a.weight", "norm.weight"]
    parts = stage2(1, groups=[names])
    tied = torch.arange(6.0).reshape(2, 3)
    module = OrderedDict((n, TRUE[n].to(torch.bfloat16)) for n in names)
    head: dict[str, Any] = {
        "module": module | {"lm_head.weight": tied.to(torch.bfloat16)},
        "param_shapes": shapes_by_group([names]),
        "shared_params": {"lm_head.weight": "embed.weight"},
    }
    state = {"zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": [parts[0][0]]}
    optim = {"optimizer_state_dict": state}
    model = ckptconv.open(
        write(
            tmp_path / "two",
            {"mp_rank_00_model_states.pt": head, "zero_pp_rank_0_mp_rank_00_optim_states.pt": optim},
        )
    )
    assert set(model) == {*names, "embed.weight"}
    assert (model.read("embed.weight") == tied.numpy()).all()
    assert model.checkpoint.aliases == {"lm_head.weight": "embed.weight"}

    one = OrderedDict((n, torch.Size(s)) for n, s in SHAPES.items())
    sharded = {
        "module": placeholders("tied.weight"),
        "param_shapes": [one],
        "shared_params": {"tied.weight": "gone"},
    }
    three = ckptconv.open(write(tmp_path / "three", stage3_files(2, sharded, stage3(2))))
    assert list(three) == list(SHAPES)
    assert any("tied.weight is tied to gone" in n.text for n in three.checkpoint.notes)


@pytest.mark.parametrize("flat", [True, False], ids=["fused", "unfused"])
def test_stage_0_masters_that_round_to_the_same_values_keep_the_modules_order(
    tmp_path: Path, flat: bool
) -> None:
    """Norms near one all round to ones; in groups from the last layer to the first, neighbours tell."""
    names = [f"layers.{i}.{part}.weight" for i in range(3) for part in ("proj", "norm")]
    masters = {
        n: torch.randn(2, 3, generator=torch.Generator().manual_seed(i))
        if "proj" in n
        else 1 + torch.rand(3) * 1e-4
        for i, n in enumerate(names)
    }
    groups = [[n for n in names if n.startswith(f"layers.{i}.")] for i in (2, 1, 0)]
    optimizer: dict[str, Any] = (
        {"fp32_groups_flat": [torch.cat([masters[n].flatten() for n in g]) for g in groups]}
        if flat
        else {"fp32_groups": [[masters[n] for n in g] for g in groups]}
    )
    module = OrderedDict((n, masters[n].to(torch.bfloat16)) for n in names)
    assert all((module[n] == 1).all() for n in names if "norm" in n)
    head = {"module": module, "optimizer": optimizer, "param_shapes": None, "buffer_names": []}
    model = ckptconv.open(write(tmp_path, {"mp_rank_00_model_states.pt": head}))
    for name in names:
        assert (model.read(name) == masters[name].numpy()).all(), name
    assert any(n.level == "guess" for n in model.checkpoint.notes)
