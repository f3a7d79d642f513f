"""Qwen3.5 and 3.6, dense and with experts: Qwen3-Next whose delta nets have projections of their own.

transformers 5.23, ``modeling_qwen3_5.py`` and ``modeling_qwen3_5_moe.py``.
"""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS
from ckptconv.families.moe import PLAIN_ROUTING, ROUTED
from ckptconv.families.qwen3_next import (
    DELTA_ASSUMED,
    DELTA_FIXED,
    DELTA_KEYS,
    FLAGS,
    GATED_ATTENTION,
    SHARED,
    SPARSE_KEYS,
    delta_net,
    kinds,
    mixers,
    with_mtp,
)
from ckptconv.families.template import decoder
from ckptconv.slots import concat, one

_L = "model.layers.*.linear_attn"
_D = "layers.*.gdn"
DELTA_NET = delta_net(
    one(concat(f"{_D}.q", f"{_D}.k", f"{_D}.v"), f"{_L}.in_proj_qkv.weight"),
    one(f"{_D}.z", f"{_L}.in_proj_z.weight"),
    one(f"{_D}.beta", f"{_L}.in_proj_b.weight"),
    one(f"{_D}.alpha", f"{_L}.in_proj_a.weight"),
)
DENSE = (*GATED_ATTENTION, *DELTA_NET, *NORMS, *MLP)
SPARSE = (*GATED_ATTENTION, *DELTA_NET, *NORMS, *ROUTED, *SHARED)
QWEN3_5 = Family(
    name="qwen3_5_text",
    model_types=("qwen3_5_text",),
    entries=(EMBED, *with_mtp(DENSE), *ENDS),
    flags={k: v for k, v in FLAGS.items() if k != "decoder_sparse_step"},
    ignored=IGNORED,
    kinds=lambda config: tuple(f"{mixer} mlp" for mixer in mixers(config)),
    zero_centered=True,
    plain_norms=("layers.*.gdn.norm",),
    template=decoder("Qwen3_5ForCausalLM", DELTA_KEYS, fixed=DELTA_FIXED, assumed=DELTA_ASSUMED),
)
QWEN3_5_MOE = Family(
    name="qwen3_5_moe_text",
    model_types=("qwen3_5_moe_text",),
    entries=(EMBED, *with_mtp(SPARSE), *ENDS),
    flags=FLAGS,
    ignored=IGNORED,
    kinds=kinds,
    zero_centered=True,
    plain_norms=("layers.*.gdn.norm",),
    template=decoder(
        "Qwen3_5MoeForCausalLM",
        {**DELTA_KEYS, **SPARSE_KEYS},
        without=("intermediate_size",),
        fixed={**DELTA_FIXED, "norm_topk": True, "shared_gate": True, "dense_layers": [], **PLAIN_ROUTING},
        assumed=DELTA_ASSUMED,
        like=("qwen3_next",),
    ),
)
