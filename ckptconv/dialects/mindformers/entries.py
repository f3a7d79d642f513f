"""Tell weights from what MindSpore saves beside them, by name."""

from __future__ import annotations

__all__ = ["KEPT", "MASTER", "MASTERS", "STEP", "beside_weights", "weight_of"]

MASTER = "main_param."
"""What stands before a weight's name where its fp32 master is saved (mindformers 2.1, ``pynative``)."""

MASTERS = "fp32 masters"
"""Their kind."""

# Parameter.clone(prefix) and names made by hand: mindspore 2.9, nn/optim/*.py; mindformers 1.9,
# core/optim/*.py, wrapper/wrapper.py.
_PREFIXES = (
    ("optimizer states", ("adam_m.", "adam_v.", "muon_m.", "moments.", "moments1.", "moments2.", "moment1.",
                          "moment2.", "accum.", "exp_avg.", "exp_avg_sq.", "max_exp_avg_sq.", "exp_avg_sq_",
                          "exp_avg_insta_", "vhat.", "mean_square.", "mean_gradients.")),
    (MASTERS, (MASTER,)),
    ("gradients", ("accu_grads.",)),
)  # fmt: skip
# mindformers 1.9, core/callback/callback.py (filter_list), which leaves most of them out itself; 2.1,
# pynative/transformers/moe, whose layers and routers count tokens and steps.
_ANYWHERE = (
    "accu_grads", "fi_parameter", "zeros_k_pe", "zeros_k_nope", "zeros_value_states", "_cache",
    "_device_local_norm", "_device_local_loss", "expert_load", "max_logits_val",
    ".tokens_per_expert", ".global_tokens_per_expert", ".router.ga_steps",
)  # fmt: skip
_EXACTLY = frozenset({
    "global_step", "learning_rate", "scale_sense", "epoch_num", "step_num", "cur_epoch_num", "cur_step_num",
    "loss_scale", "global_batch_size", "current_iterator_step", "last_overflow_iterator_step", "ckpt_status",
    "beta1_power", "beta2_power", "network", "random_op", "cur_rank_stop",
})  # fmt: skip

STEP = ("step_num", "global_step")
"""Entries that hold the training step, the best first."""


KEPT = ("optimizer states", MASTERS, "training state")
"""Kinds that training goes on with."""


def weight_of(name: str) -> str | None:
    """Return the weight an optimizer state or a master belongs to, None for other entries."""
    prefixes = [p for kind, found in _PREFIXES if kind in KEPT for p in found if p.endswith(".")]
    return next((name[len(p) :] for p in prefixes if name.startswith(p)), None)


def beside_weights(name: str) -> str | None:
    """Return what kind of training state an entry is, or ``None`` for a weight."""
    for kind, prefixes in _PREFIXES:
        if name.startswith(prefixes):
            return kind
    if name in _EXACTLY:
        return "training state"
    return "buffers" if any(part in name for part in _ANYWHERE) else None
