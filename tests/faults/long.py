"""Run the fault suite at length and print what became of it: ``long.py [--times N] [--width N]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="kills of each kind")
    parser.add_argument("--width", type=int, default=384, help="hidden size of the model")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts = kill(options.times, options.width, options.seed)
    print(table(counts))
    return 1 if any(c.lost for c in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
