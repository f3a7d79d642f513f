"""What the Chinese page's tables say; the numbers are those of the English one."""

from __future__ import annotations

from words import Words

__all__ = ["CHINESE"]

CHINESE = Words(
    language="zh",
    plots=("各项转换的用时，为 cp 加 sync 的几倍", "与常用工具相比的用时与内存峰值"),  # noqa: RUF001
    copy_heading="## 与 `cp` 相比，{}",  # noqa: RUF001
    copy_columns=(
        "转换", "写出 GB", "ckptconv，秒", "`cp` + `sync`，秒",  # noqa: RUF001
        "倍数", "只做计划，秒", "内存峰值 MB", "1 GB 时的倍数",  # noqa: RUF001
    ),
    tool_heading="## 与常用工具相比",
    tool_columns=(
        "转换", "工具", "1 GB：秒，它 : 我们", "是我们的几倍", "峰值 MB，它 : 我们",  # noqa: RUF001
        "8 GB：秒，它 : 我们", "是我们的几倍", "峰值 MB，它 : 我们",  # noqa: RUF001
    ),
    scaling_heading="## 两个线程比一个快几倍，{}",  # noqa: RUF001
    scaling_columns=("转换", "写到磁盘", "纯复制：两个 `dd` 比一个", "写到内存", "纯复制：两个 `dd` 比一个"),  # noqa: RUF001
    missed_heading="## 目标",
    missed_columns=("目标", "未达到", "测得的原因"),
    aims={
        "speed": "{0}，不超过 `cp` + `sync` 的 {1} 倍",  # noqa: RUF001
        "disk": "{0}，写到磁盘时两个线程比一个快 1.5 倍，或不低于两个纯复制",  # noqa: RUF001
        "memory": "{0}，写到内存时两个线程也如此",  # noqa: RUF001
        "peak": "{0}，峰值不超过 150 MB + `--max-memory`",  # noqa: RUF001
    },
    limits=("1.15", "1（FP8 1.25，专家与按行 1.3，大量张量 1.05）"),  # noqa: RUF001
    absent="未测：{}",  # noqa: RUF001
    read="只读",
    elsewhere="‡ 在另一台机器上测得：{}。",  # noqa: RUF001
    not_held="† 测量时没有替程序占住内存：`cp` 可能也在等宿主机。",  # noqa: RUF001
    titles={
        "zero3": "DeepSpeed ZeRO-3 转 safetensors，fp32",  # noqa: RUF001
        "zero3-bf16": "DeepSpeed ZeRO-3 转 safetensors，舍入为 bf16",  # noqa: RUF001
        "zero2": "DeepSpeed ZeRO-2 转 safetensors，fp32",  # noqa: RUF001
        "megatron-merge": "Megatron TP 4 PP 2 转 Hugging Face",
        "verify": "Megatron TP 4 PP 2 与转换结果的 verify-roundtrip",
        "inspect": "ckptconv inspect（Megatron TP 4 PP 2）",  # noqa: RUF001
        "megatron-split": "Hugging Face 转 Megatron TP 4 PP 2",
        "torch_dist-to-hf": "Megatron torch_dist 转 Hugging Face",
        "bridge-to-hf": "Megatron-Bridge 的 torch_dist 转 Hugging Face",
        "hf-to-torch_dist": "Hugging Face 转 Megatron torch_dist",
        "dcp-to-hf": "torch.distributed.checkpoint 转 safetensors",
        "verl-to-hf": "verl 的 FSDP 各 rank（fp32）转 safetensors（bf16）",  # noqa: RUF001
        "mindspore-to-hf": "MindFormers .ckpt 转 Hugging Face",
        "hf-to-mindspore": "Hugging Face 转 MindFormers .ckpt",
        "safetensors-to-bin": "safetensors 转 pytorch_model.bin",
        "bin-to-safetensors": "pytorch_model.bin 转 safetensors",
        "reshard": "safetensors 重新分为 500 MB 的分片",
        "adapter": "把 PEFT 的 LoRA 适配器合并到模型",
        "fp32-to-bf16": "safetensors 从 fp32 到 bf16",
        "bf16-to-fp32": "safetensors 从 bf16 到 fp32",
        "fp8-to-bf16": "safetensors 从 128 x 128 分块的 FP8 到 bf16",
        "many-tensors": "18,867 个张量（Qwen3-30B-A3B 的名字，尺寸较小）转 Megatron TP 2 EP 8",  # noqa: RUF001
        "many-tensors-merge": "同上，转回 Hugging Face",  # noqa: RUF001
        "moe": "混合专家，Megatron EP 4 转 Hugging Face",  # noqa: RUF001
        "rows": "按行切分，Megatron TP 8 转 Hugging Face",  # noqa: RUF001
    },
    facts={
        "date": "日期",
        "processor": "处理器",
        "memory": "内存",
        "file system": "文件系统",
        "system": "系统",
        "versions": "版本",
        "DeepSpeed's tool": "DeepSpeed 的工具",
        "peers": "其他工具",
    },
    stop="。",
    colon="：",  # noqa: RUF001
    join="；",  # noqa: RUF001
)  # fmt: skip
