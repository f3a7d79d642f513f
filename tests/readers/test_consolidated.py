"""Meta's files: what stands beside them is read once, and is not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptconv.readers import consolidated
from running import ckptconv


@pytest.fixture
def run(tmp_path: Path) -> Path:
    names = [f"layers.{i}.attention.{w}.weight" for i in range(20) for w in ("wq", "wk", "wv", "wo")]
    tensors = {n: torch.ones(4, 4) for n in ("norm.weight", "tok_embeddings.weight", *names)}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(tensors, folder / "consolidated.00.pth")
    return folder


def test_params_are_read_once_however_many_tensors_there_are(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "params.json").write_text(json.dumps({"dim": 4, "n_heads": 1}))
    read: list[Path] = []
    usual = consolidated.read_json

    def counted(path: Path, **how: Any) -> Any:
        read.append(path)
        return usual(path, **how)

    monkeypatch.setattr(consolidated, "read_json", counted)
    consolidated.READER.open(run, consolidated.READER.options())
    assert len(read) == 1


@pytest.mark.parametrize("value", [10**300, "4", -1, None, [], {}, 2.5, True], ids=lambda v: str(v)[:9])
def test_odd_sizes_are_no_crash(run: Path, value: object) -> None:
    (run / "params.json").write_text(json.dumps({"dim": value, "n_heads": value, "n_layers": value}))
    result = ckptconv("convert", run, run.parent / "out", "--to", "hf")
    assert result.code in (1, 4) and "do:" in result.err and "internal" not in result.err
