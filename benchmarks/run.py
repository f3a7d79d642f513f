#!/usr/bin/env python
"""Compare ckptconv with ``cp`` and with the tools in use today, and write the results into the documentation.

    python benchmarks/run.py                                   everything: make bench
    python benchmarks/run.py --checkpoint DIR --repeat 2 --no-docs
    python benchmarks/run.py --cold                            with empty page caches; needs root

Every program is run as a whole process. All are run in turn, once to warm up and then --repeat times, each
time beginning with another one; neighbours are compared pair by pair. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

import report
from contenders import CKPTCONV, Contender, convert_file, deepspeed_tool, for_checkpoint, for_file, start_up
from machine import describe, file_system
from measure import Failed, Usage, drop_caches, measure
from plot import draw
from report import Block, by_pairs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = HERE / "data"
DOCS = ROOT / "docs"
PLOT = "images/benchmarks.svg"

_STAGES = (3, 2)
_BUDGETS = ("16MiB", "64MiB", "256MiB")
_QUICK_REPEATS = 10
_LARGE_SPACE = 20_000_000_000
_OURS, _ROUNDED, _COPY, _THEIRS = "ckptconv", "ckptconv --dtype bfloat16", "cp + sync", "zero_to_fp32.py"
_READMES = {
    "README.md": ("program", "time", "peak memory"),
    "README.zh-CN.md": ("程序", "用时", "内存峰值"),
}


class Bench:
    """Run programs in turn and keep what each took.

    Attributes:
        work: The folder everything is written to.
        log: What the programs print.
    """

    def __init__(self, work: Path, repeat: int, *, cold: bool, log: IO[bytes]) -> None:
        self.work, self.log, self._repeat, self._cold = work, log, repeat, cold

    def compare(self, contenders: Sequence[Contender], repeat: int | None = None) -> dict[str, list[Usage]]:
        """Run every program ``repeat`` times after a warm-up, in turn."""
        runs: dict[str, list[Usage]] = {c.name: [] for c in contenders}
        for c in contenders:
            self.once(c)
        for i in range(repeat or self._repeat):
            shift = i % len(contenders)
            for c in (*contenders[shift:], *contenders[:shift]):
                runs[c.name].append(self.once(c))
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return runs

    def once(self, contender: Contender) -> Usage:
        """Run a program once; nothing of earlier runs waits to be written to the disk meanwhile."""
        remove(contender.out)
        drop_caches() if self._cold else os.sync()
        first, *more = (measure(step, cwd=ROOT, log=self.log) for step in contender.steps)
        for usage in more:
            first = first.then(usage)
        return first


def main() -> None:
    """Measure, print, and write the documentation."""
    args = arguments()
    args.data.mkdir(parents=True, exist_ok=True)
    work = args.data / "work"
    with open(args.data / "log.txt", "wb") as log:
        bench = Bench(work, args.repeat, cold=args.cold, log=log)
        try:
            machine, blocks, drawn = measure_all(bench, args)
        except (Failed, subprocess.CalledProcessError) as e:
            sys.exit(f"{e}\nwhat it printed: {args.data / 'log.txt'}")
        finally:
            remove(work)
    raw = {b.title: {n: [asdict(u) for u in us] for n, us in b.runs.items()} for b in blocks}
    (args.data / "results.json").write_text(json.dumps({"machine": machine, "runs": raw}, indent=1) + "\n")
    print(report.markdown(machine, blocks, None))
    if args.docs:
        write_docs(machine, blocks, drawn)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, action="append", metavar="DIR", help="a ZeRO run; may be repeated")
    add("--repeat", type=int, default=5, metavar="N", help="measured repetitions (default: 5)")
    add("--layers", type=int, default=20, metavar="N", help="size of the checkpoints made (20: 1.2 GB out)")
    add("--data", type=Path, default=DATA, metavar="DIR", help="where files are made (benchmarks/data)")
    add("--deepspeed-python", default=sys.executable, metavar="PATH", help="an interpreter with deepspeed")
    add("--cold", action="store_true", help="empty the page cache before every run; needs root")
    add(
        "--large",
        action=argparse.BooleanOptionalAction,
        help="also a model ten times larger (if 20 GB are free)",
    )
    add("--large-layers", type=int, default=28, metavar="N", help="its layers (28: 12 GB out)")
    add("--docs", action=argparse.BooleanOptionalAction, default=True, help="write docs/ and the READMEs")
    args = parser.parse_args()
    args.data = args.data.resolve()
    return args


def measure_all(
    bench: Bench, args: argparse.Namespace
) -> tuple[dict[str, str], list[Block], dict[str, dict[str, list[Usage]]]]:
    """Run all comparisons.

    Returns:
        The machine, the blocks of the report, and what is drawn.
    """
    python = args.deepspeed_python
    checkpoints = [c.resolve() for c in args.checkpoint or []] or make_checkpoints(args, python)
    bench.work.mkdir(exist_ok=True)
    has_tool = deepspeed_tool(python, checkpoints[0]) is not None
    machine = describe(args.data, python if has_tool else None)
    load = os.getloadavg()[0]
    blocks: list[Block] = []
    drawn: dict[str, dict[str, list[Usage]]] = {}
    for checkpoint in checkpoints:
        block, label = from_checkpoint(bench, checkpoint, deepspeed_tool(python, checkpoint))
        blocks.append(block)
        label = f"{label} ({len(drawn) + 1})" if label in drawn else label
        drawn[label] = {n: list(u) for n, u in block.runs.items() if n != "cp"}
    blocks.append(from_file(bench, checkpoints[0]))
    blocks.append(budgets(bench, checkpoints[0]))
    if args.large or (args.large is None and shutil.disk_usage(args.data).free > _LARGE_SPACE):
        blocks.append(larger(bench, args))
    say("--help and inspect")
    quick = bench.compare(start_up(checkpoints[0], bench.work), _QUICK_REPEATS)
    blocks.append(Block("Answering", "What should be there at once.", quick))
    machine["page cache"] = (
        "emptied before every run" if args.cold else "warm: the sources had been read before"
    )
    machine["repetitions"] = f"{args.repeat}, after a warm-up; load average at the start {load:.1f}"
    return machine, blocks, drawn


def from_checkpoint(bench: Bench, checkpoint: Path, tool: Sequence[str] | None) -> tuple[Block, str]:
    """Compare the ways from a ZeRO checkpoint to Hugging Face weights."""
    about = json.loads(subprocess.check_output([*CKPTCONV, "inspect", str(checkpoint), "--json"], cwd=ROOT))
    stage, size = about["format"], about["bytes"] / 1e9
    say(f"{stage}, {size:.2f} GB of fp32 out")
    config = next((d for d in (checkpoint, checkpoint.parent) if (d / "config.json").is_file()), None)
    reflinks = file_system(bench.work) in ("btrfs", "xfs")
    contenders = for_checkpoint(checkpoint, config, bench.work, tool, reflinks)
    runs = bench.compare(contenders)
    sentences = [
        by_pairs(runs, _THEIRS, _OURS),
        by_pairs(runs, _THEIRS, _ROUNDED),
        by_pairs(runs, _OURS, _COPY),
        by_pairs(runs, _OURS, _COPY, difference=True),
    ]
    if tool:
        ours, theirs = (c.out / "model.safetensors" for c in (contenders[0], contenders[-1]))
        check = (sys.executable, str(HERE / "same_tensors.py"), str(ours), str(theirs))
        subprocess.run(check, check=True)
        sentences.append("both tools wrote the same tensors, bit for bit (compared after the last run)")
    else:
        sentences.append("`zero_to_fp32.py` was left out: no interpreter with deepspeed (--deepspeed-python)")
    for c in contenders:
        remove(c.out)
    ranks = about["layout"].get("dp")
    files = sum(f["bytes"] for f in about["files"]) / 1e9
    text = (
        f"{about['parameters'] / 1e6:,.0f} million parameters in {len(about['tensors'])} tensors on "
        f"{ranks} ranks: {files:.1f} GB of files in, {size:.2f} GB of fp32 safetensors out. `cp` copies "
        "that output."
    )
    return Block(f"{stage} to safetensors", text, runs, tuple(s for s in sentences if s)), stage


def from_file(bench: Bench, checkpoint: Path) -> Block:
    """Compare the ways from a plain ``torch.save`` file to safetensors."""
    say("a plain state dict")
    made = bench.work / "bin"
    measure(convert_file(checkpoint, made), cwd=ROOT, log=bench.log)
    runs = bench.compare(for_file(made / "pytorch_model.bin", bench.work))
    remove(made)
    sentence = by_pairs(runs, "torch.load + save_file", "ckptconv convert")
    text = "The same weights from a `pytorch_model.bin` to safetensors."
    return Block("A plain state dict to safetensors", text, runs, (sentence,) if sentence else ())


def budgets(bench: Bench, checkpoint: Path) -> Block:
    """Measure memory under each ``--max-memory``."""
    say("--max-memory")
    base = (*CKPTCONV, "deepspeed-to-hf", str(checkpoint))
    contenders = []
    for budget in _BUDGETS:
        for flags in ((), ("--dtype", "bfloat16")):
            out = bench.work / "budget"
            command = (*base, str(out), "--no-assets", "--max-memory", budget, *flags)
            contenders.append(Contender(" ".join(("--max-memory", budget, *flags)), (command,), out))
    runs = bench.compare(contenders, 1)
    remove(bench.work / "budget")
    return Block("Memory under a budget", "The first checkpoint again, once each.", runs)


def larger(bench: Bench, args: argparse.Namespace) -> Block:
    """Measure memory on a model ten times larger, whose source is made of holes."""
    say("a model ten times larger")
    source, out = bench.work / "sparse", bench.work / "large"
    layers = str(args.large_layers)
    subprocess.run(
        (sys.executable, str(HERE / "make_sparse.py"), str(source), "--layers", layers), check=True
    )
    base = (*CKPTCONV, "deepspeed-to-hf", str(source), str(out), "--no-assets")
    names = (("10x", ()), ("10x --dtype bfloat16", ("--dtype", "bfloat16")))
    runs = {n: [bench.once(Contender(n, ((*base, *flags),), out))] for n, flags in names}
    size = sum(f.stat().st_size for f in out.glob("*.safetensors")) * 2 / 1e9  # the last run wrote 16 bits
    remove(out)
    remove(source)
    text = (
        f"{size:.0f} GB of fp32 out of a ZeRO-3 checkpoint with deepspeed's structure, whose tensors are "
        "holes in the files (`benchmarks/make_sparse.py`). Only the memory counts: holes cost no reading."
    )
    return Block("A model ten times larger", text, runs)


def make_checkpoints(args: argparse.Namespace, python: str) -> list[Path]:
    """Return the checkpoints under ``--data``, made by the real deepspeed where they are not there yet."""
    found = []
    for stage in _STAGES:
        folder = args.data / f"zero{stage}-{args.layers}"
        if not (folder / "config.json").is_file():  # written last
            say(f"making {folder.name}")
            recipe = str(ROOT / "fixtures" / "make_large.py")
            command = (python, recipe, str(folder), "--stage", str(stage), "--layers", str(args.layers))
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                sys.exit("cannot make the checkpoint; give --checkpoint, or --deepspeed-python")
        found.append(folder / "ckpt")
    return found


def write_docs(
    machine: dict[str, str], blocks: list[Block], drawn: dict[str, dict[str, list[Usage]]]
) -> None:
    """Put tables and plot into docs/benchmarks.md, and the short table into the READMEs."""
    plot = PLOT if draw(DOCS / PLOT, drawn) else None
    if plot is None:
        print("no plot: matplotlib is not installed (pip install 'ckptconv[bench]')", file=sys.stderr)
        plot = PLOT if (DOCS / PLOT).is_file() else None
    report.splice(DOCS / "benchmarks.md", "results", report.markdown(machine, blocks, plot))
    for name, labels in _READMES.items():
        report.splice(ROOT / name, "benchmarks", report.headline(next(iter(drawn.values())), labels))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(text: str) -> None:
    """Tell what is being done."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
