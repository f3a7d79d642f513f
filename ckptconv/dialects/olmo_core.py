"""OLMo-core's names: OLMo-core 3.0, ``olmo_core/nn/hf/convert.py``.

What norms stand before or after is for the block to say: ``reordered_norm`` is OLMo 2's, after.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.dialects.base import Dialect, module, norm, plain, prefixed
from ckptconv.facts.olmo import olmo_facts
from ckptconv.relations import Spec
from ckptconv.slots import Words

__all__ = ["OLMO_CORE"]


def _open(tensors: Mapping[str, Spec], words: Words) -> dict[str, bool]:
    """Leave to the run's config what stands where: norms of all heads are OLMo 2's."""
    whole = any(n.endswith(".attention.q_norm.weight") and s.shape[0] > 256 for n, s in tensors.items())
    return {"reordered": whole}


OLMO_CORE = Dialect(
    name="olmo-core",
    library="OLMo-core",
    lines=(
        plain("embed", "embeddings.weight"),
        *prefixed(
            (
                *norm("layers.*.attn_norm", "attention_norm.", when="!reordered"),
                *norm("layers.*.attn_post_norm", "attention_norm.", when="reordered"),
                *module("layers.*.attn.q", "attention.w_q"),
                *module("layers.*.attn.k", "attention.w_k"),
                *module("layers.*.attn.v", "attention.w_v"),
                *norm("layers.*.attn.q_norm", "attention.q_norm."),
                *norm("layers.*.attn.k_norm", "attention.k_norm."),
                *module("layers.*.attn.o", "attention.w_out"),
                *norm("layers.*.mlp_norm", "feed_forward_norm.", when="!reordered"),
                *norm("layers.*.mlp_post_norm", "feed_forward_norm.", when="reordered"),
                *module("layers.*.mlp.gate", "feed_forward.w1"),
                *module("layers.*.mlp.down", "feed_forward.w2"),
                *module("layers.*.mlp.up", "feed_forward.w3"),
            ),
            "blocks.*.",
        ),
        *norm("final_norm", "lm_head.norm."),
        plain("head", "lm_head.w_out.weight"),
    ),
    reads=("reordered",),
    leaves_open=_open,
    ranks=False,
    facts=olmo_facts,
    bare=lambda name: name.removeprefix("model."),
)
