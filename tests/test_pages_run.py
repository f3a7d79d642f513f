"""The commands that README and pages show do what they say: each is run, its words standing for real runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import TOKEN, Hub, serving
from running import DEMO, ROOT, case_run, ckptconv, command, succeeds

_NAMES = ("deepspeed", "average", "publish", "runs", "recipes", "verify")
PAGES = ("README.md", *(f"docs/{name}.md" for name in _NAMES))
_LINE = re.compile(r"(?m)^ {4}(?:uvx --from \. )?(ckptconv .*)$")
# What needs another machine, a hub of the world's, no end, or a folder of the reader's own.
_ELSEWHERE = (
    *("--watch", "--engine", "--logits", "s3://", "Qwen/", "verify.json", "pytorch_model_fsdp_0"),
    *("global_step_100", "model.pt", "run/", "PEFT_DIR", "OTHER", "visual.*", "--rename", "--format h5"),
)
_WRITES = (
    *("deepspeed-to-hf", "megatron-merge", "megatron-split", "mindformers-to-hf", "hf-to-mindformers"),
    *("convert", "average"),
)


def _lines() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for page in PAGES:
        for line in _LINE.findall((ROOT / page).read_text(encoding="utf-8")):
            bare = line.split(" #")[0].split(" |")[0].rstrip()
            if not any(word in bare for word in _ELSEWHERE):
                found.setdefault(bare, page)
    return [(page, line) for line, page in found.items()]


LINES = _lines()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what the words of the pages stand for."""
    folder = tmp_path_factory.mktemp("pages")
    for step in (100, 200, 300, 800, 900):
        shutil.copytree(DEMO, folder / "run" / f"checkpoint-{step}")
    succeeds("deepspeed-to-hf", folder / "run", folder / "model", "--verify")
    succeeds("convert", folder / "model", folder / "ranks", "--to", "megatron", "--tp", 2)
    case_run("llama_z3_bf16_ws2_lora", folder / "lora")
    lora = ("--lora", "adapter", "--lora-alpha", 16)
    succeeds("convert", folder / "lora", folder / "peft", "--to", "hf", *lora)
    succeeds("convert", folder / "lora", folder / "base", "--to", "hf", "--lora", "merge", "--lora-alpha", 16)
    succeeds("average", folder / "run" / "checkpoint-800", folder / "run" / "checkpoint-900", folder / "mean")
    with tarfile.open(ROOT / "fixtures" / "mindspore" / "pairs.tar.xz") as archive:
        archive.extractall(folder / "pairs", filter="data")
    return folder


def _stands_for(world: Path, words: list[str], out: Path) -> list[str]:
    """Return a command with folders for its words; what it writes goes to ``out``."""
    name = words[0]
    run = world / {"megatron-merge": "ranks"}.get(name, "lora" if "--lora" in words else "run")
    mindspore = world / "pairs" / "llama2_gqa_bf16" / "ms"
    if name == "mindformers-to-hf":
        run = next(p for p in sorted(mindspore.iterdir()) if p.suffix in (".ckpt", ".safetensors"))
    model = world / "model"
    if name == "verify-roundtrip" and "RUN/checkpoint-800" in words:
        model = world / "mean"
    known: dict[str, object] = {
        **dict.fromkeys(("RUN", "ANY"), run),
        **dict.fromkeys(("MODEL", "HF_MODEL", "model/", "B"), model),
        "A": world / "run" / "checkpoint-100",
        "C": world / "run" / "checkpoint-200",
        "BASE": world / "base",
        "PEFT": world / "peft",
        "MEGATRON_RUN": world / "ranks",
        "USER/MODEL": "me/model",
        "run.yaml": next(mindspore.glob("*.yaml")),
    }
    flags = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    made = [f"{run}/{w[4:]}" if w.startswith("RUN/") else str(known.get(w, w)) for w in words]
    if name in _WRITES:
        made[flags - 1] = str(out)
    return made


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving() as found:
        found.home = tmp_path / "hf"
        yield found


@pytest.mark.parametrize(("page", "line"), LINES, ids=[line for _, line in LINES])
def test_a_command_of_the_pages(
    world: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, page: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    out = tmp_path / "out"
    made = _stands_for(world, words, out)
    again = [w for w in made if w not in ("--resume", "--overwrite")]
    if again != made:
        assert ckptconv(*again).code == 0
    if "push" in words or "--push-to-hub" in words:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        env["HF_HOME"] = str(hub.home)
        ran = subprocess.run(command(*made), env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0 and hub.commits == 1 and "me/model" in hub.repos, ran.stderr
        return
    result = ckptconv(*made)
    allowed = (0, 3) if words[0] == "diff" else (0,)
    assert result.code in allowed, f"{page}: {' '.join(made)}\n{result.err}"
    assert out.exists() == (words[0] in _WRITES and "--dry-run" not in words)


def test_most_commands_of_the_pages_are_run() -> None:
    assert len(LINES) > 45
    assert {line.split()[1] for _, line in LINES} >= {*_WRITES, "push", "diff", "check", "ls", "explain"}
