"""Run the fault suite at length and print what became of it: ``long.py [--times N] [--damage N]``."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults import failing
from faults.damage import SAMPLES, Bench, peak_bytes, spoil_outputs
from faults.killing import Count, Killer, table
from faults.kinds import KINDS, Source

FLAGS = ("--workers", "2", "--max-memory", "192KiB")


def kill(times: int, width: int, seed: int) -> dict[str, Count]:
    """Kill every kind of conversion so many times."""
    counts = {}
    with tempfile.TemporaryDirectory(prefix="ckptconv-faults-") as folder:
        source = Source(Path(folder) / "sources", width)
        print(f"sources of {source.bytes:,} bytes of fp32 weights, seed {seed}", flush=True)
        for kind in KINDS:
            begin = time.monotonic()
            counts[kind.name] = found = Killer(kind, source, Path(folder), seed, FLAGS).run(times)
            seconds = time.monotonic() - begin
            print(f"{kind.name}: {found.inside} of {found.runs} killed inside, {seconds:.0f} s", flush=True)
            for text in found.lost:
                print(f"LOST {text}", flush=True)
    return counts


def damage(times: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Damage every format that is read, and every one that is written."""
    tallies: dict[str, Counter[str]] = {}
    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ckptconv-faults-") as folder:
        source = Source(Path(folder) / "sources", 16, 2)
        for i, sample in enumerate(SAMPLES):
            (scratch := Path(folder) / str(i)).mkdir()
            bench = Bench(sample, source, scratch, seed)
            for how in (bench.flip, bench.cut, bench.lie):
                how(times)
            tallies[sample.name] = bench.tally
            lost += bench.lost
            for text in bench.lost:
                print(f"LOST {text}", flush=True)
        tallies |= spoil_outputs(source, Path(folder) / "outputs", times, seed)
    return tallies, lost


_DAMAGE = ("runs", "refused", "equal", "found", "lost")


def damage_table(
    tallies: dict[str, Counter[str]], columns: tuple[str, ...] = _DAMAGE, title: str = "damaged"
) -> str:
    """Return what came of the damage as a table, with its sums."""
    rows = [
        [n, *(t[c] if c != "runs" or "runs" in t else t.total() for c in columns)] for n, t in tallies.items()
    ]
    rows.append(["all", *(sum(int(r[i + 1]) for r in rows) for i in range(len(columns)))])
    width = max(len(str(r[0])) for r in rows)
    lines = [[title, *columns], *rows]
    return "\n".join(f"{line[0]:<{width}}" + "".join(f"{cell:>9}" for cell in line[1:]) for line in lines)


def fail(times: int, seed: int) -> dict[str, Counter[str]]:
    """Let one call of each kind fail, in runs of every kind of conversion, so many calls of each."""
    tallies: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="ckptconv-faults-") as folder:
        source = Source(Path(folder) / "sources", 16, 2)
        for i, kind in enumerate(KINDS):
            (scratch := Path(folder) / f"calls-{i}").mkdir()
            bench = failing.Bench(kind, source, scratch)
            for fault in failing.FAULTS:
                for at in failing.calls(bench, fault, times, seed):
                    bench.fail(fault, at)
            tallies[kind.name] = bench.tally + Counter(lost=len(bench.lost))
            for text in bench.lost:
                print(f"LOST {text}", flush=True)
    return tallies


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="kills of each kind")
    parser.add_argument("--width", type=int, default=384, help="hidden size of the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, default=8, help="failing calls of each kind")
    parser.add_argument("--damage", type=int, default=40, help="damages of each kind and file")
    options = parser.parse_args()
    # What a lying size could make of it must not take the machine down.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    counts = kill(options.times, options.width, options.seed) if options.times else {}
    tallies, _ = damage(options.damage, options.seed) if options.damage else ({}, [])
    failed = fail(options.calls, options.seed) if options.calls else {}
    if counts:
        print(table(counts))
    if tallies:
        print(damage_table(tallies))
        print(f"most memory while damaged files were read: {peak_bytes() >> 20} MiB")
    if failed:
        print(damage_table(failed, ("runs", "missed", "survived", "refused", "lost"), "a call fails"))
    bad = any(c.lost for c in counts.values()) or any(
        t["lost"] for t in (*tallies.values(), *failed.values())
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
