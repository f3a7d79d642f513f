"""torchtune's names: torchtune 0.6, ``models/convert_weights.py``, ``models/qwen2/_convert_weights.py``.

The rows of query and key lie in pairs, but not in the models it took from Qwen and Phi-3 (``qwen2`` and
``phi3``, ``_position_embeddings.py``). Names do not tell Phi-3 from Llama: the config does.
"""

from __future__ import annotations

from ckptconv.dialects.base import Dialect, module, norm, plain, prefixed
from ckptconv.slots import paired
from ckptconv.slots.words import of_family

__all__ = ["TORCHTUNE"]

_Q, _K = "layers.*.attn.q", "layers.*.attn.k"
_SCALE = ("scale", "bias")
_PHI = of_family("phi3")
_PAIRS, _HALVES = f"!halves !{_PHI}", ("halves", _PHI)


TORCHTUNE = Dialect(
    name="torchtune",
    library="torchtune",
    lines=(
        plain("embed", "tok_embeddings.weight"),
        *prefixed(
            (
                *norm("layers.*.attn_norm", "sa_norm.", names=_SCALE),
                *module(paired("heads", _Q), "attn.q_proj", _PAIRS),
                *module(paired("kv_heads", _K), "attn.k_proj", _PAIRS),
                *(line for when in _HALVES for line in module(_Q, "attn.q_proj", when)),
                *(line for when in _HALVES for line in module(_K, "attn.k_proj", when)),
                *module("layers.*.attn.v", "attn.v_proj"),
                *norm("layers.*.attn.q_norm", "attn.q_norm.", names=_SCALE),
                *norm("layers.*.attn.k_norm", "attn.k_norm.", names=_SCALE),
                *module("layers.*.attn.o", "attn.output_proj"),
                *norm("layers.*.mlp_norm", "mlp_norm.", names=_SCALE),
                *module("layers.*.mlp.gate", "mlp.w1"),
                *module("layers.*.mlp.down", "mlp.w2"),
                *module("layers.*.mlp.up", "mlp.w3"),
            ),
            "layers.*.",
        ),
        *norm("final_norm", "norm.", names=_SCALE),
        plain("head", "output.weight"),
    ),
    # Models of Qwen have biases of query and key, or norms of them; no other of torchtune's has.
    reads=(_PHI,),
    tells={"halves": r".*\.attn\.(q_proj\.bias|q_norm\.scale)"},
    ignored=(r".*\.rope\..*", r".*\.pos_embeddings\..*"),
    ranks=False,
    bare=lambda name: name.removeprefix("model."),
)
