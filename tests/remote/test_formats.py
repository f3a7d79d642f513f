"""Every format is read from S3, and written there, as it is on disk; commands that only look say the same."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from faulty import FaultyProxy
from running import ROOT, ckptconv, contents, succeeds

pytestmark = pytest.mark.filterwarnings("ignore")
FIXTURES = ROOT / "fixtures"


@dataclass(frozen=True, slots=True)
class Format:
    """Name a checkpoint by archive (or none) and path, and what else its conversion needs.

    Attributes:
        archive: An archive below ``fixtures``; empty for what lies there unpacked.
        path: Of the checkpoint in it.
        config: Of the folder with its config.json; empty if it needs none.
        flags: More flags.
        beside: Adapters.
    """

    archive: str
    path: str
    config: str = ""
    flags: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.path.replace("/", "-")


_MINDSPORE = "mindspore/pairs.tar.xz"
READ = [
    Format("", "demo-run/checkpoint-2"),
    Format("", "deepspeed/llama_z2_bf16_ws2_roundrobin/ckpt", "deepspeed/llama_z2_bf16_ws2_roundrobin"),
    Format("", "deepspeed/llama_tp2_z1_bf16_ws2_universal/ckpt", flags=("--no-assets",)),
    Format("", "deepspeed/moe_z2_bf16_ws4_ep2/ckpt", flags=("--no-assets",)),
    Format("", "deepspeed/pipe_z1_fp16_ws4_pp2dp2_tied/ckpt", flags=("--no-assets",)),
    Format("megatron/llama.tar.xz", "llama/torch_tp2pp2_te"),
    Format("megatron/mindspeed.tar.xz", "v1_chatglm3_mc_tp2pp2/shards", "v1_chatglm3_mc_tp2pp2/hf"),
    Format("megatron_dist/cases.tar.xz", "llama_bf16"),
    Format("dcp.tar.xz", "dcp/fsdp2_llama_bfloat16_ws3/ckpt", "dcp/fsdp2_llama_bfloat16_ws3/hf"),
    Format("dcp.tar.xz", "dcp/verl_llama_bfloat16_ws2/ckpt", "dcp/verl_llama_bfloat16_ws2/hf"),
    Format(_MINDSPORE, "llama2_gqa_bf16/ms/llama.ckpt", "llama2_gqa_bf16/hf"),
    Format(_MINDSPORE, "qwen3_mcore_bf16/ms/mcore_interleaved.safetensors", "qwen3_mcore_bf16/hf"),
    Format("megatron/llama.tar.xz", "llama/hf", flags=("--dtype", "float16")),
    Format("", "lora/llama/base", beside=("lora/llama/adapter",)),
]  # fmt: skip
MODEL = Format("megatron/llama.tar.xz", "llama/hf")
WRITTEN = {
    "hf": ("--max-shard-size", "60KB"),
    "hf-bin": ("--format", "bin", "--max-shard-size", "60KB"),
    "megatron": ("--tp", "2", "--pp", "2"),
    "torch_dist": (),
    "dcp": (),
    "mindformers": (),
    "mindformers-safetensors": ("--format", "safetensors"),
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpack an archive below ``fixtures``, once."""
    known: dict[str, Path] = {"": FIXTURES}

    def unpack(archive: str) -> Path:
        if archive not in known:
            known[archive] = tmp_path_factory.mktemp("archive")
            with tarfile.open(FIXTURES / archive) as tar:
                tar.extractall(known[archive], filter="data")
        return known[archive]

    return unpack


@dataclass(frozen=True, slots=True)
class Side:
    """Where a checkpoint lies, and where what is made of it goes: on disk, or in the bucket."""

    root: str
    out: str

    def looked_at(self, *arguments: object) -> str:
        """Run a command that only looks; return what it printed, without the places."""
        shown = ckptconv(*arguments)
        assert shown.code == 0, shown.err
        return self.without_places(shown.out)

    def without_places(self, text: str) -> str:
        text = re.sub("plan [0-9a-f]{12}", "plan", text)  # its digest is of the places as well
        text = re.sub(r'"seconds": [0-9.]+', '"seconds"', text)
        return text.replace(self.out, "OUT").replace(self.root, "ROOT")

    def at(self, path: str) -> str:
        return f"{self.root}/{path}"


def stored(s3: FaultyProxy, folder: str) -> dict[str, bytes]:
    return {k: s3.files().cat_file(f"{s3.bucket}/{folder}/{k}") for k in s3.found(folder)}


@pytest.fixture
def sides(
    s3: FaultyProxy, put: Callable[..., str], archives: Callable[[str], Path], tmp_path: Path
) -> Callable[..., tuple[Side, Side]]:
    """Upload what a format needs; return its side on disk and its side in the bucket."""

    def make(format: Format) -> tuple[Side, Side]:
        here = archives(format.archive)
        for path in {format.path, format.config, *format.beside} - {""}:
            folder = path if (here / path).is_dir() else path.rpartition("/")[0]
            put(here / folder, f"root/{folder}")
        bucket = f"s3://{s3.bucket}"
        return Side(str(here), str(tmp_path / "out")), Side(f"{bucket}/root", f"{bucket}/out")

    return make


@pytest.mark.parametrize("format", READ, ids=str)
def test_is_read(
    s3: FaultyProxy, sides: Callable[..., tuple[Side, Side]], tmp_path: Path, format: Format
) -> None:
    said = []
    for side in sides(format):
        source, config = side.at(format.path), []
        if format.config:
            config = ["--config", side.at(format.config)]
        beside = [word for path in format.beside for word in ("--adapter", side.at(path))]
        succeeds("convert", source, side.out, "--to", "hf", *config, *beside, *format.flags)
        succeeds("verify-roundtrip", source, side.out, *config, *beside)
        looks = [side.looked_at("inspect", source, "--json"), side.looked_at("check", side.out)]
        if not beside:
            looks.append(side.looked_at("diff", source, side.out, "--json", *config, "--atol", "0.01"))
        said.append(looks)
    assert said[0] == said[1]
    here, there = contents(tmp_path / "out"), stored(s3, "out")
    files = [json.loads(side.pop("ckptconv-verify.json"))["files"] for side in (here, there)]
    assert there == here and files[0] == files[1] and {*files[0]} == {*here}
    assert s3.uploads() == []


@pytest.mark.parametrize("target", WRITTEN)
def test_is_written(
    s3: FaultyProxy, sides: Callable[..., tuple[Side, Side]], tmp_path: Path, target: str
) -> None:
    for side in sides(MODEL):
        to = target.partition("-")[0]
        succeeds("convert", side.at(MODEL.path), side.out, "--to", to, *WRITTEN[target], "--verify")
    here, there = contents(tmp_path / "out"), stored(s3, "out")
    files = [json.loads(side.pop("ckptconv-verify.json"))["files"] for side in (here, there)]
    assert there == here and files[0] == files[1] and {*files[0]} == {*here}
    assert s3.uploads() == []
