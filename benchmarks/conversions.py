"""Say what is measured: a table of conversions, and of what they are compared with.

A new conversion is one more `Case`; what it starts from is one more `Source` in sources.py, if none will do.
Commands are written as one types them. In braces stand the folders of sources by name, ``{out}`` for what our
command writes, ``{theirs}`` for what the other tool writes, ``{size}`` and ``{half}`` for gigabytes. The
first word is an interpreter: ``ckptconv``, ``python``, ``deepspeed-python``, ``mindspore-python`` or
``peers-python``, which has Megatron-Bridge, verl and transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from sources import HAND

__all__ = ["CASES", "LARGE", "Case", "Tool"]

LARGE = 2.0
"""Gigabytes beyond which deepspeed does not make ZeRO files, and sources are not kept for later cases."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Another way to do a conversion.

    Attributes:
        name: What the tables call it.
        steps: Commands, one after the other; all count.
        same: Arguments of same_tensors.py that prove it wrote the same; empty where names or packing differ.
        checker: The interpreter that compares.
        large: Whether it is run beyond `LARGE` gigabytes.
        hold: Whether memory is held for it, see pages.py; one that asks how much is free would refuse.
    """

    name: str
    steps: tuple[str, ...]
    same: str = "{theirs} {out}"
    checker: str = "python"
    large: bool = True
    hold: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """A conversion.

    Attributes:
        name: Short, for ``--cases`` and the plots.
        title: Heading of its table.
        needs: Sources by name; the first is what is read.
        command: Ours, without ``--workers``.
        tools: Other ways.
        same: What our output must equal, tensor by tensor; empty where no safetensors come out.
        limit: Target: at most so many times as long as the baseline; None: no target.
        against: The baseline: ``copy`` the output and sync it, ``read`` all ``needs``, or ``nothing``.
        note: A sentence below the heading.
        cold: Also from an empty page cache, at every size; at up to `LARGE` gigabytes all are, once.
        scaling: Two workers are held against one, on the disk and in memory, and against two plain copies.
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
    scaling: bool = False
    budgets: bool = False


def _zero_to_fp32(source: str) -> Tool:
    command = (
        f"deepspeed-python -m deepspeed.utils.zero_to_fp32 {{{source}}}/ckpt {{theirs}} --safe_serialization"
    )
    return Tool("zero_to_fp32.py", (command,))


def _merge_by_hand(source: str, config: str, layout: str) -> Tool:
    command = f"python {HAND}/megatron_merge.py {{{source}}} {{theirs}} --config {{{config}}} {layout}"
    return Tool("torch.load, cat, save_file", (command,), large=False)


def _transformers(source: str, flags: str) -> Tool:
    command = f"peers-python {HAND}/resave.py {{{source}}} {{theirs}} {flags}"
    return Tool("transformers", (command,))


def _plain(name: str, source: str, flags: str = "") -> Tool:
    return Tool(name, (f"python {HAND}/plain.py {{{source}}} {{theirs}} {flags}",), large=False)


def _dcp_to_torch(folder: str, *more: str, same: str) -> Tool:
    convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    return Tool(
        "dcp_to_torch_save" + (" + save_file" if more else ""),
        (f"{convert} {folder} {{theirs}}.pt", *more),
        same,
    )


_VERL = "peers-python -m verl.model_merger merge --backend fsdp"
CASES = (
    Case(
        "zero3",
        "DeepSpeed ZeRO-3 to safetensors, fp32",
        ("zero3",),
        "deepspeed-to-hf {zero3}/ckpt {out} --config {zero3}",
        (_zero_to_fp32("zero3"),),
        cold=True,
        scaling=True,
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
        scaling=True,
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
                (f"python {HAND}/megatron_split.py {{llama}} {{theirs}} --tp 4 --pp 2",),
                large=False,
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
        "bridge-to-hf",
        "Megatron-Bridge's torch_dist to Hugging Face",
        ("bridge", "llama"),
        "convert {bridge} {out} --to hf --config {llama}",
        (
            Tool(
                "Megatron-Bridge",
                (f"peers-python {HAND}/bridge.py export {{bridge}} {{theirs}} --config {{llama}}",),
            ),
        ),
        same="{llama}",
        note="What Megatron-Bridge's own `import_ckpt` wrote.",
    ),
    Case(
        "hf-to-torch_dist",
        "Hugging Face to Megatron torch_dist",
        ("llama",),
        "convert {llama} {out} --to torch_dist",
        (
            Tool("Megatron-Bridge", (f"peers-python {HAND}/bridge.py import {{llama}} {{theirs}}",)),
            Tool(
                "load_file + dcp.save",
                (f"python {HAND}/dcp_save.py {{llama}} {{theirs}}",),
                same="",
                large=False,
            ),
        ),
        note="`dcp.save` only saves the same bytes, in Hugging Face's names and packing.",
    ),
    Case(
        "dcp-to-hf",
        "torch.distributed.checkpoint to safetensors",
        ("dcp", "llama"),
        "convert {dcp} {out} --to hf --config {llama}",
        (_dcp_to_torch("{dcp}", f"python {HAND}/plain.py {{theirs}}.pt {{theirs}}", same="{theirs} {out}"),),
        same="{llama}",
    ),
    Case(
        "verl-to-hf",
        "verl's FSDP ranks, fp32, to safetensors, bf16",
        ("verl",),
        "convert {verl} {out} --to hf --dtype bfloat16",
        (
            Tool(
                "verl.model_merger",
                (f"{_VERL} --local_dir {{verl}}/actor --target_dir {{theirs}}",),
            ),
        ),
        note="verl's merger always rounds to bf16.",
    ),
    Case(
        "mindspore-to-hf",
        "MindFormers .ckpt to Hugging Face",
        ("mindspore", "llama"),
        "mindformers-to-hf {mindspore} {out} --config {llama}",
        (
            Tool(
                "load_checkpoint + save_file",
                (f"mindspore-python {HAND}/mindformers.py {{mindspore}}/checkpoint.ckpt {{theirs}}",),
                hold=False,
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
                (f"mindspore-python {HAND}/mindformers.py {{llama}} {{theirs}}",),
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
        (_plain("torch.load + save_file", "bin"), _transformers("bin", "")),
        same="{llama}",
    ),
    Case(
        "reshard",
        "safetensors in shards of 500 MB",
        ("llama",),
        "convert {llama} {out} --to hf --max-shard-size 500MB",
        (_transformers("llama", "--shard 500MB"),),
        same="{llama}",
    ),
    Case(
        "adapter",
        "A LoRA adapter of PEFT merged into its model",
        ("llama", "adapter"),
        "convert {llama} {out} --to hf --adapter {adapter}",
        (
            Tool(
                "peft, merge_and_unload",
                (f"peers-python {HAND}/merge_adapter.py {{llama}} {{adapter}} {{theirs}}",),
                large=False,
            ),
        ),
        limit=None,
        note="Rank 16 on every projection: what is measured is their products.",
    ),
    Case(
        "fp32-to-bf16",
        "safetensors from fp32 to bf16",
        ("llama-fp32",),
        "convert {llama-fp32} {out} --to hf --dtype bfloat16",
        (
            _plain("load_file, to(), save_file", "llama-fp32", "--dtype bfloat16"),
            _transformers("llama-fp32", "--dtype bfloat16"),
        ),
        cold=True,
        scaling=True,
    ),
    Case(
        "bf16-to-fp32",
        "safetensors from bf16 to fp32",
        ("llama-half",),
        "convert {llama-half} {out} --to hf --dtype float32",
        (
            _plain("load_file, to(), save_file", "llama-half", "--dtype float32"),
            _transformers("llama-half", "--dtype float32"),
        ),
        scaling=True,
    ),
    Case(
        "fp8-to-bf16",
        "safetensors from FP8 in blocks of 128 x 128 to bf16",
        ("fp8",),
        "convert {fp8} {out} --to hf --dtype bfloat16",
        (
            Tool("fp8_cast_bf16, in torch", (f"python {HAND}/fp8_cast.py {{fp8}} {{theirs}}",)),
            _transformers("fp8", "--dequantize"),
        ),
        limit=1.25,
        note="Half as many bytes are read as written; each code is looked up and scaled on the way.",
        cold=True,
        scaling=True,
    ),
    Case(
        "many-tensors",
        "18,867 tensors (Qwen3-30B-A3B's names, smaller) to Megatron TP 2 EP 8",
        ("experts",),
        "megatron-split {experts} {out} --tp 2 --ep 8",
        limit=1.05,
        note="What is measured is planning: a rank's file holds thousands of small tensors.",
    ),
    Case(
        "many-tensors-merge",
        "The same, back to Hugging Face",
        ("megatron-experts", "experts"),
        "megatron-merge {megatron-experts} {out} --tp 2 --ep 8 --config {experts}",
        same="{experts}",
        limit=1.05,
    ),
    Case(
        "moe",
        "Mixture of experts, Megatron EP 4 to Hugging Face",
        ("megatron-moe", "moe"),
        "megatron-merge {megatron-moe} {out} --ep 4 --config {moe}",
        (_merge_by_hand("megatron-moe", "moe", "--ep 4"),),
        same="{moe}",
        limit=1.3,
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
        scaling=True,
        note="A Llama with many heads and a narrow MLP: nearly half of each layer is cut along its rows.",
    ),
)
