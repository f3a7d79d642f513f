"""Say what is measured: a table of conversions, of their sources, and of what they are compared with.

A new conversion is one more `Case`; what it starts from is one more `Source`, if none of these will do.
Commands are written as one types them. In braces stand the folders of sources by name, ``{out}`` for what our
command writes, ``{theirs}`` for what the other tool writes, ``{size}`` and ``{half}`` for gigabytes. The
first word is an interpreter: ``ckptconv``, ``python``, ``deepspeed-python`` or ``mindspore-python``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "LARGE", "SOURCES", "Case", "Source", "Tool"]

LARGE = 2.0
"""Gigabytes beyond which ZeRO files are not made by deepspeed, and other people's tools are not run."""

_HAND = "benchmarks/by_hand"


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


@dataclass(frozen=True, slots=True)
class Tool:
    """Another way to do a conversion.

    Attributes:
        name: What the tables call it.
        steps: Commands, one after the other; all count.
        same: Arguments of same_tensors.py that prove it wrote the same; empty where names or packing differ.
        checker: The interpreter that compares.
    """

    name: str
    steps: tuple[str, ...]
    same: str = "{theirs} {out}"
    checker: str = "python"


@dataclass(frozen=True, slots=True)
class Case:
    """A conversion.

    Attributes:
        name: Short, for ``--cases`` and the plots.
        title: Heading of its table.
        needs: Sources by name; the first is what is read.
        command: Ours, without ``--workers``.
        tools: Other ways, run at up to `LARGE` gigabytes.
        same: What our output must equal, tensor by tensor; empty where no safetensors come out.
        limit: Target: at most so many times as long as the baseline; None: no target.
        against: The baseline: ``copy`` the output and sync it, ``read`` all ``needs``, or ``nothing``.
        note: A sentence below the heading.
        cold: Also from an empty page cache, at every size; at up to `LARGE` gigabytes all are, once.
        tmpfs: Also into memory, so that the processor is the limit.
        budgets: Also under other limits of memory.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    command: str
    tools: tuple[Tool, ...] = ()
    same: str = ""
    limit: float | None = 1.0
    against: str = "copy"
    note: str = ""
    cold: bool = False
    tmpfs: bool = False
    budgets: bool = False


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
        Source("torch_dist", ("ckptconv convert {llama} {out} --to torch_dist",), ("llama",)),
        Source("dcp", ("ckptconv convert {llama} {out} --to dcp",), ("llama",)),
        Source("mindspore", ("ckptconv hf-to-mindformers {llama} {out}",), ("llama",)),
        Source(
            "bin", ("ckptconv convert {llama} {out} --to hf --format bin --max-shard-size 1TB",), ("llama",)
        ),
    )
}


def _zero_to_fp32(source: str) -> Tool:
    command = (
        f"deepspeed-python -m deepspeed.utils.zero_to_fp32 {{{source}}}/ckpt {{theirs}} --safe_serialization"
    )
    return Tool("zero_to_fp32.py", (command,))


def _merge_by_hand(source: str, config: str, layout: str) -> Tool:
    command = f"python {_HAND}/megatron_merge.py {{{source}}} {{theirs}} --config {{{config}}} {layout}"
    return Tool("torch.load, cat, save_file", (command,))


def _plain(name: str, source: str, flags: str = "") -> Tool:
    return Tool(name, (f"python {_HAND}/plain.py {{{source}}} {{theirs}} {flags}",))


def _dcp_to_torch(folder: str, *more: str, same: str) -> Tool:
    convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    return Tool(
        "dcp_to_torch_save" + (" + save_file" if more else ""),
        (f"{convert} {folder} {{theirs}}.pt", *more),
        same,
    )


CASES = (
    Case(
        "zero3",
        "DeepSpeed ZeRO-3 to safetensors, fp32",
        ("zero3",),
        "deepspeed-to-hf {zero3}/ckpt {out} --config {zero3}",
        (_zero_to_fp32("zero3"),),
        cold=True,
        tmpfs=True,
    ),
    Case(
        "zero3-bf16",
        "DeepSpeed ZeRO-3 to safetensors, rounded to bf16",
        ("zero3",),
        "deepspeed-to-hf {zero3}/ckpt {out} --config {zero3} --dtype bfloat16",
        budgets=True,
    ),
    Case(
        "zero2",
        "DeepSpeed ZeRO-2 to safetensors, fp32",
        ("zero2",),
        "deepspeed-to-hf {zero2}/ckpt {out} --config {zero2}",
        (_zero_to_fp32("zero2"),),
    ),
    Case(
        "megatron-merge",
        "Megatron TP 4 PP 2 to Hugging Face",
        ("megatron", "llama"),
        "megatron-merge {megatron} {out} --tp 4 --pp 2 --config {llama}",
        (_merge_by_hand("megatron", "llama", "--tp 4 --pp 2"),),
        same="{llama}",
        cold=True,
        tmpfs=True,
        budgets=True,
    ),
    Case(
        "verify",
        "verify-roundtrip of Megatron TP 4 PP 2 and the model made of it",
        ("megatron", "llama"),
        "verify-roundtrip {megatron} {llama} --tp 4 --pp 2 --no-certificate",
        limit=None,
        against="read",
        note="Both sides are read and compared, element by element.",
        cold=True,
    ),
    Case("help", "ckptconv --help", (), "--help", limit=None, against="nothing"),
    Case(
        "inspect",
        "ckptconv inspect of Megatron TP 4 PP 2",
        ("megatron",),
        "inspect {megatron}",
        limit=None,
        against="nothing",
    ),
    Case(
        "megatron-split",
        "Hugging Face to Megatron TP 4 PP 2",
        ("llama",),
        "megatron-split {llama} {out} --tp 4 --pp 2",
        (
            Tool(
                "load_file, slice, torch.save",
                (f"python {_HAND}/megatron_split.py {{llama}} {{theirs}} --tp 4 --pp 2",),
            ),
        ),
    ),
    Case(
        "torch_dist-to-hf",
        "Megatron torch_dist to Hugging Face",
        ("torch_dist", "llama"),
        "convert {torch_dist} {out} --to hf --config {llama}",
        (_dcp_to_torch("{torch_dist}/iter_0000001", same=""),),
        same="{llama}",
        note="`dcp_to_torch_save` only loads and saves everything as it is, in Megatron's names and packing.",
    ),
    Case(
        "hf-to-torch_dist",
        "Hugging Face to Megatron torch_dist",
        ("llama",),
        "convert {llama} {out} --to torch_dist",
        (Tool("load_file + dcp.save", (f"python {_HAND}/dcp_save.py {{llama}} {{theirs}}",), same=""),),
        note="`dcp.save` only saves the same bytes, in Hugging Face's names and packing.",
    ),
    Case(
        "dcp-to-hf",
        "torch.distributed.checkpoint to safetensors",
        ("dcp", "llama"),
        "convert {dcp} {out} --to hf --config {llama}",
        (_dcp_to_torch("{dcp}", f"python {_HAND}/plain.py {{theirs}}.pt {{theirs}}", same="{theirs} {out}"),),
        same="{llama}",
    ),
    Case(
        "mindspore-to-hf",
        "MindFormers .ckpt to Hugging Face",
        ("mindspore", "llama"),
        "mindformers-to-hf {mindspore} {out} --config {llama}",
        (
            Tool(
                "load_checkpoint + save_file",
                (f"mindspore-python {_HAND}/mindformers.py {{mindspore}}/checkpoint.ckpt {{theirs}}",),
            ),
        ),
        same="{llama}",
    ),
    Case(
        "hf-to-mindspore",
        "Hugging Face to MindFormers .ckpt",
        ("llama",),
        "hf-to-mindformers {llama} {out}",
        (
            Tool(
                "load_file + save_checkpoint",
                (f"mindspore-python {_HAND}/mindformers.py {{llama}} {{theirs}}",),
                checker="mindspore-python",
            ),
        ),
    ),
    Case(
        "safetensors-to-bin",
        "safetensors to pytorch_model.bin",
        ("llama",),
        "convert {llama} {out} --to hf --format bin",
        (_plain("load_file + torch.save", "llama", "--to bin"),),
    ),
    Case(
        "bin-to-safetensors",
        "pytorch_model.bin to safetensors",
        ("bin", "llama"),
        "convert {bin} {out} --to hf",
        (_plain("torch.load + save_file", "bin"),),
        same="{llama}",
    ),
    Case(
        "fp32-to-bf16",
        "safetensors from fp32 to bf16",
        ("llama-fp32",),
        "convert {llama-fp32} {out} --to hf --dtype bfloat16",
        (_plain("load_file, to(), save_file", "llama-fp32", "--dtype bfloat16"),),
        cold=True,
        tmpfs=True,
    ),
    Case(
        "bf16-to-fp32",
        "safetensors from bf16 to fp32",
        ("llama-half",),
        "convert {llama-half} {out} --to hf --dtype float32",
        (_plain("load_file, to(), save_file", "llama-half", "--dtype float32"),),
        tmpfs=True,
    ),
    Case(
        "fp8-to-bf16",
        "safetensors from FP8 in blocks of 128 x 128 to bf16",
        ("fp8",),
        "convert {fp8} {out} --to hf --dtype bfloat16",
        (Tool("load_file, scale, save_file", (f"python {_HAND}/fp8_cast.py {{fp8}} {{theirs}}",)),),
        limit=1.25,
        note="Half as many bytes are read as written; each code is looked up and scaled on the way.",
        cold=True,
        tmpfs=True,
    ),
    Case(
        "many-tensors",
        "18,867 tensors (Qwen3-30B-A3B's names, smaller) to Megatron TP 2 EP 8",
        ("experts",),
        "megatron-split {experts} {out} --tp 2 --ep 8",
        limit=None,
        note="What is measured is planning: a rank's file holds thousands of small tensors.",
    ),
    Case(
        "moe",
        "Mixture of experts, Megatron EP 4 to Hugging Face",
        ("megatron-moe", "moe"),
        "megatron-merge {megatron-moe} {out} --ep 4 --config {moe}",
        (_merge_by_hand("megatron-moe", "moe", "--ep 4"),),
        same="{moe}",
        limit=1.3,
        tmpfs=True,
        note="A Qwen3-MoE, nearly all of it experts; the dense weights lie in all four ranks, compared.",
    ),
    Case(
        "rows",
        "Row-parallel, Megatron TP 8 to Hugging Face",
        ("megatron-rows", "rows"),
        "megatron-merge {megatron-rows} {out} --tp 8 --config {rows}",
        (_merge_by_hand("megatron-rows", "rows", "--tp 8"),),
        same="{rows}",
        limit=1.3,
        tmpfs=True,
        note="A Llama with many heads and a narrow MLP: nearly half of each layer is cut along its rows.",
    ),
)
