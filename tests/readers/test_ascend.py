"""What MindSpeed-LLM and MindSpeed-MM leave goes to Hugging Face's form, or is asked about."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ckptconv
from ckptconv.errors import PlanError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def saved(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, unpacked."""
    folder = tmp_path_factory.mktemp("ascend")
    with tarfile.open(fixtures / "ascend.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "ascend"


def _converted(saved: Path, out: Path, name: str, **more: Any) -> None:
    """Convert a case and compare each tensor with the model it was made from."""
    case = saved / name
    source = case / ("shards" if (case / "shards").is_dir() else "ckpt")
    ckptconv.convert(source, out, config=str(case / "hf"), **more)
    found, wanted = ({k: v for f in p.glob("*.safetensors") for k, v in load_file(f).items()}
                     for p in (out, case / "hf"))  # fmt: skip
    assert found.keys() == wanted.keys()
    assert [n for n in found if not torch.equal(found[n].to(wanted[n].dtype), wanted[n])] == []


@pytest.mark.parametrize(
    "name",
    [
        "ds3_head_mtp_dualpipev_gg_pp2ep2",  # folded stages, which no argument tells
        "ds3_200_mtp_tp2",  # mtp_layers.*
        "v2_qwen3_next_gg_ep2",  # gated delta nets as the model has them, their norm too
        "mm_qwen25vl_tp2pp2",  # two stacks of layers, numbered apart
        "fsdp2_qwen3_moe_grouped2d",  # experts in two axes
        "v2_longcat_tp2pp2ep2",  # two attentions in a layer, names with numbers of their own
        "v2_dsv4_mtp_gg_etp1_pp2ep2",  # hyper-connections, a compressed past, experts chosen by hash
        "v2_plm_tp1pp1",  # latent attention, no gate
    ],
)
def test_the_files_say_all(saved: Path, tmp_path: Path, name: str) -> None:
    _converted(saved, tmp_path / "out", name)


@pytest.mark.parametrize(
    ("name", "spread"), [("ds3_head_gg_tpext_tp2ep2", True), ("ds3_200_gg_mmsplit_tp2pp2", False)]
)
def test_whether_experts_are_spread_is_asked_where_nothing_tells(
    saved: Path, tmp_path: Path, name: str, spread: bool
) -> None:
    with pytest.raises(PlanError) as caught:
        _converted(saved, tmp_path / "out", name)
    assert "extend_ep=True" in (caught.value.hint or "") and "extend_ep=False" in (caught.value.hint or "")
    _converted(saved, tmp_path / "out", name, extend_ep=spread)


def test_a_flag_that_contradicts_the_arguments_is_refused(saved: Path) -> None:
    case = saved / "v2_qwen3_next_gg_ep2"
    with pytest.raises(PlanError, match="moe_tp_extend_ep False, the flag says True"):
        ckptconv.plan(case / "shards", config=str(case / "hf"), extend_ep=True)


def test_gated_delta_nets_are_not_cut_over_ranks(saved: Path) -> None:
    hf = saved / "v2_qwen3_next_gg_ep2" / "hf"
    with pytest.raises(PlanError, match="gated delta nets"):
        ckptconv.plan(hf, to="megatron", dialect="mindspeed", tp=2)


@pytest.mark.parametrize("name", ["v2_longcat_tp2pp2ep2", "v2_dsv4_mtp_gg_etp1_pp2ep2"])
def test_the_very_ranks_come_back(saved: Path, tmp_path: Path, name: str) -> None:
    case = saved / name
    ckptconv.convert(case / "hf", tmp_path / "run", to="megatron", like=str(case / "shards"))
    for path in (case / "shards").rglob("*.pt"):
        wanted = torch.load(path, weights_only=False)["model"]
        found = torch.load(tmp_path / "run" / path.relative_to(case / "shards"), weights_only=False)["model"]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in found if wanted[n] is not None)
