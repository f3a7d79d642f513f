"""The commands verify-roundtrip and check, and --verify, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ckptconv.verify.certificate import NAME
from running import DEMO, case_run, command, fails, succeeds
from running import ckptconv as run_command


@pytest.fixture
def out(tmp_path: Path) -> Path:
    succeeds("deepspeed-to-hf", DEMO, tmp_path / "out", "--dtype", "bfloat16", "--quiet")
    return tmp_path / "out"


def spoil(out: Path) -> None:
    path = out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_summary_a_person_can_read(out: Path) -> None:
    shown = succeeds("verify-roundtrip", DEMO, out).out
    for text in ("21 tensors", "identity", "float32 -> bfloat16", NAME, "verified"):
        assert text in shown
    assert (out / NAME).exists()


def test_json_for_a_pipeline(out: Path) -> None:
    said = json.loads(succeeds("verify-roundtrip", DEMO, out, "--json", "--no-certificate").out)
    assert said["ok"] and said["tensors"] == 21 and said["proof"]["complete"]
    assert not (out / NAME).exists()
    spoil(out)
    result = run_command("verify-roundtrip", DEMO, out, "--json")
    assert result.code == 3
    (found,) = json.loads(result.out)["mismatches"]
    assert found["count"] == 1 and found["output"]["file"] == str(out / "model.safetensors")
    assert found["source"]["byte"] > 0 and len(found["index"]) in (1, 2)


def test_a_mismatch_is_shown_with_its_places(out: Path) -> None:
    spoil(out)
    result = run_command("verify-roundtrip", DEMO, out, "--quiet")
    assert result.code == 3 and "1 difference (1 x value)" in result.out
    assert str(out / "model.safetensors") in result.out and "optim_states.pt at byte" in result.out
    assert not (out / NAME).exists()


def test_quiet_says_nothing(out: Path) -> None:
    assert succeeds("verify-roundtrip", DEMO, out, "--quiet").out == ""


def test_a_source_alone(tmp_path: Path) -> None:
    shown = succeeds("verify-roundtrip", DEMO).out
    assert "read" in shown and "the source is sound" in shown
    run = case_run("llama_z0_bf16_ws2", tmp_path / "run")
    assert "replicas  21" in succeeds("verify-roundtrip", run).out


def test_check(out: Path) -> None:
    fails(1, "check", out, naming=("verify-roundtrip",))
    succeeds("verify-roundtrip", DEMO, out)
    assert "unchanged" in succeeds("check", out).out
    assert json.loads(succeeds("check", out, "--json").out)["ok"]
    spoil(out)
    (out / "more.txt").write_text("x")
    result = run_command("check", out)
    assert result.code == 3 and "model.safetensors" in result.out and "more.txt" in result.err
    said = json.loads(run_command("check", out, "--json").out)
    assert (
        not said["ok"] and said["wrong"][0]["file"] == "model.safetensors" and said["extra"] == ["more.txt"]
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_check_finds_a_bit_of_an_asset(out: Path, name: str) -> None:
    succeeds("verify-roundtrip", DEMO, out)
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    said = json.loads(run_command("check", out, "--json").out)
    assert not said["ok"] and [w["file"] for w in said["wrong"]] == [name]


def test_verify_on_a_conversion(tmp_path: Path) -> None:
    result = succeeds("deepspeed-to-hf", DEMO, tmp_path / "out", "--verify")
    assert "done" in result.out and "verified" in result.out
    succeeds("check", tmp_path / "out")
    flags = ("--to", "megatron", "--tp", "2", "--verify", "--json")
    said = json.loads(succeeds("convert", tmp_path / "out", tmp_path / "ranks", *flags).out)
    assert said["verify"]["ok"] and said["verify"]["digest"] == said["digest"]
    certificate = json.loads((tmp_path / "ranks" / NAME).read_text())
    assert certificate["plan"] == said["digest"]


def test_verify_finds_what_the_disk_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptconv.engine import run as engine

    commit = engine.commit

    def failing(plan: object, folder: Path, journal: object) -> list[str]:
        gone = commit(plan, folder, journal)  # type: ignore[arg-type]
        spoil(folder)
        return gone

    monkeypatch.setattr(engine, "commit", failing)
    result = run_command("deepspeed-to-hf", DEMO, tmp_path / "out", "--verify")
    assert result.code == 3 and "model.safetensors" in result.err
    assert not (tmp_path / "out" / NAME).exists()


def with_code(out: Path) -> None:
    """Make a model one whose code lies on the hub."""
    config = json.loads((out / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    (out / "config.json").write_text(json.dumps(config))


def test_bytes_are_judged_where_the_model_cannot_run(out: Path, tmp_path: Path) -> None:
    with_code(out)
    # Two fields of the config are another model's, so it is given as the one the conversion had.
    given = shutil.copytree(out, tmp_path / "given")
    words = ("verify-roundtrip", DEMO, out, "--logits", "--family", "qwen2", "--config", given)
    page = tmp_path / "page.html"
    result = run_command(*words, "--report", page)
    assert result.code == 1
    assert "21 tensors" in result.out and "verified" in result.out and (out / NAME).exists()
    assert "modeling_own.OwnForCausalLM" in result.err and "leave --logits out" in result.err
    assert "modeling_own.OwnForCausalLM" in page.read_text()
    result = run_command(*words, "--json")
    said = json.loads(result.out)
    assert result.code == 1 and said["ok"] and "modeling_own" in said["logits"]["error"]
    spoil(out)
    result = run_command(*words)
    assert result.code == 3 and "1 x value" in result.out and "no logits" in result.out


def test_a_reference_needs_logits(out: Path) -> None:
    fails(2, "verify-roundtrip", DEMO, out, "--reference", out)


def test_nothing_heavy_is_imported(out: Path) -> None:
    import subprocess

    code = (
        "import sys\nfrom ckptconv.cli import main\nsys.argv = ['ckptconv', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    python = command()[0]
    subprocess.run([python, "-c", code, "verify-roundtrip", str(DEMO), str(out)], check=True)
    shutil.rmtree(out)
