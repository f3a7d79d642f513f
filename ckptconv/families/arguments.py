"""Write the training arguments that a model's config.json stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ckptconv.errors import PlanError, UsageError
from ckptconv.facts.reverse_layers import write_activation, write_attention, write_experts, write_norms
from ckptconv.facts.reverse_rope import write_positions
from ckptconv.families import Config, Family
from ckptconv.families.config import facts_of

__all__ = ["ArgumentsDialect", "arguments_from"]

ArgumentsDialect = Literal["megatron", "mindspeed"]


class _Said(dict[str, Any]):
    """Hold what a config says; what it does not say is an error by name."""

    def __missing__(self, key: str) -> Any:
        raise PlanError(f"config.json does not say {key}", hint="give a complete --config")


def arguments_from(
    config: Config,
    family: Family,
    *,
    dialect: ArgumentsDialect,
    tp: int = 1,
    pp: int = 1,
    vpp: int | None = None,
    ep: int = 1,
    etp: int | None = None,
    divisible: int = 128,
    padded_vocab: int | None = None,
    dtype: str | None = None,
    seq_length: int | None = None,
    implementation: str = "transformer_engine",
    experts_form: Literal["sequential", "grouped", "legacy_grouped"] = "sequential",
    mtp: int | None = None,
    first_stage: int | None = None,
    last_stage: int | None = None,
    layers_per_stage: Sequence[int] | None = None,
    noop_layers: Sequence[int] = (),
    schedule: str | None = None,
    mla_mm_split: bool = False,
    moe_tp_extend_ep: bool = False,
) -> dict[str, Any]:
    """Return arguments with which the framework loads the model and trains on.

    They hold what Megatron-LM's ``load_args_from_checkpoint`` reads (core_v0.16.1,
    ``training/checkpointing.py``) and what tells a reader the rest, under the names of old and new releases
    where these differ. Dtypes are strings (``params_dtype`` is to be stored as ``torch.bfloat16``).

    Args:
        config: The content of config.json.
        family: Its architecture.
        dialect: Whose arguments.
        tp: Tensor parallel size; likewise ``pp``, ``vpp`` (virtual stages each), ``ep`` and ``etp``.
        pp: Pipeline stages.
        vpp: Virtual stages on each.
        ep: Expert parallel size.
        etp: Tensor parallel size of experts; as ``tp`` if not given.
        divisible: ``make_vocab_size_divisible_by``.
        padded_vocab: Rows of the embedding with padding; the rule of Megatron-LM if not given.
        dtype: Dtype of the weights; the config's if not given.
        seq_length: Length of a training sequence; ``max_position_embeddings`` if not given.
        implementation: ``transformer_engine`` or ``local``.
        experts_form: How experts are stored.
        mtp: Layers for multi-token prediction that are written; the config's number if not given.
        first_stage: Layers of the first stage, if uneven.
        last_stage: Layers of the last stage, if uneven.
        layers_per_stage: Layers of every stage (MindSpeed).
        noop_layers: Positions of empty layers (MindSpeed).
        schedule: Pipeline schedule with an order of its own: ``dualpipev`` (MindSpeed).
        mla_mm_split: Up-projections of latent attention in two (MindSpeed).
        moe_tp_extend_ep: Experts spread over tensor parallel ranks too (MindSpeed).

    Raises:
        PlanError: if the config lacks a value, or the dialect's arguments cannot say what it says.
        UsageError: if MindSpeed's layouts are asked of Megatron.
    """
    special = layers_per_stage or noop_layers or schedule or mla_mm_split or moe_tp_extend_ep
    if dialect == "megatron" and special:
        raise UsageError("this layout exists in MindSpeed-LLM only", hint="write the mindspeed dialect")
    facts = facts_of(config, family)
    v = _Said({name: fact.value for name, fact in facts.items()})
    lacking = [n for n in ("vocab", "hidden", "layers", "heads", "inner") if v.get(n) is None]
    if lacking:
        raise PlanError(f"config.json does not say {', '.join(lacking)}", hint="give a complete --config")
    mindspeed = dialect == "mindspeed"
    kind = dtype or v.get("dtype") or "float32"
    positions = v.get("positions") or seq_length
    stages = pp * (vpp or 1)
    args: dict[str, Any] = {
        "num_layers": v["layers"] + len(noop_layers),
        "encoder_num_layers": v["layers"] + len(noop_layers),
        "hidden_size": v["hidden"],
        "ffn_hidden_size": v["inner"],
        "num_attention_heads": v["heads"],
        "seq_length": seq_length or positions,
        "encoder_seq_length": seq_length or positions,
        "max_position_embeddings": positions,
        "vocab_size": v["vocab"],
        "padded_vocab_size": padded_vocab or -(-v["vocab"] // (divisible * tp)) * divisible * tp,
        "make_vocab_size_divisible_by": divisible,
        "params_dtype": kind,
        "bf16": kind == "bfloat16",
        "fp16": kind == "float16",
        "untie_embeddings_and_output_weights": not v.get("tied", False),
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "transformer_pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp,
        "num_layers_per_virtual_pipeline_stage": None,
        "expert_model_parallel_size": ep,
        "expert_tensor_parallel_size": etp or tp,
        "context_parallel_size": 1,
        "decoder_first_pipeline_num_layers": first_stage,
        "decoder_last_pipeline_num_layers": last_stage,
        "pipeline_model_parallel_layout": None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "sequence_parallel": tp > 1 and bool(v.get("experts")),
        "transformer_impl": implementation,
        "use_legacy_models": False,
        "use_mcore_models": True,
        "mtp_num_layers": (v.get("mtp") if mtp is None else mtp) or None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "ckpt_format": "torch",
        "spec": None,
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    if vpp and not (first_stage or last_stage) and args["num_layers"] % stages == 0:
        args["num_layers_per_virtual_pipeline_stage"] = args["num_layers"] // stages
    args |= write_norms(v, mindspeed) | write_activation(v, mindspeed) | write_attention(v, mindspeed)
    args |= write_positions(v, mindspeed)
    args |= write_experts(v, mindspeed, experts_form)
    if mindspeed:
        args |= {
            "num_layer_list": ",".join(map(str, layers_per_stage)) if layers_per_stage else None,
            "noop_layers": ",".join(map(str, sorted(noop_layers))) if noop_layers else None,
            "schedules_method": schedule,
            "mla_mm_split": mla_mm_split,
            "moe_tp_extend_ep": moe_tp_extend_ep,
        }
    return args
