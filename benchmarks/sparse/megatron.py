"""Write a run in Megatron's ``torch`` format: a file for every tensor, pipeline and expert rank."""

from __future__ import annotations

import io
import json
import random
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.namespaces import namespace
from ckptconv.containers.torch.picklevm import Global, Record
from ckptconv.containers.torch.torchbin import TensorRef, layout_tree
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.dialects.core import CORE_TE
from ckptconv.dialects.spread import Layout, spread
from ckptconv.dtypes import dtype
from ckptconv.facts.reverse import Form, arguments_from
from ckptconv.families import find_family
from ckptconv.families.config import facts_of
from ckptconv.parallel import Grid, stage_layers
from sparse.models import Parallel, slots_of, write_holes

__all__ = ["ITERATION", "arguments", "model_layout", "write_ranks"]

ITERATION = 1000
_ARGS = Path(__file__).parents[2] / "fixtures" / "megatron" / "args" / "deepseek_v3.json"


def model_layout(config: Mapping[str, Any], parallel: Parallel) -> Layout:
    """Lay a model out as Megatron with TransformerEngine and grouped experts does."""
    grid = Grid(parallel.tp, parallel.pp, 1, parallel.ep, parallel.etp)
    counts = parallel.layers(config["num_hidden_layers"])
    unit = 128 * parallel.tp
    vocab = -(-config["vocab_size"] // unit) * unit
    stages = stage_layers(grid, config["num_hidden_layers"], counts=counts)
    return Layout(grid, stages, CORE_TE, "grouped", vocab=vocab)


def arguments(config: Mapping[str, Any], parallel: Parallel, vocab: int) -> dict[str, Any]:
    """Return the training arguments: those of a real run, with this model's sizes and layout."""
    family = find_family(config["model_type"])
    assert family is not None
    counts = parallel.layers(config["num_hidden_layers"])
    real = {k: v for k, v in json.loads(_ARGS.read_text())["args"].items() if not isinstance(v, dict)}
    form = Form(
        "megatron", tp=parallel.tp, pp=parallel.pp, ep=parallel.ep, etp=parallel.etp, divisible=128,
        padded_vocab=vocab, dtype="bfloat16", implementation="transformer_engine", experts_form="grouped",
        mtp=0,
    )  # fmt: skip
    made = arguments_from(facts_of(config, family), form)
    made["params_dtype"] = Global("torch", "bfloat16")
    made["pipeline_model_parallel_layout"] = "E" + "|".join(f"t*{n}" for n in counts) + "L"
    made["exit_signal"] = Record("signal.Signals", (15,), module="signal")
    return {**real, **made}


def write_ranks(run: Path, config: Mapping[str, Any], parallel: Parallel) -> None:
    """Write the run's folder with its tracker and config.json."""
    family = find_family(config["model_type"])
    assert family is not None
    layout = model_layout(config, parallel)
    held = spread(layout, slots_of(config), family.dims(config)).held
    args = arguments(config, parallel, layout.vocab or 0)
    step = run / f"iter_{ITERATION:07d}"
    step.mkdir(parents=True)
    states = {pp: _random_state(1234 + 100 * pp) for pp in range(parallel.pp)}
    for number, (rank, chunks) in enumerate(held.items()):
        root = {
            "args": namespace({**args, "rank": number, "local_rank": number % 8}),
            "checkpoint_version": 3.0,
            "iteration": ITERATION,
            "model": _model({n: TensorRef(n, dtype(s.dtype), s.shape) for n, s in chunks[0].items()}),
            # Python's differs in all ranks of a real run; numpy's and torch's are seeded by stage.
            "rng_state": [{**states[rank.pp][0], "random_rng_state": random.Random(number).getstate()}],
            "num_floating_point_operations_so_far": 123_456_789_012,
        }
        folder = step / layout.grid.folder(rank)
        folder.mkdir()
        write_holes(folder / "model_optim_rng.pt", layout_tree(root))
    (run / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    (run / "config.json").write_text(json.dumps(config, indent=2))


def _model(tensors: Mapping[str, TensorRef]) -> OrderedDict[str, Any]:
    """Return the model's state dict with the (empty) extra states of its modules."""
    model: OrderedDict[str, Any] = OrderedDict()
    for name, ref in tensors.items():
        model[name] = ref
        module, _, leaf = name.rpartition(".")
        if leaf.startswith("weight") and ("linear_" in module or "norm" in module):
            model[f"{module}._extra_state"] = TensorRef(f"{module}._extra_state", dtype("uint8"), (0,))
        elif module == "output_layer":
            model[f"{module}._extra_state"] = None
    return model


def _random_state(seed: int) -> Any:
    """Return ``rng_state`` as Megatron-LM gathers it, as what can be written again."""
    random.seed(seed)
    np.random.seed(seed)
    state = [{
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "rng_tracker_states": {"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)},
    }]  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "state.pt"
        path.write_bytes(buffer.getvalue())
        return _as_refs(open_torch(path, exact=True).root, "rng")


def _as_refs(value: Any, name: str) -> Any:
    if isinstance(value, FileTensor):
        return TensorRef(name, value.dtype, value.shape)
    if isinstance(value, dict):
        return {k: _as_refs(v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_as_refs(v, f"{name}.{i}") for i, v in enumerate(value)]
    return value
