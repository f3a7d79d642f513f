"""Damage checkpoints of every format, convert them, and say what came of it.

A damaged file must be refused by a CkptconvError, or give the very output an undamaged one gives, or else the
difference must be found by ``verify-roundtrip``. Everything else is lost.
"""

from __future__ import annotations

import json
import pickle
import random
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import ckptconv as api
from ckptconv.api.verify import verify_roundtrip
from ckptconv.errors import CkptconvError
from faults.kinds import Source
from faults.places import Ranges, spans_of
from running import CASES, contents

__all__ = ["OUTPUTS", "SAMPLES", "Bench", "Sample", "peak_bytes"]

_SECONDS = 60  # a hang, even on a busy machine


@dataclass(frozen=True, slots=True)
class Sample:
    """Name a checkpoint to damage.

    Attributes:
        name: Its format.
        make: Writes it into a folder, given the sources.
        fields: How it is converted.
        files: Patterns of the files to damage.
    """

    name: str
    make: Callable[[Source, Path], object]
    fields: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ("**/*",)


def _copy(name: str) -> Callable[[Source, Path], object]:
    def make(source: Source, folder: Path) -> None:
        source._ready(name)
        shutil.copytree(source.base / name, folder)

    return make


def _converted(origin: str, **fields: Any) -> Callable[[Source, Path], object]:
    def make(source: Source, folder: Path) -> None:
        source._ready(origin)
        chosen = {k: source.flag(v) if isinstance(v, str) else v for k, v in fields.items()}
        api.convert(source.base / origin, folder, **chosen)
        for path in (source.base / "model").glob("*.json"):
            if "index" not in path.name and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)

    return make


def _legacy(source: Source, folder: Path) -> None:
    case = CASES / "llama_z2_bf16_ws2_legacyserial"
    shutil.copytree(case / "ckpt", folder)
    shutil.copyfile(case / "config.json", folder / "config.json")


def _ranks(source: Source, folder: Path) -> None:
    case = CASES.parent / "mindspore" / "dist_mp2pp2"
    shutil.copytree(case, folder)


SAMPLES: tuple[Sample, ...] = (
    Sample("torch zip (DeepSpeed)", _copy("zero"), files=("*/*.pt", "latest")),
    Sample("torch legacy (DeepSpeed)", _legacy, files=("*/*.pt",)),
    Sample("torch zip (Megatron)", _copy("megatron"), files=("*/*/*.pt", "latest*")),
    Sample("safetensors", _copy("model"), files=("*.safetensors",)),
    Sample("safetensors index", _converted("model", max_shard_size="{shard}"), files=("*.index.json",)),
    Sample("bin, index", _converted("model", max_shard_size="{old}", format="bin"),
           files=("*.bin", "*.index.json")),
    Sample("torch_dist", _converted("model", to="torch_dist", max_shard_size="{old}"),
           files=("*/*", "*/.metadata", "latest*")),
    Sample("DCP", _converted("model", to="dcp", max_shard_size="{old}"), files=(".metadata", "*.distcp")),
    Sample("MindSpore ckpt", _converted("model", to="mindformers"), files=("*.ckpt",)),
    Sample("MindSpore safetensors", _converted("model", to="mindformers", format="safetensors"),
           files=("*.safetensors",)),
    Sample("MindSpore ranks, strategies", _ranks, {"to": "mindformers"}, files=("**/*.ckpt",)),
)  # fmt: skip
"""Every format that is read."""

OUTPUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("safetensors", {"to": "hf", "max_shard_size": "{old}"}),
    ("bin", {"to": "hf", "format": "bin"}),
    ("Megatron", {"to": "megatron", "sizes": {"tp": 2, "pp": 2}}),
    ("torch_dist", {"to": "torch_dist"}),
    ("DCP", {"to": "dcp", "max_shard_size": "{old}"}),
    ("MindSpore ckpt", {"to": "mindformers"}),
    ("MindSpore safetensors", {"to": "mindformers", "format": "safetensors"}),
)
"""Every format that is written, made of the Hugging Face model."""


def peak_bytes() -> int:
    """Return the most memory this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def payload(root: Path) -> dict[str, Ranges]:
    """Return where in each file the weights lie."""
    found = spans_of(api.open(root).checkpoint.stored)
    return {str(Path(path)): sorted(ranges) for path, ranges in found.items()}


class Bench:
    """Damage one sample in many ways.

    Args:
        sample: The checkpoint.
        source: The sources.
        scratch: A folder for it.
        seed: Where chance starts.

    Attributes:
        tally: What came of each damage: refused, equal, found, lost.
        lost: What was lost, and by what damage.
    """

    def __init__(self, sample: Sample, source: Source, scratch: Path, seed: int = 1) -> None:
        self.sample = sample
        self.random = random.Random(f"{seed} {sample.name}")
        self.root, self._out, self._whole = scratch / "root", scratch / "out", scratch / "whole"
        sample.make(source, self.root)
        api.convert(self.root, self._whole, **sample.fields)
        self._expected = contents(self._whole)
        self._payload = payload(self.root)
        paths = {p for pattern in sample.files for p in self.root.glob(pattern) if p.is_file()}
        self.files = sorted(paths)
        self.tally: Counter[str] = Counter()
        self.lost: list[str] = []

    def regions(self, path: Path) -> tuple[Ranges, Ranges]:
        """Return the parts of a file that are structure, and those that are weights."""
        weights = self._payload.get(str(path), [])
        structure, at = [], 0
        for lo, hi in weights:
            if lo > at:
                structure.append((at, lo))
            at = max(at, hi)
        size = path.stat().st_size
        return [*structure, *([(at, size)] if size > at else [])], weights

    def flip(self, times: int) -> None:
        """Flip one bit, so many times in the structure of each file and half as often in its weights."""
        for path in self.files:
            good = path.read_bytes()
            for part, count in zip(self.regions(path), (times, times // 2), strict=True):
                for _ in range(count if part else 0):
                    lo, hi = self._choose(part)
                    at, bit = self.random.randrange(lo, hi), self.random.randrange(8)
                    bad = bytearray(good)
                    bad[at] ^= 1 << bit
                    self._try(path, good, bytes(bad), f"bit {bit} of byte {at}")

    def _choose(self, ranges: Ranges) -> tuple[int, int]:
        weights = [hi - lo for lo, hi in ranges]
        return self.random.choices(ranges, weights if self.random.random() < 0.5 else None)[0]

    def cut(self, times: int) -> None:
        """Cut each file at the ends of its parts, a byte before and behind, and at random."""
        for path in self.files:
            good = path.read_bytes()
            ends = {edge for part in self.regions(path) for span in part for edge in span}
            places = {e + d for e in ends for d in (-1, 0, 1)} | {0, 1, 4, 8}
            places |= {self.random.randrange(len(good)) for _ in range(times) if good}
            fit = sorted(p for p in places if 0 <= p < len(good))
            for at in sorted(self.random.sample(fit, min(len(fit), 2 * times))):
                self._try(path, good, good[:at], f"cut at byte {at} of {len(good)}")

    def lie(self, times: int) -> None:
        """Put another value in the place of one that a file holds."""
        for path in self.files:
            good = path.read_bytes()
            if (tree := _tree_of(path)) is None:
                continue
            for _ in range(times):
                value, dump = tree()
                where = _spoil(value, self.random, json=path.suffix == ".json")
                if where is None:
                    break
                try:
                    bad = dump()
                except Exception:
                    continue  # what cannot be written
                self._try(path, good, bad, where)

    def _try(self, path: Path, good: bytes, bad: bytes, what: str) -> None:
        stat = path.stat()
        path.write_bytes(bad)
        try:
            with _limit(_SECONDS):
                outcome = self._judge()
        except Exception as error:
            outcome = "lost"
            self.lost.append(
                f"{self.sample.name}: {path.relative_to(self.root)}: {what}: {type(error).__name__}: {error}"
            )
        finally:
            path.write_bytes(good)
            shutil.rmtree(self._out, ignore_errors=True)
        assert path.stat().st_ino == stat.st_ino
        self.tally[outcome] += 1

    def _judge(self) -> str:
        try:
            api.convert(self.root, self._out, **self.sample.fields)
        except CkptconvError as error:
            assert error.exit_code in (1, 2, 3, 4) and error.message
            left = list(contents(self._out)) if self._out.exists() else []
            assert not [n for n in left if not n.endswith((".part", "-journal"))], left
            return "refused"
        if contents(self._out) == self._expected:
            return "equal"
        try:
            found = verify_roundtrip(self.root, self._whole, **self.sample.fields)
        except CkptconvError:
            return "found"
        assert not found.ok, "another output, which verify-roundtrip takes for right"
        return "found"


def spoil_outputs(source: Source, scratch: Path, times: int, seed: int = 1) -> dict[str, Counter[str]]:
    """Flip bits of what was written, and compare it with its source; weights must be found, by name."""
    source._ready("model")
    tallies = {}
    for name, fields in OUTPUTS:
        chance, tally = random.Random(f"{seed} {name}"), Counter[str]()
        out = scratch / name.replace(" ", "-")
        chosen = {k: source.flag(v) if isinstance(v, str) else v for k, v in fields.items()}
        api.convert(source.base / "model", out, **chosen)
        for path_name, ranges in payload(out).items():
            path = Path(path_name)
            good = path.read_bytes()
            for _ in range(times):
                lo, hi = chance.choice(ranges)
                bad = bytearray(good)
                bad[chance.randrange(lo, hi)] ^= 1 << chance.randrange(8)
                path.write_bytes(bad)
                found = verify_roundtrip(source.base / "model", out)
                tally["found" if len(found.mismatches) == 1 and found.mismatches[0].tensor else "lost"] += 1
            path.write_bytes(good)
        assert verify_roundtrip(source.base / "model", out).ok
        tallies[f"output {name}"] = tally
    return tallies


# Values that are not what was there


def _tree_of(path: Path) -> Callable[[], tuple[Any, Callable[[], bytes]]] | None:
    """Return what reads a file as nested values, to be changed and written again; None if it is no tree."""
    if path.suffix == ".json":

        def as_json() -> tuple[Any, Callable[[], bytes]]:
            root = json.loads(path.read_bytes())
            return root, lambda: json.dumps(root, default=str).encode()

        return as_json
    if path.name == ".metadata":

        def as_pickle() -> tuple[Any, Callable[[], bytes]]:
            root = pickle.loads(path.read_bytes())
            return root, lambda: pickle.dumps(root)

        return as_pickle
    if path.suffix in (".pt", ".bin") and path.stat().st_size:

        def as_torch() -> tuple[Any, Callable[[], bytes]]:
            root = torch.load(path, weights_only=False)

            def dump() -> bytes:
                with tempfile.NamedTemporaryFile() as file:
                    torch.save(root, file.name)
                    return Path(file.name).read_bytes()

            return root, dump

        try:
            as_torch()
        except Exception:  # classes of a framework that is not here
            return None
        return as_torch
    return None


def _hostile(chance: random.Random, value: Any, json: bool) -> tuple[str, Any]:
    """Return a value of another kind, size or shape than ``value``."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    shared: list[Any] = [1]
    for _ in range(60):
        shared = [shared, shared]
    choices: list[tuple[str, Any]] = [
        ("None", None), ("-1", -1), ("0", 0), ("2**70", 1 << 70), ("2**62", 1 << 62), ("nan", float("nan")),
        ("inf", float("inf")), ("True", True), ("text", "\x1b[2J../../x"), ("empty text", ""), ("[]", []),
        ("{}", {}), ("()", ()), ("bytes", b"\xff\0"), ("a cycle", cycle), ("a deep list", deep),
        ("2**60 elements", shared), ("a tensor", torch.ones(2, 3)), ("a scalar tensor", torch.tensor(3)),
        ("many dimensions", [1] * 70), ("a negative shape", (3, -4)),
    ]  # fmt: skip
    if isinstance(value, int):
        choices += [("one more", value + 1), ("one less", value - 1), ("ten times", value * 10)]
    if isinstance(value, torch.Tensor):
        choices += [
            ("half", value[: len(value) // 2] if value.dim() else value),
            ("transposed", value.t() if value.dim() == 2 else value[None]),
            ("expanded", value.flatten()[:1].expand(value.numel()).reshape(value.shape)),
            ("overlapping", value.as_strided(value.shape, [1] * value.dim())),
            ("complex", value.to(torch.complex64)),
            ("sparse", value.float().to_sparse()),
            ("meta", value.to("meta")),
        ]
    if isinstance(value, dict) and value:
        choices += [("one fewer", dict(list(value.items())[:-1])), ("other keys", dict(enumerate(value)))]
    if json:  # would be written out
        choices = [c for c in choices if c[1] is not shared]
    return chance.choice(choices)


def _spoil(root: Any, chance: random.Random, *, json: bool) -> str | None:
    """Change one value somewhere in a tree; return where, and what it is now."""
    places: list[tuple[str, Any, Any]] = []  # path, container, key

    def walk(value: Any, path: str, depth: int) -> None:
        if depth > 8 or len(places) > 20_000:
            return
        items: Any = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        elif hasattr(value, "__dict__") and not isinstance(value, (torch.Tensor, type)):
            items = vars(value).items()
        for key, inner in list(items)[:200]:
            places.append((f"{path}[{key!s:.60}]", value, key))
            walk(inner, places[-1][0], depth + 1)

    walk(root, "", 0)
    if not places:
        return None
    by_depth: dict[int, list[tuple[str, Any, Any]]] = {}
    for place in places:
        by_depth.setdefault(place[0].count("["), []).append(place)
    where, container, key = chance.choice(by_depth[chance.choice(sorted(by_depth))])
    held = container[key] if isinstance(container, (dict, list)) else getattr(container, key)
    what, new = _hostile(chance, held, json)
    if isinstance(container, (dict, list)):
        container[key] = new
    else:
        object.__setattr__(container, key, new)
    return f"{where} is {what}"
