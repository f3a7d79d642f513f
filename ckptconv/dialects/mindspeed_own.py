"""Name what only MindSpeed-LLM has of LongCat-Flash and DeepSeek-V4.

MindSpeed-LLM c77308a1, ``mindspeed_llm/tasks/checkpoint/model_builder.py``; names that tell whose layer it is
are in `ckptconv.dialects.core.TELLS`.
"""

from __future__ import annotations

from ckptconv.dialects.base import Line, column, norm, plain, row, whole
from ckptconv.slots import concat, transposed

__all__ = ["DEEPSEEK_V4", "DEEPSEEK_V4_ENDS", "LONGCAT"]


def _half(i: int) -> tuple[Line, ...]:
    """Declare one of the two attentions and MLPs of LongCat's layers."""
    mla, mlp, at = f"layers.*.mla{i}", f"layers.*.mlp{i}", f"self_attention_{i}"
    return (
        *norm(f"{mla}.norm", f"input_layernorm_{i}."),
        *whole(concat(f"{mla}.q_a", f"{mla}.kv_a"), f"{at}.linear_qkv"),
        *norm(f"{mla}.q_a_norm", f"{at}.q_layernorm."),
        *norm(f"{mla}.kv_a_norm", f"{at}.kv_layernorm."),
        *column(f"{mla}.q_b", f"{at}.linear_q_up_proj", bias=False),
        *column(f"{mla}.kv_b", f"{at}.linear_kv_up_proj", bias=False),
        *row(f"{mla}.o", f"{at}.linear_proj", bias=False),
        *norm(f"{mlp}.norm", f"pre_mlp_layernorm_{i}."),
        *column(concat(f"{mlp}.gate", f"{mlp}.up"), f"mlps_{i}.linear_fc1", parts=2, bias=False),
        *row(f"{mlp}.down", f"mlps_{i}.linear_fc2", bias=False),
    )


LONGCAT = (
    *_half(0),
    *_half(1),
    plain("layers.*.moe.choice", "mlp.router.weight", when="mla0"),
    plain("layers.*.moe.choice_bias", "mlp.router.expert_bias", when="mla0"),
)

_M = "layers.*.mqa"


def _compressor(block: str, when: str) -> tuple[Line, ...]:
    at = "self_attention.compressor"
    return (
        plain(f"layers.*.{block}.ape", f"{at}.ape", when=when),
        plain(f"layers.*.{block}.norm", f"{at}.norm.weight", when=when),
        *whole(f"layers.*.{block}.gate", f"{at}.wgate", when=when),
        *whole(f"layers.*.{block}.kv", f"{at}.wkv", when=when),
    )


def _hyper(slot: str, at: str) -> tuple[Line, ...]:
    """Declare hyper-connections."""
    return (
        plain(f"{slot}.base", f"{at}.hc_base"),
        plain(f"{slot}.fn", f"{at}.hc_fn.weight"),
        plain(f"{slot}.scale", f"{at}.hc_scale"),
    )


DEEPSEEK_V4 = (
    *whole(f"{_M}.q_a", "self_attention.linear_q"),
    plain(f"{_M}.q_a_norm", "self_attention.q_layernorm.weight", when="mhc"),
    *column(f"{_M}.q_b", "self_attention.linear_q_up_proj", bias=False, when="mhc"),
    *whole(f"{_M}.kv", "self_attention.linear_kv"),
    plain(f"{_M}.kv_norm", "self_attention.kv_layernorm.weight", when="mhc"),
    *column(f"{_M}.o_a", "self_attention.linear_o_down_proj", bias=False),
    *row(f"{_M}.o_b", "self_attention.linear_o_up_proj", bias=False),
    plain(f"{_M}.sinks", "self_attention.attn_sink", cut=0),
    *_compressor("csa", "csa"),
    *_compressor("hca", "!csa"),
    *(
        plain(f"layers.*.csa.indexer.{slot}", f"self_attention.indexer.{name}")
        for slot, name in {
            "ape": "kv_compressor.ape",
            "norm": "kv_compressor.norm.weight",
            "gate": "kv_compressor.wgate.weight",
            "kv": "kv_compressor.wkv.weight",
            "q_b": "wq_b.weight",
            "weights": "weights_proj.weight",
        }.items()
    ),
    plain("layers.*.hash.table", "mlp.router.tid2eid"),
    *_hyper("layers.*.mhc.attn", "attn_mhc"),
    *_hyper("layers.*.mhc.mlp", "mlp_mhc"),
)
# Outside of layers, and around those for multi-token prediction.
DEEPSEEK_V4_ENDS = (
    *_hyper("hc_head", "hc_head"),
    *_hyper("mtp.*.hc_head", "mtp.layers.*.hc_head"),
    *column(
        transposed(concat(transposed("mtp.*.e_proj"), transposed("mtp.*.h_proj"))),
        "mtp.layers.*.eh_proj",
        bias=False,
        when="mhc",
    ),
)
