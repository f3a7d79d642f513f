"""Put LoRA adapters into Megatron's ranks, and merge them there, module by module, with torch alone."""

from __future__ import annotations

import argparse
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_cases import flat, rank_files, read_rank_file

__all__ = ["Factors", "made_factors", "merged", "read_ranks", "with_adapters", "write_ranks"]

# A and B of every weight of a rank, by the rank's file, chunk and weight.
Factors = Mapping[tuple[str, str, str], tuple[Tensor, Tensor]]
Ranks = dict[str, dict[str, Any]]

COLUMN = (
    "linear_qkv", "linear_fc1", "linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj", "output_layer",
    "query_key_value", "dense_h_to_4h",
)  # fmt: skip
ROW = ("linear_proj", "linear_fc2", "dense", "dense_4h_to_h")
_CHUNK = r"model\d*"
_EXPERTS = re.compile(r"experts\.weight[12]")


def read_ranks(run: Path) -> Ranks:
    """Load every rank's file."""
    return {
        name: {k: flat(v) if re.fullmatch(_CHUNK, k) else v for k, v in read_rank_file(run / name).items()}
        for name in rank_files(run)
    }


def write_ranks(ranks: Ranks, run: Path, out: Path, **arguments: object) -> Path:
    """Save ranks as the run they are from was saved, with further arguments; frameworks' own objects go."""
    simple = (bool, int, float, str, list, type(None), torch.dtype)
    for name, rank in ranks.items():
        args = {k: v for k, v in vars(rank["args"]).items() if isinstance(v, simple)}
        kept = {
            k: v for k, v in rank.items() if k.startswith("model") or k in ("checkpoint_version", "iteration")
        }
        (out / name).parent.mkdir(parents=True)
        torch.save({**kept, "args": argparse.Namespace(**{**args, **arguments})}, out / name)
    for tracker in run.glob("*.txt"):
        shutil.copy(tracker, out)
    return out


def chunks_of(rank: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the chunks of a rank's model."""
    for key, value in rank.items():
        if re.fullmatch(_CHUNK, key):
            yield key, value


def made_factors(
    ranks: Ranks, is_target: Callable[[str], bool], *, sizes: Mapping[str, int], whole: tuple[str, ...] = ()
) -> Factors:
    """Make factors of small whole numbers, cut over ranks as training does.

    Args:
        ranks: The ranks.
        is_target: Whether a weight has an adapter.
        sizes: ``pp`` and ``ep``, which the folders' names do not tell apart.
        whole: Modules that every rank holds whole.
    """
    made = {}
    for file, rank in ranks.items():
        tp, stage, expert = _place(file, sizes)
        for chunk, tensors in chunks_of(rank):
            for name, weight in tensors.items():
                if not isinstance(weight, Tensor) or not is_target(name):
                    continue
                module = re.sub(r"\.weight\d*$", "", name).rpartition(".")[2]
                own = f"{expert}" if ".experts." in name else ""
                place = f"{stage} {chunk} {name} {own}"
                cut = f"{place} {tp}"
                if _EXPERTS.search(name):
                    made[file, chunk, name] = _together(name, weight, f"{place} A", f"{place} B", tp)
                    continue
                a = cut if module in ROW and module not in whole else place
                b = cut if module in COLUMN and module not in whole else place
                rows, columns = weight.shape
                made[file, chunk, name] = (_random(f"{a} A", 2, columns), _random(f"{b} B", rows, 2))
    assert made
    return made


def _together(name: str, weight: Tensor, a: str, b: str, tp: int) -> tuple[Tensor, Tensor]:
    """Make factors of two experts in one tensor: ``[experts, in, r]`` and ``[experts, r, out]``."""
    first = name.endswith("1")
    fixed = weight.shape[0] if first else weight.shape[1]
    other = weight.numel() // fixed // 2
    if first:
        return _random(a, 2, fixed, 2).view(fixed, 4), _random(f"{b} {tp}", 2, 2, other).view(2, -1)
    return _random(f"{a} {tp}", 2, other, 2).view(-1, 2), _random(b, 2, 2, fixed).view(4, fixed)


def _place(file: str, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    """Return a rank's numbers: tensor, pipeline and expert parallel."""
    tp, *rest = (int(n) for n in file.split("/")[1].split("_")[2:])
    stage = rest.pop(0) if sizes["pp"] > 1 else 0
    return tp, stage, rest.pop(0) if sizes["ep"] > 1 else 0


def _random(seed: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randint(-3, 4, shape, generator=generator).to(torch.bfloat16)


def with_adapters(ranks: Ranks, factors: Factors, *, base: bool = True, adapter: str = ".default") -> Ranks:
    """Return ranks as PEFT leaves them; without ``base`` only the factors."""
    made: Ranks = {}
    for file, rank in ranks.items():
        made[file] = dict(rank)
        for chunk, tensors in chunks_of(rank):
            new: dict[str, Any] = {}
            for name, value in tensors.items():
                pair = factors.get((file, chunk, name))
                module, _, leaf = name.rpartition(".")
                together = _EXPERTS.search(name) is not None
                if base:
                    new[name if pair is None or together else f"{module}.base_layer.{leaf}"] = value
                if pair is not None and together:
                    new |= {f"{name}_lora_a": pair[0], f"{name}_lora_b": pair[1]}
                elif pair is not None:
                    new |= {
                        f"{module}.lora_A{adapter}.{leaf}": pair[0],
                        f"{module}.lora_B{adapter}.{leaf}": pair[1],
                    }
            made[file][chunk] = new
    return made


def merged(ranks: Ranks, factors: Factors, scale: float, *, early: bool = False) -> Ranks:
    """Return ranks with their adapters merged; ``early`` rounds the product before it is added."""
    made: Ranks = {}
    for file, rank in ranks.items():
        made[file] = dict(rank)
        for chunk, tensors in chunks_of(rank):
            made[file][chunk] = {
                n: v
                if (pair := factors.get((file, chunk, n))) is None
                else _merged(n, v, *pair, scale, early)
                for n, v in tensors.items()
            }
    return made


def _merged(name: str, weight: Tensor, a: Tensor, b: Tensor, scale: float, early: bool) -> Tensor:
    if _EXPERTS.search(name):
        delta = (a.float().view(2, -1, 2) @ b.float().view(2, 2, -1)).view(weight.shape)
    else:
        delta = b.float() @ a.float()
    if early:
        return weight + scale * delta.to(weight.dtype)
    return (weight.float() + scale * delta).to(weight.dtype)
