"""What an old model left in the folder does not change the new one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckptconv
from ckptconv.plans.loaded import leftovers
from running import DEMO, succeeds

OLD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "generation_config.json",
    "quantize_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
    "tokenizer.model",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "diffusion_pytorch_model.safetensors",
    "modeling_old.py",
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    for name in (*OLD, "README.md", "mine.py", "evals/scores.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    (out / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_old.Old"}}))
    return out


def test_overwrite_removes_what_loaders_would_read_and_says_so(out: Path) -> None:
    result = succeeds("deepspeed-to-hf", DEMO, out, "--overwrite")
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {"README.md", "mine.py", "evals/scores.json", "model.safetensors"} <= there
    gone = set(OLD) - there
    assert gone == set(OLD) - {"generation_config.json", "chat_template.jinja"}  # which the new model has too
    assert all(name in " ".join((result.out + result.err).split()).replace(" ", "") for name in gone)
    fresh = out.parent / "fresh"
    ckptconv.convert(DEMO, fresh)
    for path in (p for p in fresh.iterdir() if p.is_file()):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_ranks_leave_a_models_files_alone(out: Path) -> None:
    assert leftovers(out, ["iter_0000001/mp_rank_00/model_optim_rng.pt"]) == []


def test_an_interrupted_run_trusts_digests_and_not_sizes(tmp_path: Path) -> None:
    from ckptconv.engine.whole import is_whole

    for suffix, file_format in (("safetensors", "safetensors"), ("bin", "bin")):
        out = tmp_path / suffix
        report = ckptconv.convert(DEMO, out, assets=False, format=file_format)
        made = ckptconv.plan(DEMO, assets=False, format=file_format)
        (file,) = made.files
        path, digest = out / file.name, report.files[file.name]
        assert is_whole(path, file.layout, digest)
        content = bytearray(path.read_bytes())
        for at in (9, len(content) // 2, len(content) - 5):
            content[at] ^= 1
            path.write_bytes(content)
            assert not is_whole(path, file.layout, digest), (suffix, at)
            content[at] ^= 1


def test_a_value_too_large_for_bfloat16_is_said(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    large = torch.full((300,), torch.finfo(torch.float32).max)
    large[0] = torch.inf
    save_file({"w": large, "v": torch.ones(3)}, tmp_path / "model.safetensors")
    report = ckptconv.convert(
        tmp_path / "model.safetensors", tmp_path / "out", dtype="bfloat16", assets=False
    )
    assert report.overflows == 299
    printed = succeeds(
        *("convert", tmp_path / "model.safetensors", tmp_path / "more", "--to", "hf"),
        *("--dtype", "bfloat16", "--no-assets"),
    )
    assert "299 values are too large for bfloat16" in " ".join(printed.err.split())
