"""Write the overviews of the Chinese page; the numbers are those of the English one."""

from __future__ import annotations

from collections.abc import Sequence

from report import overview
from results import Results

__all__ = ["chinese"]

_COLUMNS = (
    "转换", "写出 GB", "2 线程，秒", "1 线程，秒", "`cp` + `sync`，秒", "相对 `cp` + `sync`",  # noqa: RUF001
    "其他工具，秒", "是我们的几倍", "内存峰值 MB", "其他工具的峰值 MB",  # noqa: RUF001
)  # fmt: skip
_TITLES = {
    "zero3": "DeepSpeed ZeRO-3 转 safetensors，fp32",  # noqa: RUF001
    "zero3-bf16": "DeepSpeed ZeRO-3 转 safetensors，舍入为 bf16",  # noqa: RUF001
    "zero2": "DeepSpeed ZeRO-2 转 safetensors，fp32",  # noqa: RUF001
    "megatron-merge": "Megatron TP 4 PP 2 转 Hugging Face",
    "verify": "Megatron TP 4 PP 2 与转换结果的 verify-roundtrip",
    "megatron-split": "Hugging Face 转 Megatron TP 4 PP 2",
    "torch_dist-to-hf": "Megatron torch_dist 转 Hugging Face",
    "hf-to-torch_dist": "Hugging Face 转 Megatron torch_dist",
    "dcp-to-hf": "torch.distributed.checkpoint 转 safetensors",
    "mindspore-to-hf": "MindFormers .ckpt 转 Hugging Face",
    "hf-to-mindspore": "Hugging Face 转 MindFormers .ckpt",
    "safetensors-to-bin": "safetensors 转 pytorch_model.bin",
    "bin-to-safetensors": "pytorch_model.bin 转 safetensors",
    "fp32-to-bf16": "safetensors 从 fp32 到 bf16",
    "bf16-to-fp32": "safetensors 从 bf16 到 fp32",
    "moe": "混合专家，Megatron EP 4 转 Hugging Face",  # noqa: RUF001
    "rows": "按行切分，Megatron TP 8 转 Hugging Face",  # noqa: RUF001
}
_FACTS = {
    "date": "日期",
    "processor": "处理器",
    "memory": "内存",
    "file system": "文件系统",
    "system": "系统",
    "versions": "版本",
    "DeepSpeed's tool": "DeepSpeed 的工具",
}


def chinese(found: Sequence[Results], plots: Sequence[str]) -> str:
    """Return machine, plots and overviews.

    Args:
        found: Results, the largest size last.
        plots: Paths of images.
    """
    machine = found[-1].machine
    lines = ["| | |", "|---|---|", *(f"| {_FACTS.get(k, k)} | {v} |" for k, v in machine.items()), ""]
    lines += [f"![各项转换的用时与内存]({path})\n" for path in plots]
    for results in reversed(found):
        lines += [f"### 总览，{results.label()}", "", *overview(results, _COLUMNS, _TITLES), ""]  # noqa: RUF001
    return "\n".join(lines)
