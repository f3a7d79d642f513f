"""Megatron-core: GPTModel with the local spec and with TransformerEngine's.

Names: megatron-core 0.16.1, ``megatron/core/models/gpt/gpt_layer_specs.py``, ``transformer/attention.py``,
``transformer/multi_latent_attention.py``, ``transformer/mlp.py``, ``transformer/moe/``,
``transformer/multi_token_prediction.py``.
"""

from ckptconv.dialects.base import Dialect, Line, column, for_mtp, norm, plain, prefixed, row, whole
from ckptconv.slots import concat, grouped

EMBEDDING = (
    *column("embed", "embedding.word_embeddings", bias=False),
    *whole("positions", "embedding.position_embeddings"),
    *norm("embed_norm", "embedding.word_embeddings.norm."),
)
ATTENTION = (
    *column(
        grouped("kv_heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"),
        "self_attention.linear_qkv",
        when="!mla",
    ),
    *norm("layers.*.attn.q_norm", "self_attention.q_layernorm.", when="!mla"),
    *norm("layers.*.attn.k_norm", "self_attention.k_layernorm.", when="!mla"),
    *row("layers.*.attn.o", "self_attention.linear_proj", when="!mla"),
)
QUERY = grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope")
QUERY_UP = grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope")
KEY_VALUE_UP = grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v")
LATENT = (
    *column(QUERY, "self_attention.linear_q_proj", bias=False, when="mla !q_lora"),
    *whole(
        "layers.*.mla.q_a",
        "self_attention.linear_q_down_proj",
        when="mla q_lora",
        tells="self_attention.linear_q_up_proj",
    ),
    *column(QUERY_UP, "self_attention.linear_q_up_proj", bias=False, when="mla q_lora"),
    *whole(
        "layers.*.mla.kv_a",
        "self_attention.linear_kv_down_proj",
        when="mla",
        tells="self_attention.linear_kv_up_proj",
    ),
    *column(KEY_VALUE_UP, "self_attention.linear_kv_up_proj", bias=False, when="mla"),
    *row("layers.*.mla.o", "self_attention.linear_proj", when="mla"),
)
MLP = (
    *column(concat("layers.*.mlp.gate", "layers.*.mlp.up"), "mlp.linear_fc1", parts=2, when="gated"),
    *column("layers.*.mlp.up", "mlp.linear_fc1", when="!gated"),
    *row("layers.*.mlp.down", "mlp.linear_fc2"),
)
EXPERTS = "layers.*.moe.experts.{e}"
_GATE_UP = concat(f"{EXPERTS}.gate", f"{EXPERTS}.up")


def experts(stem: str, end: str, when: str) -> tuple[Line, ...]:
    """Declare experts one by one, their number before or after the module's name."""
    fc1, fc2 = stem.format("linear_fc1"), stem.format("linear_fc2")
    return (
        *(_renamed(line, end) for line in column(_GATE_UP, fc1, parts=2, bias=False, when=when)),
        *(_renamed(line, end) for line in row(f"{EXPERTS}.down", fc2, bias=False, when=when)),
    )


def _renamed(line: Line, end: str) -> Line:
    return Line(line.name + end, line.pack, line.when, line.optional, cut=line.cut)


ROUTER = (
    plain("layers.*.moe.router", "mlp.router.weight"),
    plain("layers.*.moe.router_bias", "mlp.router.expert_bias"),
)
SHARED = (
    *column(
        concat("layers.*.moe.shared.gate", "layers.*.moe.shared.up"),
        "mlp.shared_experts.linear_fc1",
        parts=2,
        bias=False,
    ),
    *row("layers.*.moe.shared.down", "mlp.shared_experts.linear_fc2", bias=False),
    plain("layers.*.moe.shared_gate", "mlp.shared_experts.gate_weight"),
)
SEQUENTIAL = experts("mlp.experts.local_experts.{{e}}.{}", "", "sequential")
GROUPED = experts("mlp.experts.{}", "{e}", "!sequential")
SPARSE = (*ROUTER, *SEQUENTIAL, *GROUPED, *SHARED)

_LOCAL_LAYER = (
    *norm("layers.*.attn_norm", "input_layernorm."),
    *ATTENTION,
    *LATENT,
    *norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm.", when="mla"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm.", when="mla"),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm."),
    *MLP,
    *SPARSE,
)
_TE_LAYER = (
    *norm("layers.*.attn_norm", "self_attention.linear_qkv.layer_norm_", when="!mla"),
    *norm("layers.*.attn_norm", "input_layernorm.", when="mla"),
    *ATTENTION,
    *LATENT,
    *norm("layers.*.mla.q_a_norm", "self_attention.linear_q_up_proj.layer_norm_", when="mla"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.linear_kv_up_proj.layer_norm_", when="mla"),
    *norm("layers.*.mlp_norm", "mlp.linear_fc1.layer_norm_", when="!moe"),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm.", when="moe"),
    *MLP,
    *SPARSE,
)
ENDS = (
    *norm("final_norm", "decoder.final_layernorm."),
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
CORE_LOCAL = Dialect(
    name="core-local",
    lines=model(_LOCAL_LAYER),
    extra_states=(*_MODULES, *_EXPERT_MODULES, "output_layer"),
)
CORE_TE = Dialect(name="core-te", lines=model(_TE_LAYER))
