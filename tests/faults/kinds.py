"""Make one source for every kind of conversion, small or large, and say how each is converted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

import ckptconv as api
from ckptconv.families import find_family
from running import DEMO, succeeds

__all__ = ["KINDS", "Kind", "Source"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kind:
    """Name a kind of conversion.

    Attributes:
        name: Its name.
        source: Which source it reads.
        command: The words before source and output.
        flags: The words after them; ``{base}`` is the folder of the sources.
        old: Flags of a conversion that filled the output before, which ``--overwrite`` replaces.
    """

    name: str
    source: str
    command: tuple[str, ...]
    flags: tuple[str, ...] = ()
    old: tuple[str, ...] | None = None

    def words(self, base: Path, out: Path) -> list[str]:
        """Return the command line."""
        command, *inner = self.command
        flags = [flag.replace("{base}", str(base)) for flag in (*inner, *self.flags)]
        return [command, str(base / self.source), str(out), *flags]


_CUT = ("--max-shard-size", "{shard}")
KINDS: tuple[Kind, ...] = (
    Kind("deepspeed-to-hf", "zero", ("deepspeed-to-hf",), _CUT),
    Kind("deepspeed-to-hf bin", "zero", ("deepspeed-to-hf",), ("--format", "bin", *_CUT)),
    Kind("deepspeed-to-hf cast", "zero", ("deepspeed-to-hf",), ("--dtype", "bfloat16", *_CUT)),
    Kind("megatron-merge", "megatron", ("megatron-merge",), _CUT),
    Kind("megatron-split", "model", ("megatron-split",), ("--tp", "2", "--pp", "2")),
    Kind("to torch_dist", "model", ("convert",), ("--to", "torch_dist", *_CUT)),
    Kind("to dcp", "model", ("convert",), ("--to", "dcp", *_CUT)),
    Kind("mindformers-to-hf", "mindformers/checkpoint.ckpt", ("mindformers-to-hf",),
         ("--config", "{base}/model", *_CUT)),
    Kind("hf-to-mindformers ckpt", "model", ("hf-to-mindformers",)),
    Kind("hf-to-mindformers safetensors", "model", ("hf-to-mindformers",), ("--format", "safetensors")),
    Kind("LoRA merge", "model", ("convert",), ("--to", "hf", "--adapter", "{base}/adapter", *_CUT)),
    Kind("overwrite", "zero", ("deepspeed-to-hf",), ("--overwrite", *_CUT), old=("--format", "bin")),
    Kind("overwrite dcp", "model", ("convert",), ("--to", "dcp", "--overwrite", *_CUT),
         old=("--max-shard-size", "{old}")),
    Kind("verify", "zero", ("deepspeed-to-hf",), ("--verify", *_CUT)),
)  # fmt: skip


class Source:
    """Make the sources of all kinds under one folder, each when it is first asked for.

    Args:
        base: The folder.
        width: Hidden size of the model; it decides how large everything is (96: 1 MB, 512: 40 MB of fp32).
        layers: Its layers.
    """

    def __init__(self, base: Path, width: int, layers: int = 4) -> None:
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        self.config: dict[str, Any] = dict(
            model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=max(512, 8 * width),
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, head_dim=width // 4, max_position_embeddings=128, rms_norm_eps=1e-6,
            rope_theta=1e4,
            hidden_act="silu", initializer_range=0.02, tie_word_embeddings=False,
        )  # fmt: skip
        family = find_family("llama")
        assert family is not None
        self.shapes = {name: tuple(shape) for name, shape, _ in family.expected(self.config)}
        self.bytes = 4 * sum(int(np.prod(s)) for s in self.shapes.values())

    def flag(self, text: str) -> str:
        """Fill in the sizes of shards: a dozen, and for what is replaced five."""
        return text.replace("{shard}", f"{self.bytes // 12}B").replace("{old}", f"{self.bytes // 5}B")

    def words(self, kind: Kind, out: Path) -> list[str]:
        """Return the command line of a kind, its source made if need be."""
        self._ready(kind.source.partition("/")[0])
        if "{base}/model" in kind.flags:
            self._ready("model")
        if "{base}/adapter" in kind.flags:
            self._ready("adapter")
        return [self.flag(word) for word in kind.words(self.base, out)]

    def fill(self, kind: Kind, out: Path) -> None:
        """Put the model into the output that the kind replaces."""
        assert kind.old is not None
        words = [w for w in self.words(kind, out) if w != "--overwrite"]
        succeeds(*words, *(self.flag(f) for f in kind.old), "--quiet")
        if "dcp" not in kind.name:
            (out / "notes.txt").write_text("mine")

    def _ready(self, name: str) -> None:
        if not (self.base / name).exists():
            _MAKERS[name](self, self.base / name)


def _tensors(source: Source) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in source.shapes.items()}


def _assets(source: Source, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(source.config))
    for path in DEMO.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())


def _model(source: Source, folder: Path) -> None:
    folder.mkdir()
    save_file(_tensors(source), folder / "model.safetensors")
    _assets(source, folder)


def _zero(source: Source, folder: Path) -> None:
    """Write what ZeRO stage 2 saves on two ranks (deepspeed 0.19.8): masters in one flat group."""
    tag = folder / "global_step2"
    tag.mkdir(parents=True)
    tensors = _tensors(source)
    module = {n: torch.from_numpy(t).bfloat16() for n, t in tensors.items()}
    shapes = {n: torch.Size(t.shape) for n, t in tensors.items()}
    flat = np.concatenate([t.ravel() for t in tensors.values()])
    flat = np.concatenate([flat, np.zeros(-len(flat) % 4, np.float32)])
    states = dict(
        module=module, buffer_names=[], param_shapes=[shapes], frozen_param_shapes={}, shared_params={},
        frozen_param_fragments={}, global_steps=2, dp_world_size=2, mp_world_size=1, ds_version="0.19.8",
        ds_config={"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}},
    )  # fmt: skip
    torch.save(states, tag / "mp_rank_00_model_states.pt")
    for rank, half in enumerate(np.split(flat, 2)):
        state = dict(
            zero_stage=2, partition_count=[2], group_paddings=[0], ds_version="0.19.8",
            single_partition_of_fp32_groups=[torch.from_numpy(half.copy())],
            base_optimizer_state={"state": {}, "param_groups": []},
        )  # fmt: skip
        path = tag / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, path)
    (folder / "latest").write_text(tag.name)
    _assets(source, folder)


def _megatron(source: Source, folder: Path) -> None:
    source._ready("model")
    api.convert(source.base / "model", folder, to="megatron", sizes={"tp": 2, "pp": 2}, dialect="core-te")
    _assets(source, folder)


def _mindformers(source: Source, folder: Path) -> None:
    source._ready("model")
    api.convert(source.base / "model", folder, to="mindformers")


def _adapter(source: Source, folder: Path) -> None:
    """Write a peft adapter of rank 4 on two projections."""
    folder.mkdir()
    rng = np.random.default_rng(8)
    tensors: dict[str, Array] = {}
    for name, (rows, columns) in _targets(source.shapes):
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = rng.standard_normal((4, columns), np.float32)
        tensors[f"{stem}.lora_B.weight"] = rng.standard_normal((rows, 4), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = dict(
        peft_type="LORA", r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], bias="none",
        task_type="CAUSAL_LM", base_model_name_or_path=None,
    )  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _targets(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, int]]]:
    ends = ("q_proj.weight", "up_proj.weight")
    return [(name, (shape[0], shape[1])) for name, shape in shapes.items() if name.endswith(ends)]


_MAKERS: dict[str, Callable[[Source, Path], None]] = {
    "model": _model,
    "zero": _zero,
    "megatron": _megatron,
    "mindformers": _mindformers,
    "adapter": _adapter,
}
