"""Every command takes ``--json`` and ``--quiet``, and what it prints is as ``docs/schema.json`` says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.main import get_command

from ckptconv.cli.app import build
from running import DEMO, ROOT, ckptconv, fails, succeeds

SCHEMA = json.loads((ROOT / "docs" / "schema.json").read_text())
CONVERT = ("deepspeed-to-hf", "convert")


def printed(name: str, *arguments: object, code: int = 0) -> dict[str, Any]:
    """Run a command; its output must be as the schema says of ``name``."""
    result = ckptconv(*arguments, "--json")
    assert result.code == code, result.err
    found = json.loads(result.out)
    jsonschema.validate(found, {**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{name}"}]})
    jsonschema.validate(found, SCHEMA)
    return dict(found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    succeeds("deepspeed-to-hf", DEMO, out, "--verify")
    return out


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_command_takes_both() -> None:
    for name in get_command(build(None)).commands:  # type: ignore[attr-defined]
        command = get_command(build(name)).commands[name]  # type: ignore[attr-defined]
        flags = {flag for p in command.params for flag in p.opts}
        assert {"--json", "--quiet", "-q"} <= flags, name


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("diff",), "Missing argument 'A'.", "ckptconv diff -h"),
        (("inspect", "x", "--wat"), "No such option: --wat", "ckptconv inspect -h"),
        (("inspec", "x"), "No such command 'inspec'.", "ckptconv -h"),
    ],
)
def test_what_the_parser_refuses_is_an_error_too(words: tuple[str, ...], message: str, hint: str) -> None:
    result = ckptconv(*words, "--json")
    found = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    error = found["error"]
    assert result.code == error["exit_code"] == 2 and error["message"].startswith(message)
    assert error["hint"] == hint and message in result.err
    assert ckptconv(*words).out == ""


def test_a_path_in_place_of_a_command() -> None:
    result = ckptconv(DEMO)
    assert result.code == 2 and result.err.endswith(f"  do: ckptconv inspect {DEMO}\n")


def test_plans_and_conversions(tmp_path: Path) -> None:
    plan = printed("plan", "deepspeed-to-hf", DEMO, tmp_path / "a", "--dry-run", "--dtype", "bf16")
    done = printed("converted", "deepspeed-to-hf", DEMO, tmp_path / "a", "--dtype", "bf16", "--verify")
    assert done["digest"] == plan["digest"] == done["verify"]["digest"]
    changed = [s for s in done["steps"] if s["kind"] == "config"]
    assert not changed or all({"field", "old", "new"} <= s.keys() for s in changed)
    printed("converted", "convert", tmp_path / "a", tmp_path / "m", "--to", "megatron", "--tp", 2)
    printed("inspected", "inspect", tmp_path / "m", "--tensors", "*norm*")
    printed("converted", "average", tmp_path / "a", tmp_path / "a", tmp_path / "mean")


def test_a_field_of_config_is_a_field(tmp_path: Path) -> None:
    done = printed("converted", "deepspeed-to-hf", DEMO, tmp_path / "a")
    field = next(s for s in done["steps"] if s.get("field") == "dtype")
    assert (field["old"], field["new"]) == ("bfloat16", "float32") and field["why"]


def test_steps(tmp_path: Path) -> None:
    for n in (5, 10):
        folder = tmp_path / "run" / f"checkpoint-{n}"
        folder.mkdir(parents=True)
        save_file({"a": torch.ones(n)}, folder / "model.safetensors")
    (tmp_path / "run" / "checkpoint-15").mkdir()
    printed("ls", "ls", tmp_path / "run")
    flags = ("convert", tmp_path / "run", tmp_path / "out", "--to", "hf", "--no-assets", "--steps", "all")
    printed("convertedSteps", *flags, "--dry-run", code=1)
    found = printed("convertedSteps", *flags, code=1)
    assert [s["step"] for s in found["steps"]] == [5, 10, 15] and "error" in found["steps"][2]


def test_verifying(model: Path, tmp_path: Path) -> None:
    printed("verified", "verify-roundtrip", DEMO)
    printed("verified", "verify-roundtrip", DEMO, model)
    said = printed("checked", "check", model)
    copy = shutil.copytree(model, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert not printed("checked", "check", copy, code=3)["ok"] and said["ok"]
    assert printed("verified", "verify-roundtrip", DEMO, copy, code=3)["mismatches"]
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :2].contiguous()
    tensors["more"] = torch.ones(2)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    shutil.rmtree(copy / "config.json", ignore_errors=True)
    found = printed("diff", "diff", model, copy, "--all", code=3)
    assert found["only_a"] and found["only_b"] and found["counts"]["shape"] == 1


def test_looking(model: Path) -> None:
    printed("inspected", "inspect", DEMO)
    printed("inspected", "inspect", model, "--tensors", "*norm*")
    printed("explained", "explain", DEMO, "model.norm.weight")
    printed("matches", "explain", DEMO, "*norm*")
    printed("families", "families")
    printed("ls", "ls", DEMO)


def test_errors(tmp_path: Path) -> None:
    assert printed("failed", "inspect", tmp_path / "none", code=1)["error"]["exit_code"] == 1
    assert printed("failed", "ls", tmp_path / "none", code=1)["error"]["hint"]


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_prints_nothing_but_errors(model: Path, flag: str, tmp_path: Path) -> None:
    for words in (
        ("inspect", DEMO),
        ("ls", DEMO),
        ("families",),
        ("explain", DEMO, "model.norm.weight"),
        ("explain", DEMO, "*norm*"),
        ("check", model),
        ("diff", DEMO, model),
        ("verify-roundtrip", DEMO, model),
        ("deepspeed-to-hf", DEMO, tmp_path / "a", "--verify"),
        ("average", model, model, tmp_path / "mean"),
    ):
        result = succeeds(*words, flag)
        assert (result.out, result.err) == ("", ""), words
    assert "no such" in fails(1, "inspect", tmp_path / "none", flag)
