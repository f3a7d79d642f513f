"""Megatron-core: GPTModel with the local spec and with TransformerEngine's.

Names: megatron-core 0.16.1, ``megatron/core/models/gpt/gpt_layer_specs.py``, ``transformer/attention.py``,
``transformer/multi_latent_attention.py``, ``transformer/mlp.py``, ``transformer/moe/``,
``transformer/multi_token_prediction.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ckptconv.dialects.base import Dialect, Line, column, for_mtp, norm, plain, prefixed, row, whole
from ckptconv.dialects.gates import GATES, gates
from ckptconv.dialects.vision import VISION
from ckptconv.parallel import Cut
from ckptconv.slots import Pack, Part, concat, grouped

EMBEDDING = (
    *column("embed", "embedding.word_embeddings", bias=False),
    *whole("positions", "embedding.position_embeddings"),
    *norm("embed_norm", "embedding.word_embeddings.norm."),
)
_Q, _K, _V = (f"layers.*.attn.{part}" for part in "qkv")
ATTENTION = (
    *column(grouped("kv_heads", _Q, _K, _V), "self_attention.linear_qkv", when="!mla !attn.gate"),
    # --attention-output-gate (core 0.19, ``transformer/attention.py``)
    *column(
        grouped("kv_heads", _Q, "layers.*.attn.gate", _K, _V),
        "self_attention.linear_qkv",
        when="!mla attn.gate",
    ),
    plain("layers.*.attn.sinks", "self_attention.core_attention.softmax_offset", cut=0),
    *norm("layers.*.attn.q_norm", "self_attention.q_layernorm.", when="!mla"),
    *norm("layers.*.attn.k_norm", "self_attention.k_layernorm.", when="!mla"),
    *row("layers.*.attn.o", "self_attention.linear_proj", when="!mla"),
)
QUERY = grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope")
QUERY_UP = grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope")
KEY_VALUE_UP = grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v")
LATENT = (
    *column(QUERY, "self_attention.linear_q_proj", bias=False, when="mla !mla.q_a"),
    *whole(
        "layers.*.mla.q_a",
        "self_attention.linear_q_down_proj",
        when="mla mla.q_a",
        tells="self_attention.linear_q_up_proj",
    ),
    *column(QUERY_UP, "self_attention.linear_q_up_proj", bias=False, when="mla mla.q_a"),
    *whole(
        "layers.*.mla.kv_a",
        "self_attention.linear_kv_down_proj",
        when="mla",
        tells="self_attention.linear_kv_up_proj",
    ),
    *column(KEY_VALUE_UP, "self_attention.linear_kv_up_proj", bias=False, when="mla"),
    *row("layers.*.mla.o", "self_attention.linear_proj", when="mla"),
)
# Sparse attention over latents (core 0.19, ``transformer/experimental_attention_variant/dsa.py``)
_INDEXER_AT = "self_attention.core_attention.indexer"
INDEXER = (
    *whole("layers.*.mla.indexer.q_b", f"{_INDEXER_AT}.linear_wq_b"),
    *whole("layers.*.mla.indexer.k", f"{_INDEXER_AT}.linear_wk"),
    *norm("layers.*.mla.indexer.k_norm", f"{_INDEXER_AT}.k_norm."),
    *whole("layers.*.mla.indexer.weights", f"{_INDEXER_AT}.linear_weights_proj"),
)
# Norms after attention and MLP, as Megatron-Bridge's Gemma and Exaone have them (0.6.2, gemma/, exaone/).
POST_NORMS = (
    *norm("layers.*.attn_post_norm", "self_attention.linear_proj.post_layernorm."),
    *norm("layers.*.mlp_post_norm", "mlp.linear_fc2.post_layernorm."),
)
MLP = (
    *column(concat("layers.*.mlp.gate", "layers.*.mlp.up"), "mlp.linear_fc1", parts=2, when="mlp.gate"),
    *column("layers.*.mlp.up", "mlp.linear_fc1", when="!mlp.gate"),
    *row("layers.*.mlp.down", "mlp.linear_fc2"),
)
EXPERTS = "layers.*.moe.experts.{e}"
_GATE_UP = concat(f"{EXPERTS}.gate", f"{EXPERTS}.up")


def experts(stem: str, end: str, when: str) -> tuple[Line, ...]:
    """Declare experts one by one, their number before or after the module's name."""
    fc1, fc2 = stem.format("linear_fc1"), stem.format("linear_fc2")
    lines = (
        *column(_GATE_UP, fc1, parts=2, when=f"{when} moe.experts.gate"),
        *column(f"{EXPERTS}.up", fc1, when=f"{when} !moe.experts.gate"),
        *row(f"{EXPERTS}.down", fc2, when=when),
    )
    return tuple(replace(line, name=line.name + end) for line in lines)


ROUTER = (
    plain("layers.*.moe.router", "mlp.router.weight"),
    replace(plain("layers.*.moe.router.bias", "mlp.router.bias"), optional=True),
    plain("layers.*.moe.router_bias", "mlp.router.expert_bias"),
)
_SHARED_FC1 = "mlp.shared_experts.linear_fc1"
LATENT_EXPERTS = (
    *whole("layers.*.moe.latent.down", "mlp.fc1_latent_proj"),
    *whole("layers.*.moe.latent.up", "mlp.fc2_latent_proj"),
)
SHARED = (
    *column(
        concat("layers.*.moe.shared.gate", "layers.*.moe.shared.up"),
        _SHARED_FC1,
        parts=2,
        bias=False,
        when="moe.shared.gate",
    ),
    *column("layers.*.moe.shared.up", _SHARED_FC1, bias=False, when="!moe.shared.gate"),
    *row("layers.*.moe.shared.down", "mlp.shared_experts.linear_fc2", bias=False),
    plain("layers.*.moe.shared_gate", "mlp.shared_experts.gate_weight"),
)
SEQUENTIAL = experts("mlp.experts.local_experts.{{e}}.{}", "", "sequential")
GROUPED = experts("mlp.experts.{}", "{e}", "!sequential")
SPARSE = (*ROUTER, *LATENT_EXPERTS, *SEQUENTIAL, *GROUPED, *SHARED)


def _parts(
    module: str, slots: dict[str, str], *, when: str = "", bias: bool = False, names: str = "weight bias"
) -> tuple[Line, ...]:
    """Declare a tensor that a rank holds as parts one after the other; torch_dist saves each by itself.

    Megatron-core 0.19, ``ssm/gated_delta_net.py`` and ``ssm/mamba_mixer.py`` (``sharded_state_dict``).
    """
    made: list[Line] = []
    for leaf, end in zip(names.split(), ("", ".bias"), strict=True):
        if end and not bias:
            continue
        name, optional = f"{module}{leaf}", bool(end)
        together: Pack = grouped("tp", *(slot + end for slot in slots.values()))
        made.append(Line(name, together, f"{when} !apart".strip(), optional, cut=Cut(0)))
        made += [
            Line(f"{name}.{part}", slot + end, f"{when} apart".strip(), optional)
            for part, slot in slots.items()
        ]
    return tuple(made)


_D = "layers.*.gdn"
_CONV = {"query": f"{_D}.conv.q", "key": f"{_D}.conv.k", "value": f"{_D}.conv.v"}
_IN = {"query": "q", "key": "k", "value": "v", "z": "z", "beta": "beta", "alpha": "alpha"}
GATED_DELTA_NET = (
    *_parts("self_attention.in_proj.", {part: f"{_D}.{slot}" for part, slot in _IN.items()}),
    *_parts("self_attention.conv1d.", _CONV),
    plain(f"{_D}.a_log", "self_attention.A_log", cut=0),
    plain(f"{_D}.dt_bias", "self_attention.dt_bias", cut=0),
    plain(f"{_D}.norm", "self_attention.out_norm.weight"),
    *row(f"{_D}.o", "self_attention.out_proj", bias=False),
)
_M = "layers.*.mamba"
_MAMBA_IN = {"z": f"{_M}.z", "x": f"{_M}.x", "B": f"{_M}.b", "C": f"{_M}.c", "dt": f"{_M}.dt"}
_MAMBA_CONV = {"x": f"{_M}.conv.x", "B": f"{_M}.conv.b", "C": f"{_M}.conv.c"}


def _mamba(module: str, when: str) -> tuple[Line, ...]:
    """Declare a Mamba 2 mixer; newer releases call the convolution's parameters otherwise (core 0.19)."""
    return (
        *_parts(f"{module}.in_proj.", _MAMBA_IN, when=when, bias=True),
        *_parts(f"{module}.conv1d.", _MAMBA_CONV, when=when, bias=True),
        *_parts(f"{module}.", _MAMBA_CONV, when=when, bias=True, names="conv1d_weight conv1d_bias"),
        plain(f"{_M}.a_log", f"{module}.A_log", cut=0, when=when),
        plain(f"{_M}.d", f"{module}.D", cut=0, when=when),
        plain(f"{_M}.dt_bias", f"{module}.dt_bias", cut=0, when=when),
        plain(f"{_M}.norm", f"{module}.norm.weight", cut=0, when=when),
        *row(f"{_M}.o", f"{module}.out_proj", when=when),
    )


# Beside attention in one layer, as in Falcon-H1, and alone.
_ALONE, _BESIDE = "mamba !attn", "mamba attn"
MAMBA = (*_mamba("mixer", _ALONE), *_mamba("mamba_mixer", _BESIDE))
_BODY = (*MAMBA, *ATTENTION, *GATED_DELTA_NET, *LATENT, *INDEXER, *POST_NORMS)
_LOCAL_LAYER = (
    *norm("layers.*.attn_norm", "input_layernorm."),
    *_BODY,
    *norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm.", when="mla"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm.", when="mla"),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm."),
    *MLP,
    *SPARSE,
)
_TE_LAYER = (
    *norm("layers.*.attn_norm", "mixer.in_proj.layer_norm_", when=_ALONE),
    *norm("layers.*.attn_norm", "norm.", when=_BESIDE),
    *norm("layers.*.attn_norm", "self_attention.linear_qkv.layer_norm_", when="attn !mamba"),
    *norm("layers.*.attn_norm", "self_attention.in_proj.layer_norm_", when="gdn"),
    *norm("layers.*.attn_norm", "input_layernorm.", when="!attn !gdn !mamba"),
    *_BODY,
    *norm("layers.*.mla.q_a_norm", "self_attention.linear_q_up_proj.layer_norm_", when="mla !mla.indexer"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.linear_kv_up_proj.layer_norm_", when="mla !mla.indexer"),
    *norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm.", when="mla.indexer"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm.", when="mla.indexer"),
    *norm("layers.*.mlp_norm", "mlp.linear_fc1.layer_norm_", when="!moe"),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm.", when="moe"),
    *MLP,
    *SPARSE,
)
ENDS = (
    # Models with Mamba layers are HybridModel (core 0.19, ``models/hybrid/hybrid_block.py``).
    *norm("final_norm", "decoder.final_norm.", when="any.mamba"),
    *norm("final_norm", "decoder.final_layernorm.", when="!any.mamba"),
    *column("head", "output_layer", bias=True),
)
MTP_ENDS = (
    *norm("mtp.*.enorm", "mtp.layers.*.enorm."),
    *norm("mtp.*.hnorm", "mtp.layers.*.hnorm."),
    *column("mtp.*.eh_proj", "mtp.layers.*.eh_proj", bias=False),
)
_MTP_NORM = norm("mtp.*.norm", "mtp.layers.*.final_layernorm.")


def model(layer: tuple[Line, ...]) -> tuple[Line, ...]:
    """Declare a model of such layers; newer releases call the layer inside MTP otherwise (core 0.20)."""
    return (
        *EMBEDDING,
        *prefixed(layer, "decoder.layers.*."),
        *ENDS,
        *MTP_ENDS,
        *for_mtp(layer, "mtp.layers.*.transformer_layer."),
        *_MTP_NORM,
        *for_mtp(layer, "mtp.layers.*.mtp_model_layer."),
    )


_MODULES = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
_EXPERT_MODULES = (
    "mlp.experts.local_experts.{e}.linear_fc1",
    "mlp.experts.local_experts.{e}.linear_fc2",
    "mlp.shared_experts.linear_fc1",
    "mlp.shared_experts.linear_fc2",
)
TELLS = {
    "mla": r".*\.(linear_kv_up_proj|linear_kvb|linear_kv_nope)\..*",
    "mla.q_a": r".*\.(linear_q_up_proj|linear_qb|linear_qk_nope)\..*",
    "mla.indexer": r".*\.(core_attention\.indexer|dsa_indexer)\..*",
    "mla0": r".*\.self_attention_0\..*",
    "mhc": r".*\.attn_mhc\..*",
    "csa": r".*\.self_attention\.indexer\..*",
}


def megatron(
    name: str,
    lines: tuple[Line, ...],
    extra_states: tuple[str, ...] = (),
    *,
    nested: bool = False,
    arguments: Literal["megatron", "mindspeed"] = "megatron",
    parts: tuple[Part, ...] = (),
) -> Dialect:
    """Declare a dialect of Megatron's or one of its relatives', which all tell the same in the same way."""
    return Dialect(
        name,
        lines,
        tells=TELLS,
        shapes=gates,
        reads=GATES,
        nested=nested,
        extra_states=extra_states,
        arguments=arguments,
        parts=parts,
    )


CORE_LOCAL = megatron(
    "core-local",
    model(_LOCAL_LAYER),
    extra_states=(*_MODULES, *_EXPERT_MODULES, "output_layer"),
    parts=(VISION,),
)
CORE_TE = megatron("core-te", model(_TE_LAYER), parts=(VISION,))
