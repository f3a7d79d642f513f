#!/usr/bin/env python
"""Compare ckptconv with ``cp`` and with the tools in use today, and write the results into the documentation.

    python benchmarks/run.py                          every conversion at 1 GB: make bench
    python benchmarks/run.py --full                   at 8 GB: make bench-full
    python benchmarks/run.py --cases zero3,moe        some of them; the others' results are kept
    python benchmarks/run.py --size 0.1 --repeat 1    another size, not for the documentation
    python benchmarks/run.py --report-only            only write the documentation, from the stored results

What is measured stands in conversions.py. Every program is run as a whole process and all take turns;
neighbours are compared pair by pair. Runs with an empty page cache need root and are left out without. Linux
only.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO

import report
from chinese import CHINESE
from conversions import CASES, LARGE, Case
from details import details
from machine import describe, machine_of
from plot import draw_ratios, draw_tools
from results import STORED, Results, load, save
from runner import Runner, remove, say
from svg import available
from targets import CAUSES, judge
from words import ENGLISH

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = HERE / "data"
DOCS = ROOT / "docs"
_SLACK_SECONDS = 60  # the first cases are the longest
_READMES = {
    "README.md": ("program", "time", "peak memory"),
    "README.zh-CN.md": ("程序", "用时", "内存峰值"),
}


def main() -> None:
    """Measure, keep the results, and write the documentation."""
    args = arguments()
    args.data.mkdir(parents=True, exist_ok=True)
    if not args.report_only:
        path = args.data / f"{STORED.get(args.size, f'size-{args.size:g}')}.json"
        measure_all(args, path)
        if args.size not in STORED:
            print(details([load(path) or sys.exit("nothing was measured")]))
            return
    if args.docs:
        write_docs(args.data)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--full", dest="size", action="store_const", const=8.0, default=1.0, help="8 GB, for make bench-full")
    add("--size", type=float, default=1.0, metavar="GB", help="size of what is converted (default: 1)")
    add("--repeat", type=int, metavar="N", help="repetitions (default: 4 at up to 2 GB, else 3)")
    add(
        "--minutes",
        type=float,
        metavar="N",
        help="once late, repeat less (default: 14 at up to 2 GB, else 33)",
    )
    add("--stop", type=float, metavar="N", help="begin no case after so many minutes")
    add("--cases", metavar="NAME,...", help=f"only these: {', '.join(c.name for c in CASES)}")
    add("--without", default="", metavar="NAME,...", help="leave out: tools, copies, memory, cold, budgets")
    add("--data", type=Path, default=DATA, metavar="DIR", help="where files are made (benchmarks/data)")
    add("--report-only", action="store_true", help="measure nothing; write the documentation")
    add("--docs", action=argparse.BooleanOptionalAction, default=True, help="write docs/ and the READMEs")
    add("--deepspeed-python", default=sys.executable, metavar="PATH", help="an interpreter with deepspeed")
    mindspore = ROOT / ".venv-mindspore" / "bin" / "python"
    add("--mindspore-python", default=str(mindspore), metavar="PATH", help="an interpreter with mindspore")
    peers = ROOT / ".venv-peers" / "bin" / "python"
    add(
        "--peers-python",
        default=str(peers),
        metavar="PATH",
        help="an interpreter with Megatron-Bridge, verl and transformers",
    )
    args = parser.parse_args()
    args.data = args.data.resolve()
    args.repeat = args.repeat or (4 if args.size <= LARGE else 3)
    args.minutes = args.minutes or (14 if args.size <= LARGE else 33)
    return args


def measure_all(args: argparse.Namespace, path: Path) -> None:
    """Run the cases and store what they took, after each."""
    chosen = pick(args.cases)
    pythons = {
        "python": sys.executable,
        "deepspeed-python": args.deepspeed_python,
        "mindspore-python": args.mindspore_python,
        "peers-python": args.peers_python,
    }
    begin = time.monotonic()
    with open(args.data / "log.txt", "ab") as log:
        work = prepare(args.data, log)
        results = load(path) if args.cases else None
        results = results or Results(args.size)
        results.machine = describe(work, pythons)
        runner = Runner(
            work,
            size=args.size,
            repeat=args.repeat,
            pythons=pythons,
            log=log,
            machine=machine_of(results.machine),
            without=args.without.split(","),
        )
        try:
            for i, case in enumerate(chosen):
                elapsed = time.monotonic() - begin
                if args.stop and elapsed > 60 * args.stop:
                    say(f"not measured: {', '.join(c.name for c in chosen[i:])}")
                    break
                late = elapsed > 60 * args.minutes * i / len(chosen) + _SLACK_SECONDS
                runner.repeat = min(args.repeat, 2) if late else args.repeat
                say(f"[{i + 1}/{len(chosen)}, {elapsed:.0f} s] {case.title}, {runner.repeat} repetitions")
                runner.drop_sources(case.needs, [n for c in chosen[i:] for n in c.needs])
                results.cases[case.name] = runner.run(case)
                save(path, results)
        finally:
            runner.clear()
            remove(work)
    say(f"{time.monotonic() - begin:.0f} s in all; what the programs printed: {args.data / 'log.txt'}")


def prepare(data: Path, log: IO[bytes]) -> Path:
    """Return an empty folder to work in, which no other run uses."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"another run works in {data}; --data takes another folder")
    log.truncate(0)
    work = data / "work"
    remove(work)
    work.mkdir()
    # deepspeed compiles once; a lock left by a compiler that was killed would let it wait for ever.
    extensions = data / "torch_extensions"
    for lock in extensions.rglob("lock"):
        lock.unlink()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    os.environ["HF_HUB_OFFLINE"] = "1"  # no tool waits for a network
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(ROOT / "ckptconv", quiet=1)  # as an installed package is
    return work


def pick(names: str | None) -> list[Case]:
    """Return the cases asked for."""
    if names is None:
        return list(CASES)
    known = {case.name: case for case in CASES}
    if unknown := set(names.split(",")) - known.keys():
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def write_docs(data: Path) -> None:
    """Put tables and plots into docs/benchmarks.md and its twin, the short tables into the READMEs."""
    found = [r for name in STORED.values() if (r := load(data / f"{name}.json"))]
    if not found:
        sys.exit(f"no results in {data}: run make bench or make bench-full first")
    images = ("benchmarks-ratios.svg", "benchmarks.svg")
    if available():
        draw_ratios(DOCS / "images" / images[0], found)
        draw_tools(DOCS / "images" / images[1], found[0])
    else:
        say("no plots: matplotlib is not installed (pip install 'ckptconv[bench]')")
    for folder, words, up in ((DOCS, ENGLISH, ""), (DOCS / "zh", CHINESE, "../")):
        plots = [f"{up}images/{name}" for name in images]
        report.splice(folder / "benchmarks.md", "results", report.page(found, plots, words))
    for name, labels in _READMES.items():
        if {"zero3", "zero3-bf16"} <= found[0].cases.keys():
            report.splice(ROOT / name, "benchmarks", report.headline(found[0], labels))
    for results in found:
        for target in judge(results):
            if not target.met:
                say(f"missed: {target.key!r} {target.found}; its cause goes into {CAUSES}")


if __name__ == "__main__":
    main()
