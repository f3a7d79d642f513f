"""The dialect, the reader and the target that CONTRIBUTING.md shows work as they stand there."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckptconv.dialects import DIALECTS
from ckptconv.readers.registry import READERS
from ckptconv.writers.registry import WRITERS
from megatron_cases import Case
from running import DEMO, ROOT, ckptconv, loaded, succeeds


def shown(title: str) -> dict[str, Any]:
    """Run the first block of code below a title, and return what it defines."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide[guide.index(f"## {title}") :]
    found = re.search(r"(?m)^    from (?:.*\n)(?:    .*\n|\n)*", section)
    assert found is not None
    names: dict[str, Any] = {"__name__": "mine"}
    exec(compile(textwrap.dedent(found[0]), title, "exec", dont_inherit=True), names)
    return names


def test_the_reader_and_the_target_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READERS, "_foreign", {"mine": shown("Adding a reader")["READER"]})
    monkeypatch.setattr(WRITERS, "_foreign", {"mine": shown("Adding a target")["WRITER"]})
    succeeds("convert", DEMO, tmp_path / "plain", "--to", "mine", "--verify")
    written = load_file(tmp_path / "plain" / "weights.mine")
    assert all(name.startswith("model.") for name in written)
    succeeds("convert", tmp_path / "plain", tmp_path / "back", "--to", "hf", "--config", DEMO)
    succeeds("deepspeed-to-hf", DEMO, tmp_path / "model")
    back, model = loaded(tmp_path / "back"), loaded(tmp_path / "model")
    assert back.keys() == model.keys() and all(torch.equal(back[n], model[n]) for n in model)
    succeeds("convert", DEMO, tmp_path / "ema", "--to", "mine", "--prefix", "ema.")
    assert json.loads(succeeds("inspect", tmp_path / "ema", "--ema", "--json").out)["tensors"]
    refused = ckptconv("convert", DEMO, tmp_path / "no", "--to", "hf", "--prefix", "x")
    assert refused.code == 2 and "--to mine" in refused.err


def test_the_dialect_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = shown("Adding a dialect")["MINE"]
    mine = replace(
        mine, lines=tuple(replace(x, name=x.name.replace("decoder.", "trunk.")) for x in mine.lines)
    )
    monkeypatch.setattr(DIALECTS, "_foreign", {"mine": mine})
    case = Case("llama.tar.xz", "llama/torch_tp2pp2_te")
    succeeds(
        "megatron-split", case.hf, tmp_path / "run", "--tp", 2, "--pp", 2, "--dialect", "mine", "--verify"
    )
    shown_names = json.loads(succeeds("inspect", tmp_path / "run", "--json").out)["tensors"]
    assert {t["name"].partition(".")[0] for t in shown_names} == {"embedding", "trunk", "output_layer"}
    succeeds("megatron-merge", tmp_path / "run", tmp_path / "model", "--verify")
    back, model = loaded(tmp_path / "model"), loaded(case.hf)
    assert back.keys() == model.keys() and all(torch.equal(back[n], model[n]) for n in model)
