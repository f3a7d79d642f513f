#!/usr/bin/env python
"""Convert with Megatron-Bridge on a CPU, by its own functions; see cpu.py for what stands in for CUDA.

python benchmarks/by_hand/bridge.py import MODEL OUT                    to Megatron's torch_dist
python benchmarks/by_hand/bridge.py export RUN OUT --config MODEL       from it
"""

from __future__ import annotations

import argparse
import os
import queue
import tempfile
from pathlib import Path
from typing import Any

import cpu  # noqa: F401 - before what it stands in for
import torch
import torch.distributed as dist


def _distributed() -> None:
    """Be the only rank, over gloo whatever is asked for."""
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}.store", rank=0, world_size=1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    groups: Any = dist.new_group

    def new_group(*arguments: Any, **named: Any) -> Any:
        named.pop("pg_options", None)
        return groups(*arguments, **{**named, "backend": "gloo"})

    dist.new_group = new_group
    dist.init_process_group = lambda *_, **__: None


def bridge_of(config: Path) -> Any:
    """Return the bridge of a model's architecture."""
    from megatron.bridge import AutoBridge
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()  # the save is not asynchronous: no process of its own
    return AutoBridge.from_hf_pretrained(str(config), torch_dtype=torch.bfloat16)


def write(model: Path, out: Path) -> None:
    """Write a run as ``AutoBridge.import_ckpt`` does, two of its defaults apart, which ask for CUDA."""
    bridge = bridge_of(model)
    provider = bridge.to_megatron_provider()
    provider.gradient_accumulation_fusion = False
    if getattr(provider, "moe_token_dispatcher_type", None) == "flex":
        provider.moe_token_dispatcher_type = "alltoall"
    provider.finalize()
    provider.initialize_model_parallel(seed=0)
    made = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    bridge.save_megatron_model(made, str(out), hf_tokenizer_path=str(model), low_memory_save=True)


def read(run: Path, out: Path, config: Path) -> None:
    """Save a run as a model, with ``AutoBridge.export_ckpt``."""
    bridge_of(config).export_ckpt(str(run), str(out), show_progress=False)


def main() -> None:
    """Write or read."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("direction", choices=("import", "export"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path)
    args = parser.parse_args()
    _distributed()
    if args.direction == "import":
        write(args.source, args.out)
    else:
        read(args.source, args.out, args.config)
    os._exit(0)  # gloo's threads


if __name__ == "__main__":
    main()
