"""Say what conversions start from: a table of sources, and of the commands that make them.

Commands are written as in conversions.py.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HAND", "SOURCES", "Source"]

HAND = "benchmarks/by_hand"


@dataclass(frozen=True, slots=True)
class Source:
    """Files a conversion starts from.

    Attributes:
        name: Their folder.
        steps: Commands that write them to ``{out}``.
        needs: Sources that must be there first.
        stand_in: Commands for large sizes, or where ``steps`` fail.
    """

    name: str
    steps: tuple[str, ...]
    needs: tuple[str, ...] = ()
    stand_in: tuple[str, ...] = ()


def _zero(stage: int) -> Source:
    return Source(
        f"zero{stage}",
        (f"deepspeed-python fixtures/make_large.py {{out}} --stage {stage} --layers {{layers}}",),
        stand_in=(f"deepspeed-python benchmarks/make_zero.py {{out}} --stage {stage} --gigabytes {{size}}",),
    )


def _model(name: str, kind: str, size: str = "{size}", dtype: str = "bfloat16") -> Source:
    command = f"python benchmarks/make_hf.py {{out}} --kind {kind} --gigabytes {size} --dtype {dtype}"
    return Source(name, (command,))


SOURCES = {
    source.name: source
    for source in (
        _zero(3),
        _zero(2),
        _model("llama", "llama"),
        _model("llama-fp32", "llama", dtype="float32"),
        _model("llama-half", "llama", "{half}"),
        _model("moe", "moe"),
        _model("rows", "rows"),
        _model("experts", "experts"),
        Source("fp8", ("ckptconv convert {llama} {out} --to hf --quantize fp8-block",), ("llama",)),
        Source("megatron", ("ckptconv megatron-split {llama} {out} --tp 4 --pp 2",), ("llama",)),
        Source("megatron-moe", ("ckptconv megatron-split {moe} {out} --ep 4",), ("moe",)),
        Source("megatron-rows", ("ckptconv megatron-split {rows} {out} --tp 8",), ("rows",)),
        Source("megatron-experts", ("ckptconv megatron-split {experts} {out} --tp 2 --ep 8",), ("experts",)),
        Source("bridge", (f"peers-python {HAND}/bridge.py import {{llama}} {{out}}",), ("llama",)),
        Source("adapter", ("python benchmarks/make_adapter.py {llama} {out}",), ("llama",)),
        Source("verl", ("python benchmarks/make_verl.py {out} --gigabytes {size}",)),
        Source("torch_dist", ("ckptconv convert {llama} {out} --to torch_dist",), ("llama",)),
        Source("dcp", ("ckptconv convert {llama} {out} --to dcp",), ("llama",)),
        Source("mindspore", ("ckptconv hf-to-mindformers {llama} {out}",), ("llama",)),
        Source(
            "bin", ("ckptconv convert {llama} {out} --to hf --format bin --max-shard-size 1TB",), ("llama",)
        ),
    )
}
