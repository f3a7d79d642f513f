"""What any reader reads and any writer writes is verified by the commands, and one bit of it is found."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckptconv.api.again import open_sides, plan_again
from megatron_cases import Case
from running import DEMO, ROOT, succeeds
from running import ckptconv as run_command

LLAMA = Case("llama.tar.xz", "llama/torch_tp2pp2_te")
LORA = ROOT / "fixtures" / "lora" / "llama"
DISTRIBUTED = ROOT / "fixtures" / "mindspore" / "dist_mp2pp2"
OTHER_CUT = ROOT / "fixtures" / "mindspore" / "dist_dp2mp2_opt" / "strategy"


@dataclass(frozen=True, slots=True)
class Pair:
    """Name a source, what is written, and the flags that both commands take.

    Attributes:
        source: Where it is: of the repository, or below a folder of unpacked archives.
        to: Flags of ``convert`` alone.
        both: Flags of ``convert`` and ``verify-roundtrip``; ``{source}`` stands for the unpacked folder.
    """

    source: str
    to: tuple[str, ...]
    both: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        flags = [Path(f).name for f in (*self.to, *self.both) if not f.startswith("{")]
        return f"{Path(self.source).name}-{'_'.join(flags)}"


MEGATRON = ("--to", "megatron")
MINDFORMERS = ("--to", "mindformers")
STRATEGY = str(DISTRIBUTED / "strategy")
PAIRS = [
    Pair("hf", (*MEGATRON, "--tp", "2", "--pp", "2")),
    Pair("hf", (*MEGATRON, "--tp", "2", "--dtype", "float16")),
    Pair("hf", ("--to", "torch_dist")),
    Pair("hf", ("--to", "dcp", "--dtype", "bfloat16")),
    Pair("hf", MINDFORMERS),
    Pair("hf", (*MINDFORMERS, "--format", "safetensors")),
    Pair("hf", (*MINDFORMERS, "--qkv-concat"), ("--qkv-layout", "contiguous", "--mlp-layout", "contiguous")),
    Pair("hf", ("--to", "hf", "--format", "bin")),
    Pair("demo", (*MEGATRON, "--tp", "2")),
    Pair("demo", ("--to", "hf", "--dtype", "float16", "--format", "bin"), ("--weights", "model")),
    Pair("megatron", (*MEGATRON, "--tp", "1", "--pp", "4")),
    Pair("megatron", MINDFORMERS),
    Pair(
        "dcp/fsdp2_llama_bfloat16_ws3/ckpt", ("--to", "hf"), ("--config", "{dcp}/fsdp2_llama_bfloat16_ws3/hf")
    ),
    Pair(
        "dcp/verl_llama_bfloat16_ws2/ckpt",
        (*MEGATRON, "--tp", "2"),
        ("--config", "{dcp}/verl_llama_bfloat16_ws2/hf"),
    ),
    Pair("lora", ("--to", "hf"), ("--adapter", str(LORA / "adapter"))),
    Pair("mindspore", MINDFORMERS, ("--source-strategy", STRATEGY)),
    Pair("mindspore", MINDFORMERS, ("--source-strategy", STRATEGY, "--strategy", str(OTHER_CUT))),
]


@pytest.fixture(scope="module")
def dcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dcp")
    with tarfile.open(ROOT / "fixtures" / "dcp.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    yield folder / "dcp"


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_pair(pair: Pair, dcp: Path, tmp_path: Path) -> None:
    known = {
        "hf": LLAMA.hf,
        "demo": DEMO,
        "megatron": LLAMA.run,
        "lora": LORA / "base",
        "mindspore": DISTRIBUTED / "checkpoint",
    }
    source = known.get(pair.source) or dcp.parent / pair.source
    both = [f.format(dcp=dcp) for f in pair.both]
    out = tmp_path / "out"
    said = json.loads(succeeds("convert", source, out, *pair.to, *both, "--verify", "--json").out)
    assert said["verify"]["ok"] and said["verify"]["bytes"] > 0
    assert json.loads(succeeds("check", out, "--json").out)["files"] >= 1
    assert json.loads(succeeds("verify-roundtrip", source, out, *both, "--json").out)["tensors"] > 0
    names = [f.removeprefix("--").replace("-", "_") for f in both[::2]]
    values = [
        Path(v) if n in ("strategy", "source_strategy", "adapter") else v
        for n, v in zip(names, both[1::2], strict=True)
    ]
    sides = open_sides(source, out, dict(zip(names, values, strict=True)))
    there = sides.there
    assert there is not None
    _, way, _ = plan_again(sides)
    files = {}
    for joined in way.pairs:
        if joined.left.numel:
            stored = there.stored[joined.left.tensor]
            path, byte, _ = next(stored.spans(joined.left.last, joined.left.last + 1))
            files[path] = byte
    assert files
    for path, byte in files.items():
        flip(Path(path), byte)
        found = run_command("verify-roundtrip", source, out, *both, "--json")
        assert found.code == 3
        mismatches = json.loads(found.out)["mismatches"]
        assert {m["kind"] for m in mismatches} <= {"value", "replica"}
        places = [
            (m[side]["file"], m[side]["byte"]) for m in mismatches for side in ("source", "output") if m[side]
        ]
        assert (path, byte) in places and all(m["count"] == 1 and m["index"] is not None for m in mismatches)
        changed = run_command("check", out)
        assert changed.code == 3 and Path(path).name in changed.out
        flip(Path(path), byte)


def flip(path: Path, byte: int) -> None:
    """Flip the lowest bit of a byte; the file's times stay as they are."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0] ^ 1
        file.seek(byte)
        file.write(bytes([value]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
