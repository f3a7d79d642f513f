"""A run that is interrupted or killed leaves nothing that looks whole, and resumes to the very same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import ckptconv as api
from ckptconv.engine.journal import JOURNAL
from running import ROOT, ckptconv, contents, fails, final_names, start, succeeds

TENSORS, ELEMENTS, SHARDS = 48, 1 << 19, 24


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of 100 MB, every tensor unlike the others."""
    path = tmp_path_factory.mktemp("big") / "model.pt"
    base = torch.arange(ELEMENTS, dtype=torch.float32)
    torch.save({f"layer.{i}.weight": base + i for i in range(TENSORS)}, path)
    return path


FLAGS = ("--to", "hf", "--no-assets", "--max-shard-size", "4300KB", "--workers", "2", "--max-memory", "1MiB")


@pytest.fixture(scope="module")
def whole(big: Path) -> dict[str, str]:
    """The digests of what an undisturbed run writes."""
    out = big.parent / "whole"
    succeeds("convert", big, out, *FLAGS, "--quiet")
    digests = _digests(out)
    shutil.rmtree(out)
    return digests


def _digests(folder: Path) -> dict[str, str]:
    import xxhash

    return {name: xxhash.xxh3_128(data).hexdigest() for name, data in contents(folder).items()}


def _done(out: Path) -> int:
    """Count the files a running conversion has entered in its journal."""
    try:
        return (out / JOURNAL).read_text().count('"file"')
    except FileNotFoundError:
        return 0


def _strike(how: signal.Signals, big: Path, out: Path, *flags: str) -> tuple[int, str]:
    """Start a conversion and send it a signal once some files are whole and some are not."""
    for _ in range(10):
        shutil.rmtree(out, ignore_errors=True)
        process = start("convert", big, out, *FLAGS, *flags, stdout=subprocess.DEVNULL)
        while process.poll() is None and _done(out) < 2:
            time.sleep(0.001)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
        if process.returncode != 0 and 0 < _done(out) < SHARDS:
            return process.returncode, err.decode()
    raise AssertionError("the machine is too fast: no signal came in the middle of a run")


SIGNALS = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("how", SIGNALS, ids=lambda s: s.name)
def test_resumes_to_the_same_bytes(
    how: signal.Signals, big: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    if how is not signal.SIGKILL and signal.getsignal(how) is signal.SIG_IGN:
        pytest.skip(f"{how.name} is ignored here (nohup), and so it is by what is started")
    out = tmp_path / "out"
    code, err = _strike(how, big, out)
    if how is signal.SIGKILL:
        assert code == -how
    else:
        assert code == 128 + how
        assert "--resume" in err and "Traceback" not in err
    assert final_names(out) == []
    fails(1, "convert", big, out, *FLAGS, naming=("interrupted", "--resume", "--overwrite"), out=out)
    result = succeeds("convert", big, out, *FLAGS, "--resume", "--json")
    report = json.loads(result.out)
    assert 0 < report["resumed_bytes"] < report["bytes"]
    assert _digests(out) == whole


def test_ctrl_c_before_anything_is_written(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptconv.api.convert.plan", interrupted)
    result = ckptconv("convert", big, tmp_path / "out", *FLAGS)
    assert result.code == 130
    assert not (tmp_path / "out").exists()


def test_killed_twice_resumes_all_the_same(big: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _strike(signal.SIGKILL, big, out)
    first = _done(out)
    process = start("convert", big, out, *FLAGS, "--resume")
    while process.poll() is None and _done(out) <= first:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    if process.returncode != 0:
        succeeds("convert", big, out, *FLAGS, "--resume", "--quiet")
    assert _digests(out) == whole


def test_other_flags_start_again(big: Path, tmp_path: Path) -> None:
    """What an interrupted run has written counts for the same plan only."""
    out = tmp_path / "out"
    _strike(signal.SIGKILL, big, out)
    other = ("--to", "hf", "--no-assets", "--dtype", "bfloat16", "--max-shard-size", "25MB")
    report = json.loads(succeeds("convert", big, out, *other, "--resume", "--json").out)
    assert report["resumed_bytes"] == 0
    shards = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(contents(out)) == [*shards, "model.safetensors.index.json"]


def test_overwrite_starts_again(big: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _strike(signal.SIGKILL, big, out)
    succeeds("convert", big, out, *FLAGS, "--overwrite", "--quiet")
    assert _digests(out) == whole


def test_an_overwriting_run_that_is_killed_keeps_the_old_model_until_it_is_resumed(
    big: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    small = tmp_path / "small.pt"
    torch.save({"old": torch.ones(3)}, small)
    succeeds("convert", small, out, "--to", "hf", "--no-assets", "--quiet")
    old = (out / "model.safetensors").read_bytes()
    for _ in range(10):
        process = start("convert", big, out, *FLAGS, "--overwrite")
        while process.poll() is None and _done(out) < 2:
            time.sleep(0.001)
        process.kill()
        process.communicate(timeout=60)
        if _done(out):
            break
        shutil.rmtree(out)
        succeeds("convert", small, out, "--to", "hf", "--no-assets", "--quiet")
    assert (out / "model.safetensors").read_bytes() == old
    succeeds("convert", big, out, *FLAGS, "--resume", "--quiet")
    assert _digests(out) == whole


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("crash_after", [0, 1, 5, 10])
def test_a_crash_while_files_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_after: int, overwrite: bool
) -> None:
    """Renaming takes a moment as well; the config comes last, so what stands there before is no model."""
    demo = ROOT / "fixtures" / "demo-run" / "checkpoint-2"
    flags = ("--max-shard-size", "20KB", "--quiet")
    succeeds("deepspeed-to-hf", demo, tmp_path / "whole", *flags)
    out = tmp_path / "out"
    if overwrite:
        succeeds("deepspeed-to-hf", demo, out, "--max-shard-size", "30KB", "--quiet")
    replace, calls = os.replace, 0

    def crash(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > crash_after:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        result = ckptconv("deepspeed-to-hf", demo, out, *flags, *(("--overwrite",) if overwrite else ()))
    assert result.code == 130 and "--resume" in result.err
    assert not (out / "config.json").exists()
    fails(1, "deepspeed-to-hf", demo, out, *flags, naming=("interrupted", "--resume"))
    succeeds("deepspeed-to-hf", demo, out, *flags, "--resume")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_journal_with_a_torn_last_line(tmp_path: Path) -> None:
    """A crash may cut the journal in the middle of a line: that file is written again, the others are not."""
    source = tmp_path / "model.pt"
    torch.save({f"w{i}": torch.full((5000,), float(i)) for i in range(6)}, source)
    whole, out = tmp_path / "whole", tmp_path / "out"
    report = api.convert(source, whole, assets=False, max_shard_size="20KB")
    shutil.copytree(whole, out)
    (out / "model.safetensors.index.json").unlink()
    for path in out.glob("*.safetensors"):
        path.rename(path.with_name(path.name + ".part"))
    lines = [{"plan": api.plan(source, assets=False, max_shard_size="20KB").digest()}]
    lines += [{"file": n, "digest": d} for n, d in report.files.items()]
    text = "\n".join(map(json.dumps, lines))
    (out / JOURNAL).write_text(text[:-10])
    resumed = api.convert(source, out, assets=False, max_shard_size="20KB", resume=True)
    assert resumed.files == report.files
    assert resumed.resumed == sum(p.stat().st_size for p in sorted(whole.glob("*.safetensors"))[:-1])
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    "journal", [b"", b"\n", b"{}", b"\xff\xfe\x00", b'{"plan": 3}\n{"file": 1}', b"[]\n[]"], ids=repr
)
def test_a_journal_that_is_none(tmp_path: Path, journal: bytes) -> None:
    source, out = tmp_path / "model.pt", tmp_path / "out"
    torch.save({"w": torch.ones(3)}, source)
    out.mkdir()
    (out / JOURNAL).write_bytes(journal)
    report = api.convert(source, out, assets=False, resume=True)
    assert report.resumed == 0
    assert sorted(contents(out)) == ["model.safetensors"]


def test_a_finished_file_that_was_cut_since_is_written_again(
    tmp_path: Path, big: Path, whole: dict[str, str]
) -> None:
    out = tmp_path / "out"
    _strike(signal.SIGKILL, big, out)
    entries = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines() if line.endswith("}")]
    done = next(e["file"] for e in entries if "file" in e)
    os.truncate(out / f"{done}.part", 100)
    succeeds("convert", big, out, *FLAGS, "--resume", "--quiet")
    assert _digests(out) == whole
