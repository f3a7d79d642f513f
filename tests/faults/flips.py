"""Flip bits in checkpoints and in what they were converted to, and see that each is found and named.

``flips.py FOLDER [--times N] [--seed N] [--fields FILE]`` takes every checkpoint below the folder. It is
converted to Hugging Face's format, and the model beside it (``hf/``) to a checkpoint like it. Then one bit
at a time is flipped in the weights of either side, and ``verify-roundtrip`` has to say so. Each flip is

- found: exit 3, and a difference names the tensor, the file and the index;
- refused: an error that names the file;
- unread: no pair of the plan holds the element (optimizer states, padding, weights of another kind);
- rounded: the cast, or the sum, that stands between the sides gives the same value;
- lost: everything else.

A file given with ``--fields`` holds, as JSON, options by glob pattern of a path.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import ckptconv as api
from ckptconv.api.again import open_sides, plan_again
from ckptconv.api.verify import verify_roundtrip
from ckptconv.errors import CkptconvError
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.readers.registry import READERS, open_checkpoint
from ckptconv.verify.result import Result
from faults.places import excuse, flipped, payload, spans_of
from running import contents

__all__ = ["Flips", "checkpoints", "main"]

OUTCOMES = ("found", "refused", "unread", "rounded", "lost")

# What neither names nor shapes of some checkpoints tell, by their path.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "*contiguous*": {"qkv_layout": "contiguous", "mlp_layout": "contiguous"}
}
_ANSWERS = ("hf", "expected", "unified")  # folders of models that checkpoints become
_VERIFIED = (
    "qkv_layout",
    "mlp_layout",
    "lora",
    "family",
    "vocab_size",
    "yaml",
    "strategy",
    "weights",
    "config",
)


def checkpoints(root: Path) -> Iterator[Path]:
    """Yield the checkpoints below a folder: what a reader takes, or each file of a folder of several."""
    if any(reader.recognise(root) for reader in READERS):
        try:
            open_checkpoint(root)
        except CkptconvError:
            files = sorted(p for p in root.iterdir() if p.suffix in (".ckpt", ".safetensors"))
            if len(files) > 1:
                yield from files
                return
        yield root
        return
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in _ANSWERS:
            yield from checkpoints(path)


def beside(path: Path, top: Path) -> Path | None:
    """Return the nearest folder with a config.json that a checkpoint's parents hold."""
    for folder in path.parents:
        for found in (folder / "hf", folder):
            if (found / "config.json").is_file():
                return found
        if folder == top:
            break
    return None


@dataclass(slots=True)
class Flips:
    """Count what became of flipped bits.

    Attributes:
        times: Flips of each side of a pair.
        seed: Where chance starts.
        tallies: Outcomes by kind of pair.
        lost: What was lost, and by which flip.
        refusals: What was said of refused flips, and how often.
        passed: Checkpoints that are not converted, and why.
    """

    times: int
    seed: int = 1
    tallies: dict[str, Counter[str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    passed: list[str] = field(default_factory=list)

    def case(self, path: Path, top: Path, scratch: Path, fields: Mapping[str, Any]) -> None:
        """Convert a checkpoint and the model beside it, and flip bits of both."""
        name = str(path.relative_to(top))
        base = path if path.is_dir() else path.parent
        shutil.copytree(base, scratch / "run")
        source = scratch / "run" / path.relative_to(base)
        config = beside(path, top)
        tries: list[dict[str, Any]] = [{"config": str(config)}] if config is not None else [{}]
        tries += [{**tries[0], "lora": "merge"}, {"assets": False}, {"to": "mindformers"}]
        errors = []
        for chosen in ({**t, **fields} for t in tries):
            try:
                api.convert(source, scratch / "out", overwrite=True, **chosen)
                break
            except CkptconvError as e:
                errors.append(e)
        else:
            self.passed.append(f"{name}: {errors[0].message}")
            return
        opened = open_checkpoint(source)
        kind = f"{_kind(opened)} -> {chosen.get('to', 'hf')}"
        self.pair(name, kind, source, scratch / "out", chosen)
        if config is None or config.name != "hf" or opened.producer in ("deepspeed", "huggingface"):
            return
        shutil.copytree(config, scratch / "model")
        to = {"mindspore": "mindformers", "megatron": "megatron"}.get(opened.producer, "dcp")
        to = "torch_dist" if opened.format.startswith("torch_dist") else to
        back = {"to": to, **({} if to == "dcp" else {"like": str(source)}), **fields}
        try:
            api.convert(scratch / "model", scratch / "back", **back)
        except CkptconvError as e:
            self.passed.append(f"hf -> {name}: {e.message}")
            return
        self.pair(f"hf -> {name}", f"hf -> {_kind(opened)}", scratch / "model", scratch / "back", back)

    def pair(self, name: str, kind: str, source: Path, out: Path, fields: Mapping[str, Any]) -> None:
        """Flip bits of a source and of what it was converted to."""
        how = {k: v for k, v in fields.items() if k in _VERIFIED}
        tally = self.tallies.setdefault(kind, Counter())
        tally["pairs"] += 1
        try:
            assert (result := verify_roundtrip(source, out, replicas="all", **how)).ok, result.mismatches[0]
            sides = open_sides(source, out, {"replicas": "all", **how})
            there = sides.there
            assert there is not None
            made, way, _ = plan_again(sides)
        except (CkptconvError, AssertionError) as e:
            tally["lost"] += 1
            self.lost.append(f"{name}: sound, but not verified: {e}")
            return
        chance = random.Random(f"{self.seed} {name}")
        ours = payload((s.path for s in made.inputs), spans_of(made.stored))
        theirs = payload((s.path for s in there.files), spans_of(there.stored))
        for side, places in (("source", ours), ("output", theirs)):
            stored, relation = (made.stored, made.relation) if side == "source" else (there.stored, way)
            for _ in range(self.times):
                path = chance.choice(sorted(places))
                lo, hi = chance.choices(places[path], [b - a for a, b in places[path]])[0]
                at, bit = chance.randrange(lo, hi), chance.randrange(8)
                with flipped(Path(path), at, bit):
                    outcome = _judge(source, out, how, path, self.refusals)
                    again = outcome == "ok" and bool(made.terms) and _same(source, out, fields)
                if outcome == "ok":
                    outcome = excuse(
                        made, stored, relation, path, at, bit, at_source=side == "source", again=again
                    )
                tally[outcome if outcome in OUTCOMES else "lost"] += 1
                if outcome not in OUTCOMES[:-1]:
                    self.lost.append(f"{name}: bit {bit} of byte {at} of {path}: {outcome}")

    def table(self) -> str:
        """Return the counts by kind as a table, with their sums."""
        rows = [[n, t["pairs"], sum(t[o] for o in OUTCOMES), *(t[o] for o in OUTCOMES)]
                for n, t in sorted(self.tallies.items())]  # fmt: skip
        rows.append(["all", *(sum(r[i] for r in rows) for i in range(1, 3 + len(OUTCOMES)))])
        width = max(len(r[0]) for r in rows)
        lines = [["flipped", "pairs", "flips", *OUTCOMES], *rows]
        return "\n".join(f"{line[0]:<{width}}" + "".join(f"{c:>9}" for c in line[1:]) for line in lines)


def _kind(opened: Checkpoint) -> str:
    return f"{opened.producer} ({opened.format})"


def _same(source: Path, out: Path, fields: Mapping[str, Any]) -> bool:
    """Whether a source is converted to the very files that are there."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        api.convert(source, Path(folder, "again"), **fields)
        return contents(Path(folder, "again")) == contents(out)


def _judge(source: Path, out: Path, how: Mapping[str, Any], path: str, refusals: Counter[str]) -> str:
    try:
        result = verify_roundtrip(source, out, replicas="all", **how)
    except CkptconvError as e:
        if Path(path).name not in str(e):
            return f"refused without the file: {e}"
        refusals[e.message] += 1
        return "refused"
    if result.ok:
        return "ok"
    return "found" if _names(result, path) else f"misnamed: {result.mismatches}"


def _names(result: Result, path: str) -> bool:
    """Whether a difference names a tensor, an index, and the file as one of the two it lies in."""
    return any(
        m.kind in ("value", "replica")
        and m.tensor
        and m.index is not None
        and any(p is not None and Path(p.file) == Path(path) for p in (m.source, m.output))
        for m in result.mismatches
    )


def main() -> int:
    """Flip bits in every case below a folder, and print what became of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="checkpoints, at any depth")
    parser.add_argument("--times", type=int, default=4, help="flips of each side of a pair")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fields", type=Path, help="JSON: options by pattern of the path")
    options = parser.parse_args()
    known = {**_FIELDS, **(json.loads(options.fields.read_text()) if options.fields is not None else {})}
    flips = Flips(options.times, options.seed)
    for path in checkpoints(options.folder):
        fields = {k: v for p, held in known.items() if fnmatch(str(path), p) for k, v in held.items()}
        before = len(flips.lost)
        with tempfile.TemporaryDirectory(prefix="ckptconv-flips-") as scratch:
            flips.case(path, options.folder, Path(scratch), fields)
        print(f"{path.relative_to(options.folder)}: {len(flips.lost) - before} lost", flush=True)
        for text in flips.lost[before:]:
            print(f"LOST {text}", flush=True)
    for text in flips.passed:
        print(f"not converted: {text}")
    print(flips.table())
    for text, count in flips.refusals.most_common():
        print(f"refused {count} times: {text}")
    return 1 if flips.lost or not flips.tallies else 0


if __name__ == "__main__":
    sys.exit(main())
