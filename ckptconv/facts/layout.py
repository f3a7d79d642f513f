"""Read from training arguments how a checkpoint is cut over ranks, and the files it was made from."""

from __future__ import annotations

from ckptconv.facts.value import Args, Fact, computed

__all__ = ["read_layout"]

_WHOLE: dict[str, tuple[str, ...]] = {
    # checkpoint_version < 3 has model_parallel_size (Megatron-LM core_v0.16.1, training/checkpointing.py).
    "tp": ("tensor_model_parallel_size", "model_parallel_size"),
    "pp": ("pipeline_model_parallel_size",),
    "ep": ("expert_model_parallel_size",),
    "divisible": ("make_vocab_size_divisible_by",),
    "first_stage": ("decoder_first_pipeline_num_layers",),
    "last_stage": ("decoder_last_pipeline_num_layers",),
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "pad": ("pad_token_id",),
}
_FLAGS: dict[str, tuple[str, ...]] = {
    "count_embedding": ("account_for_embedding_in_pipeline_split",),
    "count_loss": ("account_for_loss_in_pipeline_split",),
    "mla_mm_split": ("mla_mm_split",),
    "moe_tp_extend_ep": ("moe_tp_extend_ep",),
}
_TEXTS: dict[str, tuple[str, ...]] = {
    "pipeline_layout": ("pipeline_model_parallel_layout",),
    "schedule": ("schedules_method",),
    "implementation": ("transformer_impl",),
    "model_type": ("model_type",),
    "hf_path": ("hf_path",),
    "tokenizer": ("tokenizer_name_or_path", "tokenizer_model", "hf_path"),
}


def read_layout(args: Args) -> dict[str, Fact]:
    """Return parallel sizes, stages, forms of storage, dtype and paths."""
    found: dict[str, Fact] = {}
    found |= {n: f for n, given in _WHOLE.items() if (f := args.whole(*given)) is not None}
    found |= {n: f for n, given in _FLAGS.items() if (f := args.flag(*given)) is not None}
    found |= {n: f for n, given in _TEXTS.items() if (f := args.text(*given)) is not None}
    for name, given in {"layers_per_stage": "num_layer_list", "noop_layers": "noop_layers"}.items():
        if (numbers := args.numbers(given)) is not None:
            found[name] = numbers
    own = args.text("load_model_type")
    if "hf_path" not in found and own is not None and own.value == "hf" and (path := args.text("load_dir")):
        found["hf_path"] = path
    if (etp := args.whole("expert_tensor_parallel_size") or found.get("tp")) is not None:
        found["etp"] = etp
    if (vpp := _virtual(args, found)) is not None:
        found["vpp"] = vpp
    if (dtype := _dtype(args)) is not None:
        found["dtype"] = dtype
    if (legacy := _legacy(args)) is not None:
        found["legacy_model"] = legacy
    if args.whole("num_experts", "n_routed_experts", "num_local_experts"):
        grouped, old = args.flag("moe_grouped_gemm"), args.on("moe_use_legacy_grouped_gemm")
        if grouped is not None:
            form = "sequential" if not grouped.value else "legacy_grouped" if old else "grouped"
            found["experts_form"] = computed(form, grouped, old)
    return found


def _virtual(args: Args, known: dict[str, Fact]) -> Fact | None:
    """Return virtual stages a pipeline stage; dualpipev folds two on every one."""
    given = args.whole("virtual_pipeline_model_parallel_size", "vpp_size")
    if given is not None:
        return given
    schedule = known.get("schedule")
    if schedule is not None and schedule.value == "dualpipev":
        return computed(2, schedule)
    each, layers, pp = (
        args.whole("num_layers_per_virtual_pipeline_stage"),
        args.whole("num_layers"),
        known.get("pp"),
    )
    if each is None or layers is None or pp is None or not each.value * pp.value:
        return None
    return computed(layers.value // pp.value // each.value, layers, pp, each)


def _dtype(args: Args) -> Fact | None:
    if (named := args.dtype("params_dtype", "torch_dtype", "dtype")) is not None:
        return named
    for flag, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if (on := args.on(flag)) is not None:
            return computed(name, on)
    return None


def _legacy(args: Args) -> Fact | None:
    if (legacy := args.flag("use_legacy_models")) is not None:
        return legacy
    core = args.flag("use_mcore_models")
    return None if core is None else computed(not core.value, core)
