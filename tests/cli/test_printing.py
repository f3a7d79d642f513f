"""Results go to stdout, notes to stderr, plans tell the truth, and help costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ckptconv as api
from running import CASES, DEMO, ROOT, ckptconv, command, contents, fails, loaded, succeeds

COMMANDS = ("deepspeed-to-hf", "convert", "inspect")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    "flags",
    [(), ("--max-shard-size", "40KB"), ("--format", "bin"), ("--dtype", "bfloat16")],
    ids=" ".join,
)
def test_a_dry_run_writes_nothing_and_tells_what_is_written_then(out: Path, flags: tuple[str, ...]) -> None:
    plan = json.loads(succeeds("deepspeed-to-hf", DEMO, out, *flags, "--dry-run", "--json").out)
    assert not out.exists()
    succeeds("deepspeed-to-hf", DEMO, out, *flags)
    sizes = {f["name"]: f["bytes"] for f in (*plan["files"], *plan["assets"])}
    assert sizes == {n: len(b) for n, b in contents(out).items()}
    assert plan["bytes"] == sum(f["bytes"] for f in plan["files"])
    tensors = loaded(out)
    for file in plan["files"]:
        data = (out / file["name"]).read_bytes()
        for t in file["tensors"]:
            value = tensors.pop(t["name"])
            assert t["shape"] == list(value.shape) and f"torch.{t['dtype']}" == str(value.dtype)
            import torch

            raw = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            assert data[t["offset"] : t["offset"] + len(raw)] == raw
    assert not tensors


def test_a_dry_run_prints_files_steps_and_memory(out: Path) -> None:
    shown = succeeds(
        "deepspeed-to-hf", DEMO, out, "--dry-run", "--dtype", "bfloat16", "--drop", "lm_head.weight"
    ).out
    for text in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "cast",
        "float32 -> bfloat16",
        "drop",
        "--drop lm_head.weight",
        "peak memory",
    ):
        assert text in shown
    assert not out.exists()


def test_json_is_all_there_is_on_stdout(out: Path) -> None:
    process = subprocess.run(
        command("deepspeed-to-hf", DEMO, out, "--json"), capture_output=True, cwd=ROOT, check=True
    )
    report = json.loads(process.stdout)
    assert report["out"] == str(out) and report["tensors"] == len(loaded(out))
    assert {f["name"] for f in report["files"]} == {"model.safetensors"}
    assert report["bytes"] == (out / "model.safetensors").stat().st_size
    assert set(report["assets"]) == set(contents(out)) - {"model.safetensors"}


def test_the_digest_in_json_is_that_of_the_file(out: Path) -> None:
    import xxhash

    report = json.loads(succeeds("deepspeed-to-hf", DEMO, out, "--json").out)
    data = (out / "model.safetensors").read_bytes()
    blocks = [xxhash.xxh3_64(data[i : i + (4 << 20)]).digest() for i in range(0, len(data), 4 << 20)]
    assert report["files"][0]["digest"] == xxhash.xxh3_128(b"".join(blocks)).hexdigest()


def test_json_errors_are_json_too(tmp_path: Path, out: Path) -> None:
    result = ckptconv("deepspeed-to-hf", tmp_path / "none", out, "--json")
    error = json.loads(result.out)["error"]
    assert result.code == error["exit_code"] == 1
    assert error["where"] == str(tmp_path / "none") and error["message"]


def test_quiet_is_silent(out: Path) -> None:
    process = subprocess.run(
        command("deepspeed-to-hf", DEMO, out, "--quiet"), capture_output=True, cwd=ROOT, check=True
    )
    assert process.stdout == b"" and process.stderr == b""


def test_without_quiet_the_result_is_said(out: Path) -> None:
    result = succeeds("deepspeed-to-hf", DEMO, out)
    assert "done 21 tensors" in result.out and str(out) in result.out


def test_a_closed_pipe_is_no_traceback(out: Path) -> None:
    line = " ".join(command("inspect", DEMO, "--json")) + " | head -c 10"
    process = subprocess.run(line, shell=True, capture_output=True, cwd=ROOT)
    assert b"Traceback" not in process.stderr and b"Exception" not in process.stderr


def test_a_traceback_only_with_debug(tmp_path: Path, out: Path) -> None:
    words = command("deepspeed-to-hf", tmp_path / "none", out)
    plain = subprocess.run(words, capture_output=True, cwd=ROOT)
    debug = subprocess.run([*words, "--debug"], capture_output=True, cwd=ROOT)
    assert plain.returncode == debug.returncode == 1
    assert b"Traceback" not in plain.stderr and b"Traceback" in debug.stderr


def test_version() -> None:
    assert succeeds("--version").out == f"ckptconv {api.__version__}\n"


def test_help_lists_the_commands() -> None:
    shown = succeeds("--help").out
    assert all(name in shown for name in COMMANDS) and "Example" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example(name: str) -> None:
    assert f"ckptconv {name} " in succeeds(name, "--help").out.split("Arguments", 1)[1]


def test_shell_completion_is_there() -> None:
    import os

    env = {
        **os.environ,
        "_CKPTCONV_COMPLETE": "complete_bash",
        "COMP_WORDS": "ckptconv deep",
        "COMP_CWORD": "1",
    }
    process = subprocess.run(command(), capture_output=True, cwd=ROOT, env=env)
    assert b"deepspeed-to-hf" in process.stdout


_LEAN = """
import sys
def run(*arguments):
    from ckptconv.cli import main
    sys.argv = ["ckptconv", *arguments]
    try:
        main()
    except SystemExit as e:
        assert not e.code, e.code
def lean(what):
    banned = {"torch", "transformers", "ray", "fsspec"}
    banned |= {"numpy._core", "ml_dtypes"} if what in ("import", "--help") else set()
    assert not banned & set(sys.modules), f"{what} imports {banned & set(sys.modules)}"
run_folder, out = sys.argv[1:]
import ckptconv
lean("import")
run("--help")
lean("--help")
run("inspect", run_folder, "--json")
run("inspect", run_folder)
lean("inspect")
run("deepspeed-to-hf", run_folder, out, "--dtype", "bfloat16", "--quiet")
lean("a conversion with casts")
run("deepspeed-to-hf", run_folder, out, "--dtype", "float16", "--format", "bin", "--overwrite")
lean("a conversion to .bin")
"""


def test_no_framework_is_imported(out: Path) -> None:
    process = subprocess.run([sys.executable, "-c", _LEAN, DEMO, out], capture_output=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr.decode()


class TestInspect:
    def test_json(self) -> None:
        shown = json.loads(succeeds("inspect", DEMO, "--json").out)
        assert {
            "producer", "format", "versions", "layout", "step", "dtypes", "bytes", "tensors", "files",
            "notes",
        } <= set(shown)  # fmt: skip
        assert shown["producer"] == "deepspeed" and shown["step"] == 2
        assert shown["layout"]["dp"] == 2 and shown["layout"]["zero_stage"] == 3
        assert shown["dtypes"] == {"float32": 21}
        assert {"name": "model.norm.weight", "shape": [48], "dtype": "float32", "buffer": False} in shown[
            "tensors"
        ]
        files = {Path(f["path"]).name: f["bytes"] for f in shown["files"]}
        there = {p.name: p.stat().st_size for p in (DEMO / "global_step2").iterdir()}
        assert files == there
        assert shown["bytes"] == 4 * shown["parameters"]

    def test_table(self) -> None:
        shown = succeeds("inspect", DEMO).out
        for text in ("deepspeed", "ZeRO stage 3", "fp32 masters", "model.embed_tokens.weight", "384x48"):
            assert text in shown

    def test_tensors_by_pattern(self) -> None:
        names = [
            t["name"]
            for t in json.loads(succeeds("inspect", DEMO, "--json", "--tensors", "*.1.*norm*").out)["tensors"]
        ]
        assert names == [
            "model.layers.1.input_layernorm.weight",
            "model.layers.1.post_attention_layernorm.weight",
        ]
        shown = succeeds("inspect", DEMO, "--tensors", "*norm*").out
        assert "5 tensors match" in shown and "model.norm.weight" in shown and "q_proj" not in shown

    def test_weights(self) -> None:
        shown = json.loads(succeeds("inspect", DEMO, "--json", "--weights", "model").out)
        assert shown["weights"] == "model" and set(shown["dtypes"]) == {"bfloat16"}

    def test_ties_are_shown(self) -> None:
        run = CASES / "gpt2tied_z2_fp16_ws3" / "ckpt"
        assert json.loads(succeeds("inspect", run, "--json").out)["aliases"] == {
            "lm_head.weight": "transformer.wte.weight"
        }
        assert "lm_head.weight = transformer.wte.weight" in succeeds("inspect", run).out

    def test_what_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "x.pt").write_bytes(b"no torch file")
        fails(1, "inspect", tmp_path / "x.pt", naming=("x.pt",))

    def test_nothing_is_read_but_metadata(self, tmp_path: Path) -> None:
        """A terabyte of zeros, which no disk holds, is inspected at once."""
        path = tmp_path / "model.safetensors"
        header = json.dumps(
            {"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
        ).encode()
        header += b" " * (-len(header) % 8)
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + (1 << 40))
        assert json.loads(succeeds("inspect", path, "--json").out)["bytes"] == 1 << 40
