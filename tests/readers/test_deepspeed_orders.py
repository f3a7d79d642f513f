"""Masters whose order the files do not say, or misstate, are found by the 16-bit weights, or refused by name.

The files are made by hand as the releases named wrote them (``runtime/zero/*.py`` and ``runtime/engine.py``
of DeepSpeed at their tags).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptconv
from ckptconv.errors import PlanError

Names = Sequence[str]
LAYERS = [
    f"layers.{i}.{name}"
    for i in range(4)
    for name in ("ln.weight", "ln.bias", "up.weight", "up.bias", "down.weight", "down.bias")
]
NAMES = ["embed.weight", *LAYERS, "norm.weight", "head.weight"]


def shape(name: str) -> tuple[int, ...]:
    if name in ("embed.weight", "head.weight"):
        return (11, 6)
    kind = {"up.weight": (7, 6), "down.weight": (6, 7), "up.bias": (7,)}
    return kind.get(name.split(".", 2)[-1], (6,))


def value(name: str) -> torch.Tensor:
    """Matrices differ; norms are one and biases zero to 16 bits, as after few steps, and differ below."""
    g = torch.Generator().manual_seed(NAMES.index(name))
    if len(shape(name)) > 1:
        return torch.randn(shape(name), generator=g)
    tiny = torch.rand(shape(name), generator=g)
    return 1 + tiny * 1e-4 if name.endswith(("ln.weight", "norm.weight")) else tiny * 1e-8


TRUE = {n: value(n) for n in NAMES}
DECAY = [n for n in NAMES if len(shape(n)) > 1]
REST = [n for n in NAMES if n not in DECAY]


def dealt(names: Names, ranks: int) -> list[str]:
    return [n for r in range(ranks) for n in names[r::ranks]]


def flat(names: Names) -> torch.Tensor:
    return torch.cat([TRUE[n].flatten() for n in names])


def parts(run: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    size = -(-run.numel() // ranks)
    return [run[r * size : (r + 1) * size].clone() for r in range(ranks)]


def all_shapes() -> OrderedDict[str, torch.Size]:
    return OrderedDict((n, torch.Size(shape(n))) for n in NAMES)


def module() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((n, TRUE[n].to(torch.float16)) for n in NAMES)


def write(run: Path, head: dict[str, Any], states: list[dict[str, Any]], **more: Any) -> Path:
    tag = run / "global_step7"
    tag.mkdir(parents=True)
    (run / "latest").write_text("global_step7")
    torch.save(head, tag / "mp_rank_00_model_states.pt")
    for r, state in enumerate(states):
        torch.save(
            {"optimizer_state_dict": state, **more}, tag / f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt"
        )
    return run


def stage2(groups: Sequence[Names], ranks: int, **more: Any) -> list[dict[str, Any]]:
    runs = [parts(flat(names), ranks) for names in groups]
    return [
        {"zero_stage": 2, "partition_count": ranks, "single_partition_of_fp32_groups": [p[r] for p in runs]}
        | more
        for r in range(ranks)
    ]


def check(run: Path, frozen: Names = (), *, guess: bool = True) -> None:
    """Every master is the true one, and frozen parameters are what the module has."""
    model = ckptconv.open(run)
    assert set(model) == set(NAMES)
    for name in NAMES:
        want = TRUE[name].half().float() if name in frozen else TRUE[name]
        assert (model.read(name) == want.numpy()).all(), name
    assert any(n.level == "guess" for n in model.checkpoint.notes) == guess


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_groups_that_param_shapes_does_not_know_before_0_4_3(tmp_path: Path, ranks: int) -> None:
    check(write(tmp_path, {"module": module()}, stage2([DECAY, REST], ranks), param_shapes=all_shapes()))


def test_frozen_parameters_that_param_shapes_names_before_0_4_3(tmp_path: Path) -> None:
    frozen = [n for n in NAMES if n.startswith(("embed", "layers.0.", "layers.2."))]
    trained = [n for n in NAMES if n not in frozen]
    groups = [[n for n in DECAY if n in trained], [n for n in REST if n in trained]]
    states = stage2(groups, 2)
    # Which of two norms that are both ones is frozen, no file tells: here the frozen ones differ.
    heads = module()
    for name in frozen:
        heads[name] = heads[name] + (0 if name in DECAY else NAMES.index(name))
    run = write(tmp_path, {"module": heads}, states, param_shapes=all_shapes())
    model = ckptconv.open(run)
    for name in NAMES:
        want = heads[name].float() if name in frozen else TRUE[name]
        assert (model.read(name) == want.numpy()).all(), name


@pytest.mark.parametrize("version", ["0.4.0", "0.4.2", "0.4.3"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_parameters_dealt_out_in_turn_from_0_4_0_to_0_4_3(tmp_path: Path, ranks: int, version: str) -> None:
    """``_round_robin_reorder`` was always on, and ``param_shapes`` did not follow it."""
    head = {"module": module(), "ds_version": version}
    states = stage2([dealt(NAMES, ranks)], ranks)
    check(write(tmp_path, head, states, param_shapes=all_shapes(), ds_version=version), guess=False)


def test_two_groups_dealt_out_with_shapes_by_group_in_0_4_3(tmp_path: Path) -> None:
    groups = [dealt(DECAY, 3), dealt(REST, 3)]
    head = {"module": module(), "buffer_names": [], "ds_version": "0.4.3"}
    listed = OrderedDict((n, torch.Size(shape(n))) for n in [*DECAY, *REST])
    check(write(tmp_path, head, stage2(groups, 3), param_shapes=listed, ds_version="0.4.3"), guess=False)


def test_two_groups_dealt_out_with_shapes_in_the_modules_order_in_0_4_0(tmp_path: Path) -> None:
    states = stage2([dealt(DECAY, 2), dealt(REST, 2)], 2)
    check(write(tmp_path, {"module": module(), "ds_version": "0.4.0"}, states, param_shapes=all_shapes()))


def test_what_looks_alike_in_no_known_order_is_refused(tmp_path: Path) -> None:
    states = stage2([DECAY, [*REST[3:], *REST[:3]]], 2)
    with pytest.raises(PlanError, match="16-bit weights do not tell"):
        ckptconv.open(write(tmp_path, {"module": module()}, states, param_shapes=all_shapes()))


def test_files_before_0_3_14_name_nothing_but_the_module(tmp_path: Path) -> None:
    check(write(tmp_path, {"module": module()}, stage2([DECAY, REST], 2)))


def test_masters_of_another_step_are_refused(tmp_path: Path) -> None:
    other = module()
    other["layers.1.up.weight"] = other["layers.1.up.weight"] * 1.5
    run = write(tmp_path, {"module": other}, stage2([DECAY, REST], 2), param_shapes=all_shapes())
    with pytest.raises(PlanError, match="16-bit weights do not tell") as caught:
        ckptconv.open(run)
    assert 'weights="model"' in str(caught.value)


def stage1(groups: Sequence[Names], ranks: int, sub: int, *, elastic: bool) -> list[dict[str, Any]]:
    """Sub-partition ``i`` of every rank in turn, interval by interval (0.3.16, ``stage1.py``)."""
    held: list[list[list[torch.Tensor]]] = [[] for _ in range(ranks)]
    for names in groups:
        run = flat(names)
        intervals = -(-run.numel() // (sub * ranks))
        padded = torch.cat([run, torch.zeros(intervals * sub * ranks - run.numel())])
        for r in range(ranks):
            begins = [(i * ranks + r) * sub for i in range(intervals)]
            held[r].append(
                [run[b : b + sub].clone() if elastic else padded[b : b + sub].clone() for b in begins]
            )
    marks = {"zero_stage": 1, "partition_count": ranks} if elastic else {}
    return [{"local_sub_partitions_of_fp32_groups": held[r], **marks} for r in range(ranks)]


@pytest.mark.parametrize("elastic", [True, False], ids=["elastic", "rigid"])
@pytest.mark.parametrize("sub", [50, 1000], ids=["intervals", "one-interval"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "before-0.3.14"])
def test_the_stage_1_optimizer_before_0_4_interleaves(
    tmp_path: Path, sub: int, elastic: bool, listed: bool
) -> None:
    states = stage1([DECAY, REST], 3, sub, elastic=elastic)
    more = {"param_shapes": all_shapes()} if listed else {}
    check(write(tmp_path, {"module": module()}, states, **more))


def stage3(groups: Sequence[Names], ranks: int) -> list[dict[str, Any]]:
    states: list[dict[str, Any]] = []
    for r in range(ranks):
        rows = []
        for names in groups:
            pieces = []
            for name in names:
                run = TRUE[name].flatten()
                size = -(-run.numel() // ranks)
                pieces.append(torch.cat([run, torch.zeros(size * ranks - run.numel())])[r * size :][:size])
            rows.append(torch.cat(pieces))
        inner = {"state": {}, "param_groups": [{"params": [i]} for i in range(len(groups))]}
        states.append(
            {
                "zero_stage": 3,
                "partition_count": ranks,
                "fp32_flat_groups": rows,
                "optimizer_state_dict": inner,
            }
        )
    return states


def write3(run: Path, states: list[dict[str, Any]], **more: Any) -> Path:
    head = {"module": OrderedDict((n, torch.empty(1, dtype=torch.float16)) for n in NAMES), **more}
    write(run, head, states, param_shapes=all_shapes(), **more)
    first = run / "global_step7" / "mp_rank_00_model_states.pt"
    for r in range(len(states)):
        torch.save(head, first.with_name(f"zero_pp_rank_{r}_mp_rank_00_model_states.pt"))
    first.unlink()
    return run


def test_stage_3_before_0_4_3_with_one_group_is_in_the_modules_order(tmp_path: Path) -> None:
    check(write3(tmp_path, stage3([NAMES], 3)), guess=False)


def test_stage_3_before_0_4_3_with_groups_is_refused_as_nothing_proves_an_order(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="that of 2 optimizer groups") as caught:
        ckptconv.open(write3(tmp_path, stage3([DECAY, REST], 2)))
    assert "before 0.4.3" in str(caught.value) and "pytorch_model.bin" in str(caught.value)


def test_stage_3_of_0_4_3_lists_what_the_groups_hold(tmp_path: Path) -> None:
    run = write3(tmp_path, stage3([DECAY, REST], 2), ds_version="0.4.3")
    listed = OrderedDict((n, torch.Size(shape(n))) for n in [*DECAY, *REST])
    for path in run.glob("*/*optim_states.pt"):
        state = torch.load(path, weights_only=False)
        torch.save(state | {"param_shapes": listed}, path)
    check(run, guess=False)


def test_buffers_that_no_list_names_before_0_4_2_are_what_is_no_parameter(tmp_path: Path) -> None:
    buffers = {"bn.mean": torch.arange(3).half(), "bn.count": torch.tensor(2**24 + 1)}
    two = write(tmp_path / "2", {"module": module() | buffers}, stage2([NAMES], 2), param_shapes=all_shapes())
    three = write3(tmp_path / "3", stage3([NAMES], 2))
    for path in three.glob("*/*model_states.pt"):
        head = torch.load(path, weights_only=False)
        torch.save(head | {"module": head["module"] | buffers}, path)
    for run in (two, three):
        model = ckptconv.open(run)
        assert set(model) == {*NAMES, *buffers} and model.checkpoint.buffers == set(buffers)
        for name, tensor in buffers.items():
            assert model.checkpoint.tensors[name].dtype == str(tensor.dtype).removeprefix("torch.")
            assert (model.read(name) == tensor.numpy()).all()


def test_frozen_parameters_of_stage_3_before_0_4_3_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"frozen parameters, which deepspeed before 0\.9\.1 does not save"):
        ckptconv.open(write3(tmp_path, stage3([[n for n in NAMES if not n.startswith("layers.1")]], 2)))


# Mixtures of experts. Rank r of dp has the experts of expert-parallel rank r % ep.

EXPERTS = {"moe.0": 4, "moe.1": 8}  # layers differ in their number of experts


def expert(layer: str, number: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 * int(layer[-1]) + number)
    stem = f"{layer}.deepspeed_moe.experts.deepspeed_experts.{number}."
    return {stem + "w.weight": torch.randn(3, 5, generator=g), stem + "w.bias": torch.randn(3, generator=g)}


class Fragment:
    """Stands for ``deepspeed.utils.tensor_fragment.fragment_address``."""

    def __init__(self, numel: int, start: int) -> None:
        self.numel, self.start = numel, start


def slices(named: dict[str, torch.Tensor], begin: int, end: int) -> dict[str, Any]:
    out, at = {}, 0
    for name, tensor in named.items():
        lo, hi = max(at, begin), min(at + tensor.numel(), end)
        if lo < hi:
            out[name] = Fragment(hi - lo, lo - begin)
        at += tensor.numel()
    return out


def moe(
    run: Path, *, dp: int, ep: int, version: str, mapped: str, split: bool = False
) -> dict[str, torch.Tensor]:
    """Write a mixture; ``mapped`` says how its parameters are told: by shapes, by slices, right or not."""
    dense = {
        "embed.weight": TRUE["embed.weight"],
        "norm.weight": TRUE["norm.weight"],
        "head.weight": TRUE["head.weight"],
    }
    truth = dict(dense)
    tag = run / "global_step7"
    tag.mkdir(parents=True)
    (run / "latest").write_text("global_step7")
    for i, (layer, count) in enumerate(EXPERTS.items()):
        for number in range(count):
            tensors = expert(layer, number)
            truth |= tensors
            # Before 0.6 an expert's file held it of every layer.
            before = "" if version.startswith("0.5.") else f"layer_{i}_"
            path = tag / f"{before}expert_{number}_mp_rank_00_model_states.pt"
            others = torch.load(path) if path.exists() else {}
            torch.save(others | {n: t.to(torch.bfloat16) for n, t in tensors.items()}, path)
    head = {
        "module": {n: t.to(torch.bfloat16) for n, t in dense.items()},
        "num_experts": list(EXPERTS.values()),
    }
    torch.save(head | {"ds_version": version}, tag / "mp_rank_00_model_states.pt")
    for r in range(dp):
        e, members = r % ep, dp // ep
        local: dict[str, torch.Tensor] = {}
        for layer, count in EXPERTS.items():
            mine = count // ep
            for i in range(mine):
                here = expert(layer, e * mine + i)
                local |= {n.replace(f"experts.{e * mine + i}.", f"experts.{i}."): t for n, t in here.items()}
        groups: list[tuple[dict[str, torch.Tensor], int, int]] = [(dense, r, dp)]
        names = list(local)
        # DeepSpeed splits groups of more than max_group_size elements.
        cuts = [names[: len(names) // 2], names[len(names) // 2 :]] if split else [names]
        groups += [({n: local[n] for n in cut}, r // ep, members) for cut in cuts]
        held, maps = [], []
        for named, i, count in groups:
            whole = torch.cat([t.flatten() for t in named.values()])
            size = -(-whole.numel() // count)
            held.append(whole[i * size : (i + 1) * size].clone())
            width = -(-whole.numel() // dp) if mapped == "wrong" else size
            maps.append(slices(named, i * width, (i + 1) * width))
        state: dict[str, Any] = {
            "zero_stage": 2,
            "partition_count": [count for _, _, count in groups],
            "single_partition_of_fp32_groups": held,
            "ds_version": version,
        }
        more: dict[str, Any] = {}
        if mapped == "listed":
            listed = [OrderedDict((n, t.shape) for n, t in named.items()) for named, _, _ in groups]
            one = OrderedDict((n, s) for group in listed for n, s in group.items())
            more["param_shapes"] = one if version == "0.5.0" else listed
        elif mapped != "not":
            state["param_slice_mappings"] = maps
        path = tag / f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, **more}, path)
    return truth


@pytest.mark.parametrize(
    ("version", "mapped"),
    [
        ("0.5.0", "listed"),
        ("0.5.10", "listed"),
        ("0.5.10", "not"),
        ("0.6.7", "not"),
        ("0.12.6", "wrong"),
        ("0.14.5", "right"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dp", "ep"), [(2, 2), (4, 2), (4, 4), (2, 1)])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_every_expert_gets_its_own_masters(
    tmp_path: Path, dp: int, ep: int, version: str, mapped: str, split: bool
) -> None:
    truth = moe(tmp_path, dp=dp, ep=ep, version=version, mapped=mapped, split=split)
    model = ckptconv.open(tmp_path)
    assert set(model) == set(truth)
    for name, want in truth.items():
        assert np.array_equal(model.read(name), want.numpy()), name


def test_bf16_without_zero_of_0_17_6_is_said_to_have_saved_no_masters(tmp_path: Path) -> None:
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}
    head = {"module": module(), "optimizer": None, "param_shapes": None, "ds_config": config}
    lost = write(tmp_path / "lost", head | {"ds_version": "0.16.4"}, [])
    with pytest.raises(PlanError, match="optimizer states are missing"):
        ckptconv.open(lost)
    never = write(tmp_path / "never", head | {"ds_version": "0.17.6"}, [])
    with pytest.raises(PlanError, match=r"0\.17\.6 saved no optimizer states") as caught:
        ckptconv.open(never)
    assert 'weights="model"' in str(caught.value) and "copy" not in str(caught.value)
    assert set(ckptconv.open(never, weights="model")) == set(NAMES)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_an_odd_tensor_among_the_optimizers_states_does_no_harm(tmp_path: Path) -> None:
    odd = torch.randn(4, dtype=torch.complex64).conj()
    state = {
        "state": {
            0: {
                "step": 3,
                "exp_avg": odd,
                "exp_avg_sq": torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
            }
        },
        "param_groups": [],
    }
    states = stage2([NAMES], 2, base_optimizer_state=state)
    check(write(tmp_path, {"module": module(), "rng": odd}, states, param_shapes=all_shapes()), guess=False)
