#!/usr/bin/env python
"""Show how planning grows with a model and its ranks, on sparse files: see docs/benchmarks.md.

    python benchmarks/scale.py make CASE OUT       one stand-in: true structure, holes for data
    python benchmarks/scale.py cases [CASE ...]    inspect and plan the large ones
    python benchmarks/scale.py series              plan smaller ones of growing size
    python benchmarks/scale.py report              write docs/benchmarks.md, its twin and the plot
    python benchmarks/scale.py show                print what the series took

Results are kept in `--results` (benchmarks/data/scale.json), so that the steps can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from growth import draw_growth
from measure import measure
from report import splice

_HERE = Path(__file__).parent
_DOCS = _HERE.parent / "docs"
# Name: what it is, its command, and how it is made.
CASES: dict[str, tuple[str, str, str]] = {
    "v3-torch": (
        "DeepSeek-V3, Megatron torch, TP8 PP16 EP32 ETP8, 4,096 ranks", "megatron-merge",
        "write_ranks(out, MODELS['deepseek-v3'], Parallel(8, 16, 32, 8))",
    ),
    "v3-torch-dist": (
        "DeepSeek-V3, Megatron torch_dist, saved by the same ranks", "megatron-merge",
        "write_torch_dist(out, MODELS['deepseek-v3'], Parallel(8, 16, 32, 8))",
    ),
    "k2-torch": (
        "1T MoE (384 experts), Megatron torch, TP8 PP16 EP32 ETP1, 512 ranks", "megatron-merge",
        "write_ranks(out, MODELS['kimi-k2'], Parallel(8, 16, 32, 1))",
    ),
    "405b-zero3": (
        "Llama-3.1-405B, ZeRO-3 on 512 ranks", "deepspeed-to-hf",
        "write_zero3(out, MODELS['llama-405b'], 512)",
    ),
    "v3-zero3": (
        "DeepSeek-V3, ZeRO-3 on 2,048 ranks", "deepspeed-to-hf",
        "write_zero3(out, MODELS['deepseek-v3'], 2048)",
    ),
}  # fmt: skip
_LARGE = 10_000
_V3 = "{{**MODELS['deepseek-v3'], 'num_hidden_layers': {}}}"
# What grows, in words: (its size, how the stand-in is made) of each point.
SERIES: dict[str, tuple[str, list[tuple[int, str]]]] = {
    "layers (ZeRO-3, 64 ranks)": ("deepspeed-to-hf", [
        (n, f"write_zero3(out, {_V3.format(n)}, 64)") for n in (8, 16, 31, 61)
    ]),
    "data-parallel ranks (ZeRO-3, 405B)": ("deepspeed-to-hf", [
        (n, f"write_zero3(out, MODELS['llama-405b'], {n})") for n in (8, 32, 128, 512, 2048)
    ]),
    "layers (Megatron, TP8 EP8)": ("megatron-merge", [
        (n, f"write_ranks(out, {_V3.format(n)}, Parallel(8, 2, 8, 8))") for n in (4, 8, 16, 32)
    ]),
    "expert-parallel ranks (Megatron, TP8, 6 layers)": ("megatron-merge", [
        (n, f"write_ranks(out, {_V3.format(6)}, Parallel(8, 2, {n}, 8))") for n in (4, 8, 16, 32)
    ]),
    "tensor-parallel ranks (Megatron, EP8, 6 layers)": ("megatron-merge", [
        (n, f"write_ranks(out, {_V3.format(6)}, Parallel({n}, 2, 8, {n}))") for n in (1, 2, 4, 8)
    ]),
    "pipeline-parallel ranks (Megatron, TP8 EP8, 16 layers)": ("megatron-merge", [
        (n, f"write_ranks(out, {_V3.format(16)}, Parallel(8, {n}, 8, 8))") for n in (1, 2, 4, 8)
    ]),
    "layers (torch_dist, TP8 EP8)": ("megatron-merge", [
        (n, f"write_torch_dist(out, {_V3.format(n)}, Parallel(8, 2, 8, 8))") for n in (4, 8, 16, 32)
    ]),
}  # fmt: skip
_COUNT = """
import ckptconv, sys
p = ckptconv.plan(sys.argv[1])
extents = sum(len(s.extents) for s in p.stored.values())
print(len(p.relation.right), extents, len(p.relation.pairs))
"""


def make(how: str, out: Path) -> None:
    """Make a stand-in in a process of its own: the frameworks' libraries are large."""
    shutil.rmtree(out, ignore_errors=True)
    code = f"from pathlib import Path; from sparse import *; out = Path({str(out)!r}); {how}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_HERE)


def run(out: Path, *program: str) -> dict[str, float]:
    """Measure one program of Python."""
    with open(out / "scale.log", "ab") as log_file:
        used = measure([sys.executable, *program], cwd=out, log=log_file)
    return {"wall": used.wall, "cpu": used.cpu, "rss": used.rss / 1e6}


def planned(command: str, source: Path, out: Path) -> tuple[str, ...]:
    """Return what plans a conversion and writes nothing."""
    return ("-m", "ckptconv", command, str(source), str(out / "model"), "--dry-run")


def sizes(source: Path) -> tuple[int, int, int]:
    """Return the number of tensors written, of places in files, and of pairs of boxes."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, str(source)], check=True, capture_output=True, text=True
    )
    tensors, extents, pairs = map(int, done.stdout.split())
    return tensors, extents, pairs


def exponent(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line through points in logarithmic scales."""
    xs, ys = [log(x) for x, _ in points], [log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    top = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return top / sum((x - mean_x) ** 2 for x in xs)


def cases(results: dict[str, Any], scratch: Path, wanted: list[str], rounds: int, save: Any) -> None:
    """Inspect and plan the large stand-ins, and read their pickles as Python does."""
    for name in wanted or list(CASES):
        _, command, how = CASES[name]
        source = scratch / name
        if not source.is_dir():
            make(how, source)
        programs = {
            "pickles": (str(_HERE / "by_hand" / "unpickle.py"), str(source)),
            "inspect": ("-m", "ckptconv", "inspect", str(source)),
            "plan": planned(command, source, scratch),
        }
        runs = [{k: run(scratch, *program) for k, program in programs.items()} for _ in range(rounds)]
        made: dict[str, Any] = {
            k: {unit: median(r[k][unit] for r in runs) for unit in runs[0][k]} for k in programs
        }
        results.setdefault("cases", {})[name] = {"sizes": sizes(source), "rounds": rounds, **made}
        save()


def series(results: dict[str, Any], scratch: Path, save: Any) -> None:
    """Plan stand-ins of growing size."""
    source = scratch / "series"
    for name, (command, points) in SERIES.items():
        found = []
        for size, how in points:
            make(how, source)
            found.append(
                {"size": size, "sizes": sizes(source), **run(scratch, *planned(command, source, scratch))}
            )
            results.setdefault("series", {})[name] = found
            save()
    shutil.rmtree(source)


def growth(results: dict[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    """Return (tensors, places and pairs; seconds; MB) of each point of each series, and the cases."""
    points = {n: [(sum(p["sizes"]), p["cpu"], p["rss"]) for p in s] for n, s in results["series"].items()}
    cases = results.get("cases", {}).values()
    large = [(sum(m["sizes"]), m["plan"]["cpu"], m["plan"]["rss"]) for m in cases]
    return {**points, "the stand-ins of the first table": sorted(large)}


_TEXTS = {
    "benchmarks.md": (
        [
            "stand-in",
            "tensors",
            "places",
            "pairs",
            "pickles, s",
            "`inspect`, s",
            "MB",
            "`--dry-run`, s",
            "MB",
        ],
        "Time and memory of a plan by its size",
        "images/scale.svg",
        "Above {:,} tensors, places and pairs: time as their number to the power of {:.2f}, memory {:.2f}.",
    ),
    "zh/benchmarks.md": (
        ["替身", "张量", "片段", "盒对", "pickle", "`inspect`，秒", "MB", "`--dry-run`，秒", "MB"],  # noqa: RUF001
        "计划所需的时间与内存，随规模变化",  # noqa: RUF001
        "../images/scale.svg",
        "张量、片段与盒对合计超过 {:,} 时，用时与其数目的 {:.2f} 次方成正比，内存 {:.2f} 次方。",  # noqa: RUF001
    ),
}


def report(results: dict[str, Any]) -> None:
    """Write the pages' tables and the plot."""
    found = growth(results)
    draw_growth(_DOCS / "images" / "scale.svg", found)
    every = [p for points in found.values() for p in points if p[0] >= _LARGE]
    powers = [exponent([(p[0], p[i]) for p in every]) for i in (1, 2)]
    for page, (columns, caption, picture, sentence) in _TEXTS.items():
        lines = _head(columns, left=(0,))
        for name, made in results["cases"].items():
            base = made["pickles"]["cpu"] if "pickles" in made else 0
            used = (cell for k in ("inspect", "plan") for cell in _used(made[k], base))
            counts = (f"{n:,}" for n in made["sizes"])
            lines.append(_row(CASES[name][0], *counts, f"{base:.1f}" if base else "", *used))
        lines += ["", f"![{caption}]({picture})", "", sentence.format(_LARGE, *powers)]
        splice(_DOCS / page, "scale", "\n".join(lines))


def show(results: dict[str, Any]) -> None:
    """Print what was planned in growing sizes."""
    columns = ["what grows", "size", "tensors", "places", "pairs", "processor, s", "MB"]
    print("\n".join(_head(columns, left=(0,))))
    for name, points in results["series"].items():
        for p in points:
            print(_row(name, str(p["size"]), *(f"{n:,}" for n in p["sizes"]), *_used(p)))


def _used(made: dict[str, float], base: float = 0) -> tuple[str, str]:
    times = f" ({made['cpu'] / base:.2g})" if base else ""
    return f"{made['cpu']:.1f}{times}", f"{made['rss']:,.0f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(columns: list[str], left: tuple[int, ...]) -> list[str]:
    return [_row(*columns), _row(*("---" if i in left else "---:" for i in range(len(columns))))]


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=["make", "cases", "series", "report", "show"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/ckptconv-scale"))
    parser.add_argument("--rounds", type=int, default=2, help="of each large one")
    parser.add_argument("--results", type=Path, default=_HERE / "data" / "scale.json")
    args = parser.parse_args()
    if args.step == "make":
        make(CASES[args.names[0]][2], Path(args.names[1]).absolute())
        return
    args.scratch.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    results_path = args.results.absolute()

    def save() -> None:
        results_path.write_text(json.dumps(results, indent=1))

    if args.step == "cases":
        cases(results, args.scratch, args.names, args.rounds, save)
    elif args.step == "series":
        series(results, args.scratch, save)
    else:
        (report if args.step == "report" else show)(results)


if __name__ == "__main__":
    main()
