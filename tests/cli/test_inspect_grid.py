"""inspect and --dry-run show ranks, stages and who holds which slice, briefly for any number of ranks."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from ckptconv.cli import render_grid
from ckptconv.containers.torch.rankfile import tensor_key
from ckptconv.parallel import Grid
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Spec
from ckptconv.verify.overview import holders_of_keys, kind_of, layers_text, pipeline
from megatron_cases import Case
from running import DEMO, succeeds

VIRTUAL = Case("llama.tar.xz", "llama/torch_tp1pp2vpp2_te")
UNEVEN = Case("llama.tar.xz", "llama/torch_tp1pp2_te_uneven")
TENSOR = Case("llama.tar.xz", "llama/torch_tp2pp1_te_te1x")


def shown(function: object, *arguments: object, **options: object) -> str:
    """Return what a renderer prints on 80 columns."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        function(*arguments, **options)  # type: ignore[operator]
    return out.getvalue()


def test_the_reader_says_which_layers_a_stage_has() -> None:
    stages = open_checkpoint(VIRTUAL.run).stages
    assert {k: list(v) for k, v in stages.items()} == {"0.0": [0], "1.0": [1], "0.1": [2], "1.1": [3]}
    uneven = open_checkpoint(UNEVEN.run).stages
    assert [len(v) for v in uneven.values()] in ([1, 3], [3, 1])


def test_inspect_shows_stages_and_layers() -> None:
    lines = succeeds("inspect", VIRTUAL.run).out.splitlines()
    assert any("ranks: 2 (pp 2)" in line for line in lines)
    assert any(line.split()[:4] == ["0", "0", "|", "2"] for line in lines)
    assert "a rank" not in succeeds("inspect", DEMO).out


def test_inspect_says_who_holds_which_slice() -> None:
    out = succeeds("inspect", TENSOR.run, "--tensors", "*layers.0*").out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "[0:64, :] mp_rank_00" in lines and "[64:128, :] mp_rank_01" in lines
    assert "[:] mp_rank_00 mp_rank_01" in lines  # a norm and its copy
    said = json.loads(succeeds("inspect", TENSOR.run, "--tensors", "*final*", "--json").out)
    assert [p["ranks"] for p in said["held"][0]["pieces"]] == [["mp_rank_00"], ["mp_rank_01"]]
    assert [h["name"] for h in said["holders"]] == ["mp_rank_00", "mp_rank_01"]
    assert said["holders"][0]["bytes"] == said["holders"][1]["bytes"] > 0
    assert said["holders"][1]["copies"] > said["holders"][0]["copies"] == 0
    assert sum(k["bytes"] for k in said["kinds"]) == said["bytes"]


def test_a_dry_run_shows_the_ranks_of_both_sides(tmp_path: Path) -> None:
    split = succeeds("megatron-split", TENSOR.hf, tmp_path / "out", "--tp", "2", "--pp", "4", "--dry-run").out
    assert "ranks written: 8 (tp 2 x pp 4)" in split and "ranks of the source" not in split
    again = succeeds("convert", VIRTUAL.run, tmp_path / "o", "--to", "megatron", "--tp", "2", "--dry-run").out
    assert "ranks of the source: 2 (pp 2)" in again and "ranks written: 2 (tp 2)" in again


@pytest.mark.parametrize(
    "grid", [Grid(2, 2), Grid(2, 1, ep=2, etp=1), Grid(1, 2, ep=2), Grid(2, 2, 2), Grid()], ids=str
)
def test_ranks_are_read_off_their_tensors_names(grid: Grid) -> None:
    tensors = {}
    for rank in grid.ranks():
        for chunk in range(grid.vpp):
            names = [f"decoder.layers.{n}.mlp.linear_fc1.weight" for n in range(3)]
            if rank.pp == 0:
                names.append("embedding.word_embeddings.weight")
            for name in names:
                tensors[tensor_key(grid.folder(rank), chunk, grid.vpp, name)] = Spec((2, 3), "bfloat16")
    holders, layers = holders_of_keys(tensors)
    assert {h["name"]: (h["tp"], h["pp"], h["ep"]) for h in holders} == {
        grid.folder(r): r for r in grid.ranks()
    }
    assert len(layers) == grid.pp * grid.vpp and all(n == [0, 1, 2] for n in layers.values())
    assert sum(h["bytes"] for h in holders) == sum(s.numel * 2 for s in tensors.values())
    assert sum(row["ranks"] for row in pipeline(holders, {})) == len(holders)


def test_names_that_are_not_of_ranks_are_left_alone() -> None:
    assert holders_of_keys({"model.norm.weight": Spec((2,), "float32")}) == ([], {})
    assert holders_of_keys({}) == ([], {})


def test_hundreds_of_ranks_fit_a_page() -> None:
    grid = Grid(8, 64)
    holders = [
        {"name": grid.folder(r), "tensors": 50, "bytes": 4 * 10**9 + (r.pp in (0, 63)) * 10**9, **r._asdict()}
        for r in grid.ranks()
    ]
    layers = {str(p): [2 * p, 2 * p + 1] for p in range(64)}
    lines = shown(render_grid.stages, holders, layers, title="ranks").splitlines()
    assert len(lines) < 10 and max(map(len, lines)) <= 80
    assert lines[1].startswith("ranks: 512 (tp 8 x pp 64)")
    assert any(line.split()[:4] == ["1-62", "2-3", "...", "124-125"] for line in lines)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.mlp.experts.17.up_proj.weight", (3, "mlp.experts.*.up_proj.weight")),
        ("transformer.h.11.attn.c_attn.bias", (11, "attn.c_attn.bias")),
        ("decoder.layers.0.mlp.experts.linear_fc1.weight5", (0, "mlp.experts.linear_fc1.weight#")),
        ("lm_head.weight", (None, "lm_head.weight")),
    ],
)
def test_kinds_of_tensors(name: str, kind: tuple[int | None, str]) -> None:
    assert kind_of(name) == kind


def test_layers_are_written_briefly() -> None:
    assert layers_text([3, 0, 1, 2, 7]) == "0-3, 7"
    assert layers_text([]) == ""
