#!/usr/bin/env python
"""Write and read small checkpoints with the real megatron-core on CPU, one process per rank (gloo).

    python megatron_recipe.py make OUT [FAMILY[/LAYOUT] ...]
    python megatron_recipe.py read FAMILY/LAYOUT HF RUN LOGITS   load RUN into GPTModel, save its answer
    python megatron_recipe.py list

``make`` writes a folder for each family: ``hf``, a random transformers model; ``logits.pt``, its answer to
a prompt; ``gold.safetensors``, its state under megatron-core's names (Transformer Engine spec, whole
tensors, no padding); and for each layout a run, and ``LAYOUT.logits.pt``, the answer of ``GPTModel``. It
checks that every layout answers as transformers does. ``read`` checks that each rank's tensors are those of
``hf``, bit for bit.

The mapping of names and the cutting are written here a second time, on purpose: they are what ckptconv is
measured against, and import nothing of it. Every layout is held by real ``GPTModel``s of the local spec;
what core asks of a GPU is answered with "cpu" (``_stand_in_for_cuda``). Files of the legacy format hold
what Megatron-LM core_v0.16.1 saves (``megatron/training/checkpointing.py``).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ITERATION = 5
SEQUENCE = 24
VOCAB = 250
DIVISIBLE_BY = 128
PAD = 7.5
TIMEOUT = 120
METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """Say how a model is cut, and in which format it is saved."""

    format: str = "torch"
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int | None = None
    dtype: torch.dtype = torch.float32
    config: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = ()  # of each stage, where they are not as many on each

    @property
    def expert_tp(self) -> int:
        return self.tp if self.etp is None else self.etp

    @property
    def world(self) -> int:
        return self.pp * math.lcm(self.tp, self.ep * self.expert_tp)

    @property
    def vocab(self) -> int:
        """The vocabulary with its padding (Megatron-LM, ``training/tokenizer/tokenizer.py``)."""
        return -(-VOCAB // (DIVISIBLE_BY * self.tp)) * DIVISIBLE_BY * self.tp


@dataclass(frozen=True, slots=True)
class Family:
    """Pair a transformers config with what the same model is to megatron-core."""

    hf: Callable[[], PretrainedConfig]
    core: dict[str, Any]
    layouts: dict[str, Layout]
    model: dict[str, Any] = field(default_factory=dict)


def _hf(name: str, **fields: Any) -> Callable[[], PretrainedConfig]:
    usual = dict(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, max_position_embeddings=128, tie_word_embeddings=False,
        rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    )  # fmt: skip

    def config() -> PretrainedConfig:
        import transformers

        made: PretrainedConfig = getattr(transformers, name)(**{**usual, **fields})
        return made

    return config


def _gpt2() -> PretrainedConfig:
    import transformers

    return transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=48, n_layer=4, n_head=8, n_positions=128, activation_function="gelu_new",
        bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


# fmt: off
_DENSE = dict(
    num_layers=4, hidden_size=48, ffn_hidden_size=80, num_attention_heads=8, num_query_groups=4,
    kv_channels=8, normalization="RMSNorm", layernorm_epsilon=1e-6, gated_linear_unit=True,
    add_bias_linear=False,
)
_MOE = dict(
    _DENSE, num_layers=2, num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=40,
    moe_router_load_balancing_type="none", moe_token_dispatcher_type="allgather", moe_aux_loss_coeff=0.0,
)
_GPT2 = dict(
    num_layers=4, hidden_size=48, ffn_hidden_size=192, num_attention_heads=8, kv_channels=6,
    normalization="LayerNorm", layernorm_epsilon=1e-5, add_bias_linear=True, add_qkv_bias=True,
    bias_activation_fusion=True,
)
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=50000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_HF_MOE = dict(num_hidden_layers=2, num_experts_per_tok=2)
_QWEN3_MOE = dict(_HF_MOE, head_dim=16, num_experts=4, moe_intermediate_size=40, norm_topk_prob=True)
_ROPE = {"rotary_base": 50000}
_TIED = {"share_embeddings_and_output_weights": True}

_BF16 = torch.bfloat16
_TP1, _TP4, _TP2PP2 = Layout(), Layout(tp=4), Layout(tp=2, pp=2)
_TP4_BF16 = Layout(tp=4, dtype=_BF16)
_UNEVEN = Layout(
    pp=2, layers=(1, 3),
    config={"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 3},
)
_ACCOUNTED = Layout(
    pp=3, layers=(1, 2, 1),
    config={"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True},
)
_DRAWN = Layout(pp=2, layers=(1, 3), config={"pipeline_model_parallel_layout": "Et|tttL"})
_DIST = Layout("torch_dist", tp=2, pp=2)

FAMILIES = {
    "llama": Family(
        _hf("LlamaConfig"), _DENSE, model=_ROPE,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp2pp1_local_bf16": Layout(tp=2, dtype=_BF16),
            "torch_tp4pp1_local": _TP4,
            "torch_tp2pp2_local": _TP2PP2,
            "torch_tp1pp2_local_uneven": _UNEVEN,
            "torch_tp1pp3_local_accte": _ACCOUNTED,
            "torch_tp1pp2vpp2_local": Layout(pp=2, vpp=2),
            "torch_tp2pp2vpp2_local": Layout(tp=2, pp=2, vpp=2),
            "torch_tp1pp2_local_layout": _DRAWN,
            "torch_dist_tp2pp2_local": _DIST,
            "torch_dist_tp2pp2_local_bf16": Layout("torch_dist", tp=2, pp=2, dtype=_BF16),
            "torch_dist_tp1pp2vpp2_local": Layout("torch_dist", pp=2, vpp=2),
            "torch_dist_tp1pp3_local_accte": dataclasses.replace(_ACCOUNTED, format="torch_dist"),
        },
    ),
    "llama_tied": Family(
        _hf("LlamaConfig", tie_word_embeddings=True), _DENSE, model=_ROPE | _TIED,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp2pp2_local": _TP2PP2,
            "torch_tp1pp2vpp2_local_bf16": Layout(pp=2, vpp=2, dtype=_BF16),
            "torch_dist_tp2pp2_local": _DIST,
        },
    ),
    "llama3_gqa2": Family(  # fewer query groups than ranks at TP 4, and llama3's stretched rotary frequencies
        _hf("LlamaConfig", num_key_value_heads=2, max_position_embeddings=16384, rope_parameters=_LLAMA3),
        dict(_DENSE, num_query_groups=2), model=_ROPE | {"rope_scaling": True},
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp4pp1_local": _TP4,
            "torch_dist_tp4pp1_local": Layout("torch_dist", tp=4),
        },
    ),
    "qwen2": Family(
        _hf("Qwen2Config", head_dim=6), dict(_DENSE, kv_channels=6, add_qkv_bias=True), model=_ROPE,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp2pp2_local": _TP2PP2,
            "torch_tp4pp1_local_bf16": _TP4_BF16,
            "torch_dist_tp2pp2_local": _DIST,
        },
    ),
    "qwen3": Family(
        _hf("Qwen3Config", head_dim=16, tie_word_embeddings=True),
        dict(_DENSE, kv_channels=16, qk_layernorm=True), model=_ROPE | _TIED,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp2pp2_local": _TP2PP2,
            "torch_tp1pp3_local_accte": _ACCOUNTED,
            "torch_dist_tp2pp2_local": _DIST,
        },
    ),
    "mixtral": Family(
        _hf("MixtralConfig", **_HF_MOE, intermediate_size=40, num_local_experts=4),
        dict(_MOE, ffn_hidden_size=40), model=_ROPE,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp1pp1ep2_local": Layout(ep=2),
            "torch_tp1pp2ep2_local": Layout(pp=2, ep=2),
            "torch_tp2pp1ep2_local": Layout(tp=2, ep=2),
            "torch_tp2pp1ep2etp1_local": Layout(tp=2, ep=2, etp=1),
            "torch_tp2pp1ep2etp1_local_bf16": Layout(tp=2, ep=2, etp=1, dtype=_BF16),
            "torch_tp4pp1ep2etp2_local": Layout(tp=4, ep=2, etp=2),
            "torch_dist_tp2pp2_local": _DIST,
            "torch_dist_tp1pp2ep2_local": Layout("torch_dist", pp=2, ep=2),
            # The legacy format has no name for more expert tensor parallel ranks than tensor parallel ones.
            "torch_dist_tp1pp1ep2etp2_local": Layout("torch_dist", ep=2, etp=2),
        },
    ),
    "qwen3_moe": Family(
        _hf("Qwen3MoeConfig", **_QWEN3_MOE), dict(_MOE, kv_channels=16, qk_layernorm=True), model=_ROPE,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp2pp2_local": _TP2PP2,
            "torch_tp2pp2ep2etp1_local": Layout(tp=2, pp=2, ep=2, etp=1),
            "torch_dist_tp2pp1ep2_local": Layout("torch_dist", tp=2, ep=2),
        },
    ),
    "qwen3_moe_mixed": Family(  # a dense first layer
        _hf("Qwen3MoeConfig", **_QWEN3_MOE, mlp_only_layers=[0]),
        dict(_MOE, kv_channels=16, qk_layernorm=True, moe_layer_freq=[0, 1]), model=_ROPE,
        layouts={"torch_tp1pp2_local": Layout(pp=2), "torch_dist_tp2pp2_local": _DIST},
    ),
    "gpt2": Family(
        _gpt2, _GPT2, model={"position_embedding_type": "learned_absolute"} | _TIED,
        layouts={
            "torch_tp1pp1_local": _TP1,
            "torch_tp2pp2_local": _TP2PP2,
            "torch_tp4pp1_local_bf16": _TP4_BF16,
            "torch_dist_tp2pp2_local": _DIST,
        },
    ),
}
# fmt: on


# The model: transformers' names to megatron-core's, and a rank's part of them.


def make_hf(family: Family, folder: Path) -> torch.Tensor:
    """Save a random model with no parameter left at its initial value; return its answer to the prompt."""
    import transformers

    torch.manual_seed(1234)
    model = transformers.AutoModelForCausalLM.from_config(family.hf(), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(folder)
    return hf_logits(folder)


def hf_logits(folder: Path) -> torch.Tensor:
    """Return what transformers makes of the prompt, fp32 [1, sequence, vocab]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(input_ids=prompt()).logits


def prompt() -> torch.Tensor:
    """Return the token ids every model is asked about, int64 [1, sequence]."""
    return torch.randint(0, VOCAB, (1, SEQUENCE), generator=torch.Generator().manual_seed(7))


def core_state(family: Family, folder: Path) -> State:
    """Return a saved transformers model as whole tensors under megatron-core's names (local spec)."""
    hf = load_file(folder / "model.safetensors")
    if "transformer.wte.weight" in hf or "wte.weight" in hf:
        return dict(_from_gpt2({name.removeprefix("transformer."): t for name, t in hf.items()}, family))
    return dict(_from_llama(hf, family))


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.cat([t.unflatten(0, (groups, -1)) for t in (q, k, v)], 1).flatten(0, 1)


def _from_llama(hf: State, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    yield "embedding.word_embeddings.weight", hf["model.embed_tokens.weight"]
    yield "decoder.final_layernorm.weight", hf["model.norm.weight"]
    yield "output_layer.weight", hf.get("lm_head.weight", hf["model.embed_tokens.weight"])
    for layer in range(family.core["num_layers"]):
        old, new = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        attention = {name: old + f"self_attn.{name}_proj." for name in "qkvo"}
        yield new + "input_layernorm.weight", hf[old + "input_layernorm.weight"]
        yield new + "pre_mlp_layernorm.weight", hf[old + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            if attention["q"] + kind in hf:
                parts = [hf[attention[name] + kind] for name in "qkv"]
                yield (
                    new + f"self_attention.linear_qkv.{kind}",
                    _grouped(*parts, family.core["num_query_groups"]),
                )
        yield new + "self_attention.linear_proj.weight", hf[attention["o"] + "weight"]
        for name in "qk":
            if (norm := old + f"self_attn.{name}_norm.weight") in hf:
                yield new + f"self_attention.{name}_layernorm.weight", hf[norm]
        yield from _mlp(hf, old, new)


def _mlp(hf: State, old: str, new: str) -> Iterator[tuple[str, torch.Tensor]]:
    mixtral = old + "block_sparse_moe."
    block = mixtral if mixtral + "gate.weight" in hf else old + "mlp."
    gate, up, down = ("w1", "w3", "w2") if block == mixtral else ("gate_proj", "up_proj", "down_proj")

    def one(source: str, target: str) -> Iterator[tuple[str, torch.Tensor]]:
        pair = [hf[f"{source}{name}.weight"] for name in (gate, up)]
        yield target + "linear_fc1.weight", torch.cat(pair)
        yield target + "linear_fc2.weight", hf[f"{source}{down}.weight"]

    if block + "gate.weight" not in hf:
        yield from one(block, new + "mlp.")
        return
    yield new + "mlp.router.weight", hf[block + "gate.weight"]
    for expert in range(hf[block + "gate.weight"].shape[0]):
        yield from one(f"{block}experts.{expert}.", f"{new}mlp.experts.local_experts.{expert}.")


def _from_gpt2(hf: State, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    yield "embedding.word_embeddings.weight", hf["wte.weight"]
    yield "embedding.position_embeddings.weight", hf["wpe.weight"]
    yield "output_layer.weight", hf["wte.weight"]
    for kind in ("weight", "bias"):
        yield f"decoder.final_layernorm.{kind}", hf[f"ln_f.{kind}"]
        for layer in range(family.core["num_layers"]):
            old, new = f"h.{layer}.", f"decoder.layers.{layer}."
            yield new + f"input_layernorm.{kind}", hf[old + f"ln_1.{kind}"]
            yield new + f"pre_mlp_layernorm.{kind}", hf[old + f"ln_2.{kind}"]
            # Conv1D keeps [in, out].
            qkv, proj, fc1, fc2 = (
                hf[old + f"{name}.{kind}"].t().contiguous()
                for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
            )
            heads = family.core["num_attention_heads"]
            yield new + f"self_attention.linear_qkv.{kind}", _grouped(*qkv.chunk(3), heads)
            yield new + f"self_attention.linear_proj.{kind}", proj
            yield new + f"mlp.linear_fc1.{kind}", fc1
            yield new + f"mlp.linear_fc2.{kind}", fc2


def gold_state(family: Family, state: State) -> State:
    """Return the state under the Transformer Engine spec's names, experts grouped, tied head left out."""
    routed = {name.split(".mlp.")[0] for name in state if name.endswith("mlp.router.weight")}
    gold = {}
    for name, tensor in state.items():
        if name == "output_layer.weight" and family.model.get("share_embeddings_and_output_weights"):
            continue
        name = name.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
        if name.split(".pre_mlp_layernorm.")[0] not in routed:
            name = name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")
        name = re.sub(r"experts\.local_experts\.(\d+)\.(.+)$", r"experts.\2\1", name)
        gold[name] = tensor.clone()
    return gold


_ROWS = re.compile(r"(word_embeddings|output_layer|linear_qkv|linear_fc1)\.(weight|bias)$")
_COLUMNS = re.compile(r"(linear_proj|linear_fc2)\.weight$")


def cut(name: str, tensor: torch.Tensor, rank: int, size: int, *, gated: bool) -> torch.Tensor:
    """Return a tensor-parallel rank's part of a whole tensor."""
    if gated and "linear_fc1" in name:
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    if _ROWS.search(name):
        return tensor.chunk(size)[rank].clone()
    if _COLUMNS.search(name):
        return tensor.chunk(size, 1)[rank].clone()
    return tensor.clone()


def chunk_state(model: Any, family: Family, layout: Layout, state: State) -> State:
    """Return what a rank's ``GPTModel`` must hold, by its own layer numbers and expert indices."""
    from megatron.core import parallel_state as mpu

    gated = bool(family.core.get("gated_linear_unit"))
    found = {}
    for name, own in model.state_dict().items():
        if not isinstance(own, torch.Tensor):
            continue
        whole = name
        if match := re.match(r"decoder\.layers\.(\d+)\.(.+)", name):
            layer = model.decoder.layers[int(match[1])]
            whole = f"decoder.layers.{layer.layer_number - 1}.{match[2]}"
            if expert := re.search(r"local_experts\.(\d+)", whole):
                index = layer.mlp.local_expert_indices[int(expert[1])]
                whole = whole.replace(expert[0], f"local_experts.{index}")
        tensor = state[whole].to(layout.dtype)
        if "word_embeddings" in name or "output_layer" in name:
            padding = tensor.new_full((layout.vocab - len(tensor), *tensor.shape[1:]), PAD)
            tensor = torch.cat([tensor, padding])
        if ".experts." in name:
            rank, size = mpu.get_expert_tensor_parallel_rank(), layout.expert_tp
        else:
            rank, size = mpu.get_tensor_model_parallel_rank(), layout.tp
        found[name] = cut(name, tensor, rank, size, gated=gated)
    return found


# megatron-core, in the ranks' processes.


def _stand_in_for_cuda() -> None:
    """Tell megatron-core that its GPU is the CPU."""
    from megatron.core.transformer.moe import moe_utils

    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.cuda = lambda self, *_, **__: self
    moe_utils.te_general_gemm = None  # core 0.16.1 forgets to say so where there is no Transformer Engine


def build(family: Family, layout: Layout) -> list[Any]:
    """Return this rank's model, or its virtual stages' models."""
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    config = core_config(family, layout)
    chunks = []
    for stage in range(layout.vpp):
        virtual = stage if layout.vpp > 1 else None
        chunks.append(
            GPTModel(
                config=config,
                transformer_layer_spec=get_gpt_decoder_block_spec(
                    config,
                    use_transformer_engine=False,
                    normalization=config.normalization,
                    vp_stage=virtual,
                ),
                vocab_size=layout.vocab,
                max_sequence_length=family.hf().max_position_embeddings,
                pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual),
                post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual),
                parallel_output=False,
                vp_stage=virtual,
                **{"position_embedding_type": "rope", **family.model},
            )
            .to(layout.dtype)
            .eval()
        )
    return chunks


def core_config(family: Family, layout: Layout) -> Any:
    """Return the ``TransformerConfig`` of a family under a layout."""
    from megatron.core.transformer import TransformerConfig

    gated = bool(family.core.get("gated_linear_unit"))
    return TransformerConfig(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.expert_tp,
        pipeline_dtype=layout.dtype,
        params_dtype=layout.dtype,
        bf16=layout.dtype == torch.bfloat16,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        persist_layer_norm=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        activation_func=torch.nn.functional.silu if gated else torch.nn.functional.gelu,
        **{"bias_activation_fusion": False, "apply_rope_fusion": False, **family.core, **layout.config},
    )


def ask(chunks: list[Any], layout: Layout) -> torch.Tensor | None:
    """Pass the prompt through the pipeline; return fp32 [1, sequence, VOCAB] on its last stage."""
    from megatron.core import parallel_state as mpu

    tokens = prompt()
    positions = torch.arange(SEQUENCE)[None]
    mask = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    group = mpu.get_pipeline_model_parallel_group()
    hidden = torch.empty(SEQUENCE, 1, chunks[0].config.hidden_size, dtype=layout.dtype)
    logits = None
    with torch.no_grad():
        for stage, model in enumerate(chunks):
            for rank in range(layout.pp):
                if rank == mpu.get_pipeline_model_parallel_rank():
                    if not model.pre_process:
                        model.set_input_tensor(hidden.clone())
                    answer = model(tokens, positions, mask)
                    if model.post_process:
                        logits = answer[..., :VOCAB].float()
                    else:
                        hidden = answer.contiguous()
                if (stage, rank) != (layout.vpp - 1, layout.pp - 1):
                    dist.broadcast(hidden, group=group, group_src=rank)
    return logits


def training_args(family: Family, layout: Layout) -> argparse.Namespace:
    """Return the arguments as Megatron-LM core_v0.16.1 leaves them after ``validate_args``."""
    from megatron.core.enums import ModelType
    from megatron.core.transformer.enums import AttnBackend

    config = core_config(family, layout)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    plain = (int, float, str, bool, list, torch.dtype, type(None))
    values = {name: value for name, value in values.items() if isinstance(value, plain)}
    groups = family.core.get("num_query_groups")
    gated = values.pop("gated_linear_unit")
    rope = family.model.get("position_embedding_type", "rope") == "rope"
    values |= dict(
        group_query_attention=groups is not None,
        num_query_groups=groups or 1,
        swiglu=gated,
        squared_relu=False,
        quick_geglu=False,
        openai_gelu=False,
        bias_gelu_fusion=values["bias_activation_fusion"] and not gated,
        bias_swiglu_fusion=False,
        num_experts=values.pop("num_moe_experts"),
        position_embedding_type="rope" if rope else "learned_absolute",
        add_position_embedding=True,
        rotary_base=family.model.get("rotary_base", 10000),
        rotary_percent=1.0,
        rotary_seq_len_interpolation_factor=None,
        use_rope_scaling=family.model.get("rope_scaling", False),
        rope_scaling_factor=8.0,
        untie_embeddings_and_output_weights=not family.model.get("share_embeddings_and_output_weights"),
        apply_layernorm_1p=False,
        decoder_first_pipeline_num_layers=values.pop("num_layers_in_first_pipeline_stage"),
        decoder_last_pipeline_num_layers=values.pop("num_layers_in_last_pipeline_stage"),
        pipeline_model_parallel_layout=layout.config.get("pipeline_model_parallel_layout"),
        num_layers_per_virtual_pipeline_stage=None,
        encoder_num_layers=values["num_layers"],
        decoder_num_layers=None,
        transformer_pipeline_model_parallel_size=layout.pp,
        world_size=layout.world,
        data_parallel_size=layout.world // (layout.tp * layout.pp),
        rank=0,
        local_rank=0,
        vocab_size=VOCAB,
        padded_vocab_size=layout.vocab,
        make_vocab_size_divisible_by=DIVISIBLE_BY,
        max_position_embeddings=family.hf().max_position_embeddings,
        seq_length=64,
        encoder_seq_length=64,
        transformer_impl="local",
        tokenizer_type="NullTokenizer",
        ckpt_format=layout.format,
        use_dist_ckpt=layout.format != "torch",
        iteration=ITERATION,
        train_iters=10,
        add_bert_head=True,
        no_persist_layer_norm=True,
        model_type=ModelType.encoder_or_decoder,
        attention_backend=AttnBackend.auto,
        exit_signal=signal.SIGTERM,
    )
    return argparse.Namespace(**dict(sorted(values.items())))


def _common(family: Family, layout: Layout) -> dict[str, Any]:
    return {"args": training_args(family, layout), "checkpoint_version": 3.0, "iteration": ITERATION}


def _names(layout: Layout) -> list[str]:
    return ["model"] if layout.vpp == 1 else [f"model{stage}" for stage in range(layout.vpp)]


def rank_file(layout: Layout, folder: Path) -> Path:
    """Return this rank's file of the legacy format."""
    from megatron.core import parallel_state as mpu

    name = f"mp_rank_{mpu.get_tensor_model_parallel_rank():02d}"
    if layout.pp > 1:
        name += f"_{mpu.get_pipeline_model_parallel_rank():03d}"
    if layout.ep > 1:
        name += f"_{mpu.get_expert_model_parallel_rank():03d}"
    return folder / name / "model_optim_rng.pt"


def save(chunks: list[Any], family: Family, layout: Layout, run: Path) -> None:
    """Save the ranks' models as Megatron-LM does after ``ITERATION`` steps."""
    from megatron.core import dist_checkpointing
    from megatron.core import parallel_state as mpu

    folder = run / f"iter_{ITERATION:07d}"
    state = _common(family, layout)
    flops = {"num_floating_point_operations_so_far": 123456}
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    if layout.format == "torch":
        state |= {
            name: model.state_dict_for_save_checkpoint()
            for name, model in zip(_names(layout), chunks, strict=True)
        }
        if mpu.get_expert_data_parallel_rank() == 0:
            path = rank_file(layout, folder)
            path.parent.mkdir(exist_ok=True)
            torch.save(state | {"rng_state": [_rng_state()], **flops}, path)
    else:
        rank, size = mpu.get_pipeline_model_parallel_rank(), layout.pp
        tp_rank = mpu.get_tensor_model_parallel_rank()
        state |= {
            name: model.sharded_state_dict(metadata=METADATA)
            for name, model in zip(_names(layout), chunks, strict=True)
        }
        state["rng_state"] = dist_checkpointing.mapping.ShardedObject(
            "rng_state", [_rng_state()], (size, layout.tp), (rank, tp_rank),
            replica_id=mpu.get_data_parallel_rank(with_context_parallel=True),
        )  # fmt: skip
        dist_checkpointing.save(state | flops, str(folder), content_metadata=METADATA)
    dist.barrier()
    if dist.get_rank() == 0:
        (run / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))


def _rng_state() -> dict[str, Any]:
    return {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }


def load(chunks: list[Any], layout: Layout, run: Path) -> None:
    """Load a run into the ranks' models; every name must be there and no other."""
    from megatron.core import dist_checkpointing

    iteration = (run / "latest_checkpointed_iteration.txt").read_text().strip()
    folder = run / ("release" if iteration == "release" else f"iter_{int(iteration):07d}")
    names = _names(layout)
    if layout.format == "torch":
        state = torch.load(rank_file(layout, folder), weights_only=False)
    else:
        wanted = {
            name: model.sharded_state_dict(metadata=METADATA)
            for name, model in zip(names, chunks, strict=True)
        }
        state = dist_checkpointing.load(wanted, str(folder), strict="raise_unexpected")
    assert [name for name in state if name.startswith("model")] == names, sorted(state)
    for name, model in zip(names, chunks, strict=True):
        model.load_state_dict(state[name], strict=True)


def check(chunks: list[Any], family: Family, layout: Layout, state: State) -> None:
    """Assert that the ranks hold exactly ``state``, whatever the vocabulary's padding is."""
    from megatron.core import parallel_state as mpu

    for model in chunks:
        held = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
        for name, tensor in chunk_state(model, family, layout, state).items():
            found = held[name]
            assert found.dtype == tensor.dtype, (name, found.dtype)
            if "word_embeddings" in name or "output_layer" in name:
                true = max(0, VOCAB - mpu.get_tensor_model_parallel_rank() * len(tensor))
                tensor, found = tensor[:true], found[:true]
            assert torch.equal(found, tensor), f"{name} differs on rank {dist.get_rank()}"


# One process per rank.


def _work(rank: int, layout: Layout, scratch: str, task: Callable[[], torch.Tensor | None]) -> None:
    from megatron.core import parallel_state as mpu
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    _stand_in_for_cuda()
    initialize_rng_tracker(inference_rng_tracker=True)  # the other one keeps a GPU's states
    dist.init_process_group(
        "gloo",
        init_method=f"file://{scratch}/store",
        rank=rank,
        world_size=layout.world,
        timeout=timedelta(seconds=TIMEOUT),
    )
    mpu.initialize_model_parallel(
        layout.tp,
        layout.pp,
        layout.vpp if layout.vpp > 1 else None,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.expert_tp,
    )
    logits = task()
    if logits is not None and mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank() == 0:
        torch.save(logits, f"{scratch}/logits.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(layout: Layout, task: Callable[[], torch.Tensor | None]) -> torch.Tensor:
    """Run ``task`` on every rank of a layout, and return the last stage's answer."""
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt  # noqa: F401  # once, before the ranks are forked

    context = torch.multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch:
        ranks = [context.Process(target=_work, args=(r, layout, scratch, task)) for r in range(layout.world)]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + TIMEOUT
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
            process.join()
        if any(codes) or None in codes:
            raise RuntimeError(f"exit codes of the ranks: {codes} (None: not done after {TIMEOUT} s)")
        return torch.load(Path(scratch) / "logits.pt")


def make_layout(family: Family, layout: Layout, hf: Path, run: Path) -> tuple[torch.Tensor, float]:
    """Save a run; return its answer to the prompt, and how far that is from transformers'."""
    state, expected = core_state(family, hf), hf_logits(hf)

    def task() -> torch.Tensor | None:
        chunks = build(family, layout)
        for model in chunks:
            model.load_state_dict(chunk_state(model, family, layout, state), strict=False)
        check(chunks, family, layout, state)
        save(chunks, family, layout, run)
        return ask(chunks, layout)

    run.mkdir(parents=True, exist_ok=True)
    logits = on_ranks(layout, task)
    by_token = (logits - expected).abs().amax(-1)
    # Rounding to bfloat16 may send a token to another expert.
    gap, limit = (by_token.max(), 1e-4) if layout.dtype == torch.float32 else (by_token.median(), 0.05)
    if not gap < limit:
        raise RuntimeError(f"answers {gap} away from transformers")
    return logits, gap.item()


def read_run(family: Family, layout: Layout, hf: Path, run: Path) -> torch.Tensor:
    """Load a run, compare every tensor with ``hf``, and return the answer to the prompt."""
    state = core_state(family, hf)

    def task() -> torch.Tensor | None:
        chunks = build(family, layout)
        load(chunks, layout, run)
        check(chunks, family, layout, state)
        return ask(chunks, layout)

    return on_ranks(layout, task)


def make(out: Path, wanted: list[str]) -> int:
    """Make the families or layouts asked for; return 1 if one fails."""
    failed = 0
    for name, family in FAMILIES.items():
        layouts = [key for key in family.layouts if not wanted or {name, f"{name}/{key}"} & set(wanted)]
        if not layouts:
            continue
        folder = out / name
        logits = make_hf(family, folder / "hf")
        save_file(gold_state(family, core_state(family, folder / "hf")), folder / "gold.safetensors")
        torch.save({"input_ids": prompt(), "logits": logits}, folder / "logits.pt")
        for key in layouts:
            try:
                answer, gap = make_layout(family, family.layouts[key], folder / "hf", folder / key)
            except Exception as error:
                failed += 1
                print(f"{name}/{key}: FAILED: {error}", flush=True)
            else:
                torch.save(answer, folder / f"{key}.logits.pt")
                print(f"{name}/{key}: {gap:.1e}", flush=True)
    return int(failed > 0)


def main() -> int:
    """Run the command line in the first lines."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # the ranks are forked, and share few cores
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    match sys.argv[1:]:
        case ["list"]:
            print("\n".join(f"{name}/{key}" for name, family in FAMILIES.items() for key in family.layouts))
            return 0
        case ["make", out, *wanted]:
            return make(Path(out), wanted)
        case ["read", case, hf, run, logits]:
            name, key = case.split("/")
            family = FAMILIES[name]
            torch.save(read_run(family, family.layouts[key], Path(hf), Path(run)), logits)
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
