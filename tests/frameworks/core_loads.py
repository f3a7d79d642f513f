#!/usr/bin/env python
"""Load ranks that ckptconv wrote into megatron-core, by the arguments written with them, and ask the model.

    PYTHONPATH=CORE python core_loads.py RUN TP PP EP ETP ANSWER

The model is built as Megatron-LM's ``gpt_builders.py`` does, of the local spec: every name on every rank must
be there, and no other. ``ANSWER`` takes what the last stage says to `megatron_recipe.prompt`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from core_release import stand_in
from megatron_recipe import Layout, ask, load, on_ranks

# What needs a GPU's kernels, or makes an answer random.
_OFF = (
    *("bias_dropout_fusion", "bias_swiglu_fusion", "masked_softmax_fusion", "gradient_accumulation_fusion"),
    *("persist_layer_norm", "apply_rope_fusion", "moe_permute_fusion", "moe_grouped_gemm"),
)


def model_of(args: Any) -> Any:
    """Build this rank's model from training arguments."""
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec
    from megatron.training.arguments import core_transformer_config_from_args

    for name in _OFF:
        setattr(args, name, False)
    args.use_cpu_initialization, args.hidden_dropout, args.attention_dropout = True, 0.0, 0.0
    args.moe_token_dispatcher_type, args.no_persist_layer_norm = "allgather", True
    args.sequence_parallel = False  # says how activations lie, not weights; torch's norms cannot
    config = core_transformer_config_from_args(args)
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization=args.normalization)
    ahead = {}
    if args.mtp_num_layers:
        ahead["mtp_block_spec"] = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False)
    return (
        GPTModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=args.padded_vocab_size,
            max_sequence_length=args.max_position_embeddings,
            pre_process=mpu.is_pipeline_first_stage(),
            post_process=mpu.is_pipeline_last_stage(),
            parallel_output=False,
            share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
            position_embedding_type=args.position_embedding_type,
            rotary_percent=args.rotary_percent,
            rotary_base=args.rotary_base,
            rope_scaling=args.use_rope_scaling,
            rope_scaling_factor=args.rope_scaling_factor,
            seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
            **ahead,
        )
        .to(args.params_dtype)
        .eval()
    )


def stand_in_for_attention() -> None:
    """Let masks of windows lie on the CPU, and core's own attention have values as wide as latent ones."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    ones, first = torch.ones, DotProductAttention.__init__

    def on_cpu(*size: Any, **options: Any) -> torch.Tensor:
        return ones(*size, **{**options, "device": "cpu"})

    def made(
        self: Any, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **more: Any
    ) -> None:
        first(self, *args, **more)
        if v_channels is not None:
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition

    torch.ones, DotProductAttention.__init__ = on_cpu, made


def completed(written: argparse.Namespace) -> argparse.Namespace:
    """Return training arguments with Megatron-LM's defaults for what a checkpoint does not say."""
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return argparse.Namespace(**{**vars(parser.parse_args([])), **vars(written)})


def main(run: Path, tp: int, pp: int, ep: int, etp: int, answer: Path) -> None:
    """Load every rank, and save what the model says."""
    layout = Layout(tp=tp, pp=pp, ep=ep, etp=etp)
    first = next(iter(sorted(run.glob("*/mp_rank_*/model_optim_rng.pt"))))

    def task() -> torch.Tensor | None:
        stand_in_for_attention()
        args = completed(torch.load(first, weights_only=False)["args"])
        chunks = [model_of(args)]
        load(chunks, layout, run)
        return ask(chunks, layout)

    torch.save(on_ranks(layout, task), answer)


if __name__ == "__main__":
    stand_in()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:6]), Path(sys.argv[6]))
