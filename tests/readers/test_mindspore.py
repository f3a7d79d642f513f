"""A MindSpore run is merged to exactly the tensors that were cut."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ckptconv
from ckptconv.dialects.mindformers.entries import beside_weights
from ckptconv.dialects.mindformers.strategy import read_strategies
from ckptconv.errors import CkptconvError, FormatError, MismatchError, PlanError, UsageError
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.readers.registry import open_checkpoint
from mindspore_runs import Layout, cut, layout_item, message, save, strategy

W = np.arange(96, dtype=np.float32).reshape(12, 8)
V = np.arange(100, 116, dtype=np.float32)


@pytest.fixture(scope="session")
def cases(fixtures: Path) -> Path:
    return fixtures / "mindspore"


def _open(path: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(path, options)


def _raw(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def _same(source: Path, expected: Path) -> Checkpoint:
    """Assert that every weight is there and bit-equal, and nothing else."""
    model = ckptconv.open(source)
    want = {n: t for n, t in load_file(expected).items() if beside_weights(n) is None}
    assert set(model) == set(want)
    for name, tensor in want.items():
        found = model.read(name)
        assert found.shape == tuple(tensor.shape), name
        assert np.array_equal(np.ascontiguousarray(found).reshape(-1).view(np.uint8), _raw(tensor)), name
    return model.checkpoint


# Runs MindSpore 2.9 and MindFormers 1.9 cut and saved

RUNS = ("dist_dp2mp2_opt", "dist_dp2mp1pp2_opt", "dist_mp2pp2", "dist_nested_map", "dist_st_dp2mp2_dedup")


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("inside", ["", "checkpoint"])
def test_a_run(cases: Path, case: str, inside: str) -> None:
    found = _same(cases / case / inside, cases / "expected_dist.safetensors")
    assert found.producer == "mindspore" and found.iteration == 40
    assert (found.layout["ranks"], found.layout["epoch"], found.layout["step"]) == (4, 2, 10)
    assert found.left_out["optimizer states"] > 0 and found.left_out["training state"] > 0
    stages = 2 if "pp2" in case else 1
    assert (found.layout["pipeline stages"], found.layout["ranks per stage"]) == (stages, 4 // stages)


def test_cases_of_ones_own() -> None:
    """All ``dist_*`` and ``raw_*`` cases below CKPTCONV_MINDSPORE_CASES."""
    root = os.environ.get("CKPTCONV_MINDSPORE_CASES")
    if root is None:
        pytest.skip("CKPTCONV_MINDSPORE_CASES is not set")
    expected = sorted(Path(root).glob("*/expected.safetensors"))
    assert expected
    for file in expected:
        sources = [file.parent / n for n in ("model.ckpt", "model.safetensors", "checkpoint", "unified")]
        sources = [p for p in sources if p.exists()] or [file.parent]
        for source in sources:
            _same(source, file)


def test_the_merged_strategy(cases: Path, tmp_path: Path) -> None:
    case = shutil.copytree(cases / "dist_mp2pp2", tmp_path / "run")
    shutil.rmtree(case / "strategy")
    assert any(
        "merged_ckpt_strategy" in n.text for n in _same(case, cases / "expected_dist.safetensors").notes
    )


def test_a_strategy_that_is_given(cases: Path, tmp_path: Path) -> None:
    shutil.copytree(cases / "dist_mp2pp2" / "checkpoint", tmp_path / "run")
    for given_ in ("strategy", "merged_ckpt_strategy.ckpt"):
        found = _open(tmp_path / "run", strategy=cases / "dist_mp2pp2" / given_)
        assert found.tensors["model.layers.2.attention.wk.weight"].shape == (16, 32)
    with pytest.raises(UsageError, match="no such file"):
        _open(tmp_path / "run", strategy=tmp_path / "gone")
    with pytest.raises(PlanError, match="says nothing of pipeline stage 1"):
        _open(tmp_path / "run", strategy=cases / "dist_mp2pp2/strategy/ckpt_strategy_rank_0.ckpt")


def test_unified_safetensors(cases: Path) -> None:
    for inside in ("", "param_name_map.json", "part0.safetensors"):
        found = _same(cases / "dist_st_dp2mp2_dedup/unified" / inside, cases / "expected_dist.safetensors")
        assert found.iteration == 40 and found.left_out["training state"] == 24


def test_an_iteration_with_metadata(cases: Path) -> None:
    case = cases / "mcore_metadata_4rank"
    for inside in ("", "iteration_00000010", "iteration_00000010/model-0000001-0000004.safetensors"):
        assert _same(case / inside, case / "expected.safetensors").iteration == 10


def test_a_file_of_a_rank_stands_for_the_run(cases: Path) -> None:
    file = cases / "dist_dp2mp2_opt/checkpoint/rank_3/llama_rank_3-2_10.ckpt"
    _same(file, cases / "expected_dist.safetensors")


def test_single_files(cases: Path, tmp_path: Path) -> None:
    _same(cases / "raw_dtypes/model.ckpt", cases / "raw_dtypes/expected.safetensors")
    _same(cases / "raw_safetensors/model.safetensors", cases / "raw_dtypes/expected.safetensors")
    adam = _open(cases / "raw_adam_cell/model.ckpt")
    assert list(adam.tensors) == ["fc.weight", "fc.bias", "emb.embedding_table"] and adam.iteration == 10
    shutil.copy(cases / "raw_adam_cell/model.ckpt", tmp_path)
    assert list(_open(tmp_path).tensors) == list(adam.tensors)
    shutil.copy(cases / "raw_adam_cell/model.ckpt", tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match="2 checkpoints"):
        _open(tmp_path)
    assert any("mf-1.9" in n.text for n in _open(cases / "raw_append/model.ckpt").notes)
    with pytest.raises(UsageError, match="none of that kind"):
        _open(cases / "raw_append/model.ckpt", strategy=cases / "dist_mp2pp2/strategy")


# Random strategies against numpy


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """A layout over 8 ranks, and a shape it can cut."""
    devices = draw(
        st.sampled_from([[8], [2, 4], [2, 2, 2], [4, 2], [2, 1, 4], [4, 2, 1], [1, 8], [2, 2, 2, 1]])
    )
    axes = draw(st.permutations(range(len(devices))))
    ndim = draw(st.integers(1, 3))
    nested = draw(st.booleans())
    tensor_map: list[Any] = []
    for _ in range(ndim):
        count = draw(st.integers(0, min(len(axes), 2 if nested else 1)))
        taken, axes = axes[:count], axes[count:]
        tensor_map.append(([*taken] or [-1]) if nested else (taken[0] if taken else -1))
    free = [n for a, n in enumerate(reversed(devices)) if a in axes and n > 1]  # axes count from the right
    sizes = [0, 1, -1, 2, int(np.prod(free))] if free else [0]
    size = draw(st.sampled_from(sizes))
    layout = Layout(devices, tensor_map, -1 if size not in (0, 1) else 0, size)
    unit = tuple(draw(st.integers(1, 2)) for _ in range(ndim))
    shape = [n * 8 for n in unit]
    shape[0] *= 8
    return layout, tuple(shape)


@settings(max_examples=60)
@given(st.lists(_layouts(), min_size=1, max_size=3), st.booleans(), st.integers(1, 2), st.data())
def test_random_strategies(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[Layout, tuple[int, ...]]],
    as_json: bool,
    pipeline: int,
    data: st.DataObject,
) -> None:
    stages: list[dict[str, Layout]] = [{} for _ in range(pipeline)]
    tensors = {}
    for i, (layout, shape) in enumerate(drawn):
        at = data.draw(st.sets(st.integers(0, pipeline - 1), min_size=1))
        for stage in at:
            stages[stage][f"w{i}"] = layout
        tensors[f"w{i}"] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + i
    for layouts in stages:  # every stage holds something
        layouts["norm"] = Layout([8], [-1])
    tensors["norm"] = np.arange(3, dtype=np.float32)
    root = tmp_path_factory.mktemp("run") / "run"
    save(root, stages, tensors, json_strategy=as_json)
    model = ckptconv.open(root)
    assert set(model) == set(tensors)
    for name, whole in tensors.items():
        assert np.array_equal(model.read(name), whole), (name, stages)


# Traps


def test_ranks_and_steps_by_number(tmp_path: Path) -> None:
    """rank_10 comes after rank_9, and step 100 after step 20."""
    w = np.arange(96, dtype=np.float32).reshape(12, 8)
    layouts = {"w": Layout([12], [0, -1])}
    save(tmp_path, [layouts], {"w": w}, saves=("1_100",))
    old = save(tmp_path / "old", [layouts], {"w": -w}, saves=("1_20",))
    for r in range(12):
        name = f"llama_rank_{r}-1_20.ckpt"
        shutil.copy(old / f"checkpoint/rank_{r}/{name}", tmp_path / f"checkpoint/rank_{r}/{name}")
    model = ckptconv.open(tmp_path / "checkpoint")
    assert np.array_equal(model.read("w"), w) and model.checkpoint.layout["step"] == 100
    assert any("1_100 is the newest" in n.text for n in model.checkpoint.notes)
    assert np.array_equal(ckptconv.open(tmp_path, step="1_20").read("w"), -w)
    with pytest.raises(UsageError, match="no step 1_21"):
        _open(tmp_path, step="1_21")


def test_both_axes_cut_and_an_optimizer_shard(tmp_path: Path) -> None:
    """As training lays it out, where MindSpore's own transform_checkpoints takes ranks in another order."""
    layout = Layout([2, 2, 2], [0, 1], 4, 2)
    save(tmp_path, [{"w": layout}], {"w": W})
    assert np.array_equal(ckptconv.open(tmp_path).read("w"), W)
    # rank 5 is device (1, 0, 1): rows of the last device axis, columns of the middle one, then shard 1
    assert np.array_equal(cut(W, layout, 5), W[9:12, 0:4])


def test_an_optimizer_shard_of_the_innermost_replicas(tmp_path: Path) -> None:
    layout = Layout([2, 2, 2], [2, -1], 1, 2)  # size 2 of 4 replicas
    save(tmp_path, [{"w": layout}], {"w": W})
    assert np.array_equal(ckptconv.open(tmp_path).read("w"), W)
    assert np.array_equal(cut(W, layout, 5), W[9:12])


def test_the_nested_map_of_one_axis(tmp_path: Path) -> None:
    """Written for one axis, a map over two device axes looks like a map of two axes."""
    folder = save(tmp_path, [{"v": Layout([2, 2], [[1, 0]])}], {"v": V})
    assert np.array_equal(ckptconv.open(folder).read("v"), V)


def test_each_stage_has_its_own_layout(tmp_path: Path) -> None:
    """A tied embedding on the first and last stage, cut in different ways."""
    stages = [{"w": Layout([2], [0, -1]), "a": Layout([2], [-1])}, {"w": Layout([2], [-1, 0])}]
    save(tmp_path, stages, {"w": W, "a": V})
    model = ckptconv.open(tmp_path)
    assert np.array_equal(model.read("w"), W)
    assert sum(p.left_copy for p in model.relation.pairs if p.right.tensor == "w") == 1


def test_a_replica_that_differs(tmp_path: Path) -> None:
    save(tmp_path, [{"v": Layout([2], [-1])}], {"v": V})
    file = tmp_path / "checkpoint/rank_1/llama_rank_1-2_10.ckpt"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(MismatchError, match="v"):
        ckptconv.open(tmp_path).read("v")


def test_replicas_are_few_pairs(tmp_path: Path) -> None:
    """One pair for the slices of all ranks, one for each replica of them."""
    stages = [{"w": Layout([2, 4], [0, -1]), "v": Layout([2, 4], [-1], 1, 8)}]
    save(tmp_path, stages, {"w": W, "v": V})
    pairs = _open(tmp_path).relation.pairs
    assert [(p.right.tensor, p.left_copy) for p in pairs] == [("w", False), ("w", True), ("v", False)]


# Refused


def _broken(tmp_path: Path, **layouts: Layout) -> Path:
    save(tmp_path, [layouts or {"w": Layout([2, 2], [0, -1]), "v": Layout([2, 2], [-1])}], {"w": W, "v": V})
    return tmp_path


def test_a_rank_is_missing(tmp_path: Path) -> None:
    run = _broken(tmp_path, w=Layout([4], [0, -1]))
    shutil.rmtree(run / "checkpoint/rank_2")
    with pytest.raises(PlanError, match="slice 3 of 4 is in no file"):
        _open(run)


def test_a_rank_with_replicas_only_may_be_missing(tmp_path: Path) -> None:
    run = _broken(tmp_path)
    shutil.rmtree(run / "checkpoint/rank_3")
    assert np.array_equal(ckptconv.open(run).read("w"), W)


def test_a_stage_is_missing(cases: Path, tmp_path: Path) -> None:
    run = shutil.copytree(cases / "dist_mp2pp2", tmp_path / "run")
    for rank in (2, 3):
        shutil.rmtree(run / f"checkpoint/rank_{rank}")
    with pytest.raises(PlanError, match="stage 1 has no rank here"):
        _open(run)


def test_an_unfinished_save(tmp_path: Path) -> None:
    run = _broken(tmp_path)
    source = run / "checkpoint/rank_0/llama_rank_0-2_10.ckpt"
    shutil.copy(source, run / "checkpoint/rank_0/llama_rank_0-2_20.ckpt")
    with pytest.raises(PlanError, match="2_20 lacks rank 1, 2, 3") as error:
        _open(run)
    assert "--step" in str(error.value)
    assert np.array_equal(ckptconv.open(run, step="2_10").read("w"), W)


def test_without_a_strategy(tmp_path: Path) -> None:
    run = _broken(tmp_path)
    shutil.rmtree(run / "strategy")
    with pytest.raises(UsageError, match="no strategy file says"):
        _open(run)
    file = _open(run / "checkpoint/rank_1/llama_rank_1-2_10.ckpt")  # as the hint says
    assert file.tensors["w"].shape == (6, 8) and [n.level for n in file.notes] == ["warning"]
    for rank in (1, 2, 3):
        shutil.rmtree(run / f"checkpoint/rank_{rank}")
    one = _open(run)
    assert one.tensors["w"].shape == (6, 8) and "guess" in [n.level for n in one.notes]


def test_a_deduplicated_file_alone(cases: Path, tmp_path: Path) -> None:
    shutil.copytree(cases / "dist_st_dp2mp2_dedup/checkpoint/rank_0", tmp_path / "run/rank_0")
    with pytest.raises(UsageError, match="no strategy"):
        _open(tmp_path / "run")


def test_a_parameter_without_a_layout(tmp_path: Path) -> None:
    run = _broken(tmp_path, w=Layout([2], [0, -1]), v=Layout([2], [-1]))
    for file in (run / "strategy").iterdir():
        file.write_bytes(strategy({"w": Layout([2], [0, -1])}))
    found = _open(run)
    assert found.tensors["v"].shape == (16,)
    assert [n.text[:36] for n in found.notes if n.level == "guess"] == [
        "1 tensors are in no strategy file, t"
    ]
    for file in (run / "strategy").iterdir():
        file.write_bytes(strategy({"v": Layout([2], [-1])}))
    with pytest.raises(MismatchError):  # taken as replicas, its slices differ
        ckptconv.open(run).read("w")


def test_a_parameter_in_no_file_is_said(tmp_path: Path) -> None:
    run = _broken(tmp_path, w=Layout([2], [0, -1]))
    for file in (run / "strategy").iterdir():
        file.write_bytes(strategy({"w": Layout([2], [0, -1]), "gone": Layout([2], [-1])}))
    assert any("gone" in n.text for n in _open(run).notes if n.level == "warning")


def test_files_in_the_folder_of_another_rank(tmp_path: Path) -> None:
    run = _broken(tmp_path)
    (run / "checkpoint/rank_0").rename(run / "checkpoint/x")
    (run / "checkpoint/rank_1").rename(run / "checkpoint/rank_0")
    (run / "checkpoint/x").rename(run / "checkpoint/rank_1")
    with pytest.raises(FormatError, match="is of rank 1, but lies in rank_0"):
        _open(run)


def test_slices_of_unlike_shapes(tmp_path: Path) -> None:
    run = _broken(tmp_path, w=Layout([2], [0, -1]))
    other = _broken(tmp_path / "other", w=Layout([2], [-1, 0]))
    name = "checkpoint/rank_1/llama_rank_1-2_10.ckpt"
    shutil.copy(other / name, run / name)
    with pytest.raises(PlanError, match="not slices of one tensor"):
        _open(run)


@pytest.mark.parametrize(
    ("layout", "match"),
    [
        (Layout([2, 2], [5, -1]), "no device axis 5"),
        (Layout([2, 2], [0, 0]), "cuts two axes"),
        (Layout([2, 2], [0, -1, -1]), "has 2 axes"),
        (Layout([2, 2], [0, -1], 2, 4), "more replicas than there are"),
        (Layout([4, 1], [-1, 0], 1, 3), "cannot lie on"),
        (Layout([2, 2], [1, -1], 2, 2), "1 apart"),
    ],
)
def test_layouts_that_contradict_themselves(tmp_path: Path, layout: Layout, match: str) -> None:
    run = _broken(tmp_path, w=Layout([2, 2], [0, -1]))
    for file in (run / "strategy").iterdir():
        file.write_bytes(strategy({"w": layout}))
    with pytest.raises(PlanError, match=match):
        _open(run)


def test_strategies_that_contradict_each_other(tmp_path: Path) -> None:
    run = _broken(tmp_path)
    (run / "strategy/ckpt_strategy_rank_2.ckpt").write_bytes(strategy({"w": Layout([2, 2], [1, -1])}))
    with pytest.raises(PlanError, match="two layouts"):
        _open(run)
    (run / "strategy/ckpt_strategy_rank_2.ckpt").write_bytes(strategy({"x": Layout([2], [-1])}))
    with pytest.raises(FormatError, match=r"\[2, 4\] ranks"):
        _open(run)


def test_uneven_cuts(tmp_path: Path) -> None:
    (tmp_path / "s.ckpt").write_bytes(layout_item("w", Layout([2], [0]), field=1))
    with pytest.raises(FormatError, match="unevenly"):
        read_strategies([tmp_path / "s.ckpt"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.ckpt", b""),
        ("a.ckpt", b"junk"),
        ("a.ckpt", message(3, message(1, b"w"))),
        ("a.ckpt", message(3, message(1, b"w") + message(2, b""))),
        ("a.json", b"{"),
        ("a.json", b"[]"),
        ("a.json", b'{"parallel_layout_item": {}}'),
        ("a.json", b'{"parallel_layout_item": {"w": {"dev_matrix": [0], "tensor_map": [0]}}}'),
        ("a.json", b'{"parallel_layout_item": {"w": {"dev_matrix": ["a"], "tensor_map": [0]}}}'),
        ("a.json", b'{"parallel_layout_item": {"w": {"dev_matrix": [2], "tensor_map": [{}]}}}'),
    ],
)
def test_what_is_no_strategy(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError):
        read_strategies([tmp_path / name])


@given(st.data())
def test_flipped_bytes_of_a_strategy(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(strategy({"w": Layout([2, 2], [[1, 0], -1], 1, 2), "v": Layout([4], [-1])}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped_strategy.ckpt"
    path.write_bytes(raw)
    with suppress(CkptconvError):
        read_strategies([path])


# Maps of names, and iterations


def _named(folder: Path, places: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2)}, folder / "part0.safetensors", {"format": "ms"})
    save_file({"b": torch.zeros(2)}, folder / "part1.safetensors", {"format": "ms"})
    (folder / "param_name_map.json").write_text(json.dumps(places))
    return folder


def test_a_flat_map(tmp_path: Path) -> None:
    places = {"a": "part0.safetensors", "b": "part1.safetensors"}
    assert list(_open(_named(tmp_path, places)).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("places", "error"),
    [
        ({"a": "part0.safetensors"}, None),
        ({"a": "part1.safetensors", "b": "part1.safetensors"}, PlanError),
        ({"a": "part0.safetensors", "c": "part0.safetensors"}, PlanError),
        ({"a": "part2.safetensors"}, PlanError),
        ({"a": "../part0.safetensors"}, FormatError),
        ([], FormatError),
    ],
)
def test_maps_that_lie(tmp_path: Path, places: Any, error: type[Exception] | None) -> None:
    _named(tmp_path, places)
    if error is None:
        assert list(_open(tmp_path).tensors) == ["a"]
    else:
        with pytest.raises(error):
            _open(tmp_path)


def test_shards_without_a_map(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        save_file(
            {name: torch.ones(2)}, tmp_path / f"ms-model-0000{i}-of-00002.safetensors", {"format": "ms"}
        )
    assert list(_open(tmp_path).tensors) == ["a", "b"]
    save_file({"a": torch.ones(2)}, tmp_path / "ms-model-00001-of-00002.safetensors", {"format": "ms"})
    with pytest.raises(PlanError, match="a is in"):
        _open(tmp_path)


def test_iterations(cases: Path, tmp_path: Path) -> None:
    run = shutil.copytree(cases / "mcore_metadata_4rank", tmp_path / "run")
    shutil.copytree(run / "iteration_00000010", run / "iteration_00000009")
    assert [_open(run, step=s).iteration for s in (None, "9", "iteration_00000009")] == [10, 9, 9]
    (run / "iteration_00000009/common.json").write_text('{"global_step": 1009}')
    assert _open(run, step="iteration_00000009").iteration == 1009
    (run / "latest_checkpointed_iteration.txt").unlink()
    assert any("10 is the newest" in n.text for n in _open(run).notes)
    (run / "latest_checkpointed_iteration.txt").write_text("11")
    with pytest.raises(FormatError, match="iteration '11', which is not there"):
        _open(run)


def _edit(entry: Path, old: str, new: str) -> None:
    text = entry.read_text()
    assert old in text
    entry.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ("linear_fc2.weight', (2,)", "linear_fc2.weight', (7,)", PlanError, "by global_offset"),
        ('"storage_rank": 1', '"storage_rank": 2', PlanError, "by global_offset"),
        ("model-0000001-0000004", "../x", FormatError, "outside its folder"),
        ("model-0000001-0000004", "model-0000009-0000004", PlanError, "is missing"),
        ('"interleaved_parallel": false', '"interleaved_parallel": true', FormatError, "interleaved"),
        ('"device_matrix"', '"device"', FormatError, "not the metadata"),
        ('"decoder.final_layernorm.weight"', '"other"', FormatError, "no slice of a tensor"),
        ("decoder.final_layernorm.weight', (0,)", "x', (0,)", FormatError, "no slice of a tensor"),
    ],
)
def test_metadata_that_lies(
    cases: Path, tmp_path: Path, old: str, new: str, error: type[Exception], match: str
) -> None:
    run = shutil.copytree(cases / "mcore_metadata_4rank", tmp_path / "run")
    _edit(run / "iteration_00000010/metadata.json", old, new)
    with pytest.raises(error, match=match):
        _open(run)


def test_a_wrong_global_shape(cases: Path, tmp_path: Path) -> None:
    run = shutil.copytree(cases / "mcore_metadata_4rank", tmp_path / "run")
    entry = run / "iteration_00000010/metadata.json"
    content = json.loads(entry.read_text())
    content["state_dict_metadata"]["decoder.final_layernorm.weight"]["global_shape"] = [9]
    entry.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"\[8\] in the files, \[9\]"):
        _open(run)


# Names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam_m.model.norm_out.weight", "optimizer states"),
        ("exp_avg_sq_row_model.w", "optimizer states"),
        ("muon_m.w", "optimizer states"),
        ("accu_grads.w", "gradients"),
        ("global_step", "training state"),
        ("scale_sense", "training state"),
        ("decoder.layers.0.mlp.router.expert_load", "buffers"),
        ("model.layers.0.attention.infer_attention.key_cache", "buffers"),
        ("model.norm_out.weight", None),
        ("decoder.layers.0.mlp.router.expert_bias", None),
        ("decoder.layers.0.mlp.expert_bias", None),
        ("decoder.layers.0.mlp.tokens_per_expert", "buffers"),
        ("decoder.layers.0.mlp.router.global_tokens_per_expert", "buffers"),
        ("decoder.layers.0.mlp.router.ga_steps", "buffers"),
        ("main_param.decoder.layers.0.mlp.router.weight", "fp32 masters"),
    ],
)
def test_what_is_no_weight(name: str, kind: str | None) -> None:
    assert beside_weights(name) == kind


def test_masters_are_not_there(cases: Path) -> None:
    with pytest.raises(PlanError, match="holds no fp32 masters"):
        _open(cases / "raw_dtypes/model.ckpt", weights="master")


def test_masters_are_cut_over_ranks_in_their_own_way(tmp_path: Path) -> None:
    tensors = {"w": W.astype(np.float16), "main_param.w": W + 0.0625, "v": V}
    layouts = {
        "w": Layout([2, 2], [1, -1]),
        "main_param.w": Layout([2, 2], [0, -1], 2, 2),
        "v": Layout([2, 2], [-1]),
    }
    run = save(tmp_path / "run", [layouts], tensors)
    for weights, want in (("model", tensors["w"]), ("master", tensors["main_param.w"])):
        model = ckptconv.open(run, weights=weights)
        assert list(model) == ["w", "v"]
        assert model.checkpoint.weights == weights
        assert np.array_equal(model.read("w"), want)
        assert np.array_equal(model.read("v"), V)


def test_a_hugging_face_folder_is_none(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert _open(tmp_path).producer == "huggingface"
    torch.save({"a": torch.ones(2)}, tmp_path / "x.ckpt")
    assert _open(tmp_path / "x.ckpt").producer == "torch"
