#!/usr/bin/env python
"""Convert from S3 to S3 against moto's server on this machine, and compare with the run on disk.

    python benchmarks/by_hand/s3.py WORK --gigabytes 1      WORK gets what is made, about five times as much

For each conversion one line: seconds and peak memory of the process on disk and against the server, requests
by method, and whether all bytes are equal. The server is one Python process that computes MD5 sums: it, not
ckptconv, bounds the speed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUCKET = "bench"
SERVER = """
from moto.server import ThreadedMotoServer
import sys
server = ThreadedMotoServer("127.0.0.1", 0, verbose=True)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def main() -> None:
    """Make a ZeRO-3 run, convert it to a model, and the model to another dtype."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "benchmarks/make_zero.py", work / "zero", "--gigabytes", args.gigabytes)
    shutil.copy(work / "zero" / "config.json", work / "zero" / "ckpt")
    with (
        open(work / "server.log", "w") as log,
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        port = next(int(line) for line in server.stdout if line.strip().isdecimal())
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        import s3fs

        fs = s3fs.S3FileSystem(config_kwargs={"read_timeout": 600})
        fs.mkdir(BUCKET)
        fs.put(f"{work / 'zero' / 'ckpt'}/", f"{BUCKET}/ckpt/", recursive=True)
        shards = ("--max-shard-size", "500MB")
        measure(fs, work, "deepspeed-to-hf", "ckpt", "model", *shards, "--dtype", "float32")
        measure(fs, work, "convert", "model", "half", *shards, "--to", "hf", "--dtype", "bfloat16")
        server.terminate()


def measure(fs: Any, work: Path, command: str, source: str, target: str, *flags: str) -> None:
    """Convert on disk and from URL to URL, and print a line."""
    here = work / "zero" / source if source == "ckpt" else work / source
    shutil.rmtree(work / target, ignore_errors=True)
    disk = run(sys.executable, "-m", "ckptconv", command, here, work / target, *flags, "--quiet")
    before = requests(work)
    urls = (f"s3://{BUCKET}/{source}", f"s3://{BUCKET}/{target}")
    there = run(sys.executable, "-m", "ckptconv", command, *urls, *flags, "--quiet")
    asked = requests(work) - before
    names = sorted(p.relative_to(work / target).as_posix() for p in (work / target).rglob("*") if p.is_file())
    fs.invalidate_cache()
    found = sorted(k.removeprefix(f"{BUCKET}/{target}/") for k in fs.find(f"{BUCKET}/{target}"))
    equal = names == found and all(same(fs, work / target / n, f"{BUCKET}/{target}/{n}") for n in names)
    size = sum((work / target / n).stat().st_size for n in names)
    print(
        f"{command} {size / 1e9:.2f} GB written: disk {disk}, s3 {there}, "
        f"requests {dict(asked)}, bytes {'equal' if equal else 'DIFFER'}",
        flush=True,
    )


def same(fs: Any, path: Path, key: str) -> bool:
    """Compare a file with an object, piece by piece."""
    if path.stat().st_size != fs.size(key):
        return False
    step = 64 << 20
    with open(path, "rb") as file:
        return all(
            file.read(step) == fs.cat_file(key, start=at, end=at + step)
            for at in range(0, path.stat().st_size, step)
        )


def requests(work: Path) -> Counter[str]:
    """Count what the server has answered, by method."""
    return Counter(re.findall(r"(GET|PUT|POST|HEAD|DELETE) /", (work / "server.log").read_text()))


def run(*command: object) -> str:
    """Run a command; return its seconds, and its peak memory as Linux tells it.

    What `wait4` returns counts this process's memory at the time of the fork, so it is not asked.
    """
    began = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], cwd=ROOT)
    peak = 0
    while process.poll() is None:
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            peak = int(found[1]) * 1024 if found else peak
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    return f"{time.perf_counter() - began:.1f} s, {peak / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
