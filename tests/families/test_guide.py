"""The family that CONTRIBUTING.md shows converts a real run in both directions, as it says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import torch

from megatron_cases import Case
from running import ROOT, loaded, succeeds


def test_the_family_of_the_guide_works_as_it_is(tmp_path: Path) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"(?m)^    from ckptconv\.families import Family\n(?:(?:    .*)?\n)*", guide)
    assert found is not None
    table, model, again = tmp_path / "mine.py", tmp_path / "model", tmp_path / "again"
    table.write_text(textwrap.dedent(found[0]), encoding="utf-8")
    case = Case("llama.tar.xz", "llama/torch_tp2pp2_te")
    succeeds("megatron-merge", case.run, model, "--family", table, "--verify")
    succeeds("megatron-split", model, again, "--tp", 4, "--family", table, "--verify")

    named, llama = loaded(model), tmp_path / "llama"
    succeeds("megatron-merge", case.run, llama, "--config", case.hf)
    truth = loaded(llama)
    assert torch.equal(named["backbone.embed.weight"], truth["model.embed_tokens.weight"])
    qkv = [truth[f"model.layers.2.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(named["backbone.blocks.2.attn.qkv.weight"], torch.cat(qkv))
