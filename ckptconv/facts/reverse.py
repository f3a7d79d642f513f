"""Write the training arguments that a model's config.json stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from ckptconv.errors import PlanError, UsageError
from ckptconv.facts.reverse_layers import (
    write_activation,
    write_attention,
    write_delta_nets,
    write_experts,
    write_norms,
)
from ckptconv.facts.reverse_rope import write_positions
from ckptconv.facts.value import Facts
from ckptconv.facts.wordless import cannot
from ckptconv.records import dataclass

__all__ = ["ArgumentsDialect", "Form", "arguments_from"]

ArgumentsDialect = Literal["megatron", "mindspeed"]


class _Said(dict[str, Any]):
    """Hold what a config says; what it does not say is an error by name."""

    def __missing__(self, key: str) -> Any:
        raise PlanError(f"config.json does not say {key}", hint="give a complete --config")


@dataclass(frozen=True, slots=True)
class Form:
    """Say in which form a model is written that arguments are made for.

    Attributes:
        dialect: Whose arguments.
        tp: Tensor parallel size; likewise ``pp``, ``vpp`` (virtual stages each), ``ep``, and ``etp``, which
            is ``tp`` if not given.
        divisible: ``make_vocab_size_divisible_by``.
        padded_vocab: Rows of the embedding with padding; the rule of Megatron-LM if not given.
        dtype: Dtype of the weights; the config's if not given.
        implementation: ``transformer_engine`` or ``local``.
        experts_form: How experts are stored.
        mtp: Layers for multi-token prediction that are written; the config's number if not given.
        layers_per_stage: Layers of every stage (MindSpeed).
        noop_layers: Positions of empty layers (MindSpeed).
        schedule: Pipeline schedule with an order of its own: ``dualpipev`` (MindSpeed).
        mla_mm_split: Up-projections of latent attention in two (MindSpeed).
        moe_tp_extend_ep: Experts spread over tensor parallel ranks too (MindSpeed).
    """

    dialect: ArgumentsDialect
    tp: int = 1
    pp: int = 1
    vpp: int | None = None
    ep: int = 1
    etp: int | None = None
    divisible: int = 128
    padded_vocab: int | None = None
    dtype: str | None = None
    implementation: str = "transformer_engine"
    experts_form: Literal["sequential", "grouped", "legacy_grouped"] = "sequential"
    mtp: int | None = None
    layers_per_stage: Sequence[int] | None = None
    noop_layers: Sequence[int] = ()
    schedule: str | None = None
    mla_mm_split: bool = False
    moe_tp_extend_ep: bool = False


def arguments_from(facts: Facts, form: Form, gaps: list[str] | None = None) -> dict[str, Any]:
    """Return arguments with which the framework loads the model and trains on.

    They hold what Megatron-LM's ``load_args_from_checkpoint`` reads (core_v0.16.1,
    ``training/checkpointing.py``) and what tells a reader the rest, under the names of old and new releases
    where these differ. Dtypes are strings (``params_dtype`` is to be stored as ``torch.bfloat16``).

    Args:
        facts: What is known of the model.
        form: In which form it is written.
        gaps: Takes what cannot be said, a message each; without it that is an error.

    Raises:
        PlanError: if a fact is lacking, or the dialect's arguments cannot say it.
        UsageError: if MindSpeed's layouts are asked of Megatron.
    """
    own = (form.layers_per_stage, form.noop_layers, form.schedule, form.mla_mm_split, form.moe_tp_extend_ep)
    mindspeed = form.dialect == "mindspeed"
    if not mindspeed and any(own):
        raise UsageError("this layout exists in MindSpeed-LLM only", hint="write the mindspeed dialect")
    v = _Said({name: fact.value for name, fact in facts.items()})
    lacking = [n for n in ("vocab", "hidden", "layers", "heads", "inner") if v.get(n) is None]
    if lacking and gaps is not None:
        gaps += [f"config.json does not say {n}" for n in lacking]
        v |= dict.fromkeys(lacking)
    elif lacking:
        raise PlanError(f"config.json does not say {', '.join(lacking)}", hint="give a complete --config")
    args = _sizes(v, form) | _layout(v, form)
    sections = (write_norms, write_activation, write_attention, write_delta_nets, write_positions)
    writing = [partial(write, v, mindspeed) for write in sections]
    for write in (*writing, partial(write_experts, v, mindspeed, form.experts_form)):
        try:
            args |= write()
        except PlanError as e:
            if gaps is None:
                raise
            gaps.append(e.message)
    args["moe_apply_probs_on_input"] = bool(v.get("moe_apply_probs_on_input"))
    if gaps is not None and not mindspeed and v.get("router_bias") and v.get("score_function") == "softmax":
        # megatron-core 0.19, ``transformer_config.py``: a bias goes with sigmoid alone.
        gaps.append(cannot("a bias on experts that softmax chooses").message)
    if mindspeed:
        counts, noop = form.layers_per_stage, form.noop_layers
        args |= {
            "num_layer_list": ",".join(map(str, counts)) if counts else None,
            "noop_layers": ",".join(map(str, sorted(noop))) if noop else None,
            "schedules_method": form.schedule,
            "mla_mm_split": form.mla_mm_split,
            "moe_tp_extend_ep": form.moe_tp_extend_ep,
        }
    return args


def _sizes(v: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """Return what the arguments say of the model's sizes and dtype."""
    kind = form.dtype or v.get("dtype") or "float32"
    layers = v["layers"] + len(form.noop_layers)
    unit = form.divisible * form.tp
    return {
        "num_layers": layers,
        "encoder_num_layers": layers,
        "hidden_size": v["hidden"],
        "ffn_hidden_size": v["inner"],
        "num_attention_heads": v["heads"],
        "seq_length": v.get("positions"),
        "encoder_seq_length": v.get("positions"),
        "max_position_embeddings": v.get("positions"),
        "vocab_size": v["vocab"],
        "padded_vocab_size": form.padded_vocab or -(-v["vocab"] // unit) * unit,
        "make_vocab_size_divisible_by": form.divisible,
        "params_dtype": kind,
        "bf16": kind == "bfloat16",
        "fp16": kind == "float16",
        "untie_embeddings_and_output_weights": not v.get("tied", False),
    }


def _layout(v: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """Return what the arguments say of ranks and files."""
    layers, stages = v["layers"] + len(form.noop_layers), form.pp * (form.vpp or 1)
    even = form.vpp and layers % stages == 0
    return {
        "tensor_model_parallel_size": form.tp,
        "pipeline_model_parallel_size": form.pp,
        "transformer_pipeline_model_parallel_size": form.pp,
        "virtual_pipeline_model_parallel_size": form.vpp,
        "num_layers_per_virtual_pipeline_stage": layers // stages if even else None,
        "expert_model_parallel_size": form.ep,
        "expert_tensor_parallel_size": form.etp or form.tp,
        "context_parallel_size": 1,
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "pipeline_model_parallel_layout": None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "sequence_parallel": form.tp > 1 and bool(v.get("experts")),
        "transformer_impl": form.implementation,
        "use_legacy_models": False,
        "use_mcore_models": True,
        "mtp_num_layers": (v.get("mtp") if form.mtp is None else form.mtp) or None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "ckpt_format": "torch",
        "spec": None,
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
