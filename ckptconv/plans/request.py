"""Hold what a user may ask of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

from ckptconv.plans.checkpoint import Weights

__all__ = ["ConvertOptions"]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Say what a conversion is to write; the defaults are the command line's.

    Attributes:
        to: The target; ``hf`` or ``megatron``.
        dtype: ``keep`` or the dtype all floating-point tensors are rounded to.
        format: ``safetensors``, ``bin``, or for MindFormers ``ckpt``; None is the target's default.
        max_shard_size: The most bytes of weights per file, such as ``5GB``.
        weights: fp32 masters or the 16-bit weights the model ran with; None is the producer's default.
        tag: DeepSpeed tag instead of the one in ``latest``.
        config: Folder or hub id to take config.json from, instead of beside the checkpoint.
        tokenizer: Folder or hub id to take tokenizer files from.
        family: Name of the architecture's table instead of the config's ``model_type``.
        assets: Whether config, tokenizer and the like are written.
        drop: Glob patterns of tensors to leave out.
        rename: A file of ``old = new`` rules.
        lora: What becomes of LoRA adapters: ``merge`` into the weights, or ``adapter`` for a PEFT adapter
            alone; None passes them through.
        lora_alpha: Their alpha, where no adapter_config.json says it.
        lora_r: Their rank, to be checked.
        adapter: Folder of a PEFT adapter to merge into the weights.
        source_sizes: Parallel sizes of the source (``tp``, ``pp``, ``vpp``, ``ep``, ``etp``), to check them
            or to state those it does not.
        iteration: Megatron's iteration to read instead of the newest; of a target, the one to write.
        vocab_size: True rows of the vocabulary, where neither config nor arguments say them.
        replicas: Whether copies are compared ``all``, by a ``sample`` of each, or not at all (``first``);
            None compares all, or a sample where they outweigh the output.
        sizes: Parallel sizes of the target.
        layers_per_stage: Layers of each pipeline stage (or chunk) of the target.
        noop_layers: Positions of the target's layers without weights.
        schedule: ``dualpipev`` folds the pipeline.
        dialect: Whose names the target has.
        experts: ``sequential``, ``grouped`` or ``legacy-grouped``.
        mla: ``split`` for MindSpeed's split latent projections.
        extend_ep: Spread experts over tensor parallel ranks as well.
        vocab_divisible: What the padded vocabulary of a tensor parallel rank is a multiple of.
        like: A checkpoint whose layout, names, dtypes and arguments the target takes.
        copy_code: Copy the ``*.py`` files beside the config.
        yaml: YAML of the MindFormers run, instead of the one beside the checkpoint.
        strategy: MindSpore's strategy file or folder: of a target of MindFormers, else of the source.
        source_strategy: That of the source.
        qkv_layout: How a fused query, key and value lies in MindFormers' files, of the target if it is one.
        mlp_layout: How a fused gate and up projection lies there.
        qkv_concat: Write them fused.
        dequantize: Write the values of quantised weights to Hugging Face; other targets always have values.
        check: Compare MindSpore's files with the checksums they hold, before anything else.
    """

    to: str = "hf"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    format: Literal["safetensors", "bin", "ckpt"] | None = None
    max_shard_size: str = "5GB"
    weights: Weights | None = None
    tag: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    family: str | None = None
    assets: bool = True
    drop: tuple[str, ...] = ()
    rename: str | PathLike[str] | None = None
    lora: Literal["merge", "adapter"] | None = None
    lora_alpha: float | None = None
    lora_r: int | None = None
    adapter: str | PathLike[str] | None = None
    source_sizes: Mapping[str, int] = field(default_factory=dict)
    iteration: int | None = None
    vocab_size: int | None = None
    replicas: Literal["all", "sample", "first"] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    layers_per_stage: tuple[int, ...] = ()
    noop_layers: tuple[int, ...] = ()
    schedule: Literal["dualpipev"] | None = None
    dialect: str | None = None
    experts: Literal["sequential", "grouped", "legacy-grouped"] | None = None
    mla: Literal["fused", "split"] | None = None
    extend_ep: bool = False
    vocab_divisible: int | None = None
    like: str | PathLike[str] | None = None
    copy_code: bool = False
    yaml: Path | None = None
    strategy: Path | None = None
    source_strategy: Path | None = None
    qkv_layout: Literal["grouped", "contiguous"] | None = None
    mlp_layout: Literal["interleaved", "contiguous"] | None = None
    qkv_concat: bool = False
    dequantize: bool = False
    check: bool = False
