"""Say of a checkpoint's LoRA adapters what a conversion has to be told of them."""

from __future__ import annotations

from ckptconv.dialects.factors import factor_of, own_name
from ckptconv.errors import CkptconvError
from ckptconv.planning.adapters.adapter import AdapterConfig
from ckptconv.planning.adapters.said import find_adapter_config
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.records import dataclass

__all__ = ["Adapters", "adapters_in"]


@dataclass(frozen=True, slots=True)
class Adapters:
    """Count LoRA adapters, and say which flags they need.

    Attributes:
        count: How many weights have one.
        flags: The flags, as they are typed; ``ALPHA`` stands for what nothing says.
        base: The folder or hub id of the base model, where a file says it.
    """

    count: int = 0
    flags: tuple[str, ...] = ()
    base: str | None = None


def adapters_in(checkpoint: Checkpoint) -> Adapters:
    """Find adapters by the names of their factors; only those that stand beside other weights are merged."""
    names = (*checkpoint.relation.right, *checkpoint.aliases)
    factors = {n: f.weight for n in names if (f := factor_of(n)) is not None}
    adapted = {own_name(w) for w in factors.values()}
    if not adapted:
        return Adapters()
    whole = adapted <= {own_name(n) for n in names if n not in factors}
    flags = ["--lora", "merge" if whole else "adapter"]
    config = _config(checkpoint)
    values = {} if config is None else config.values
    if values.get("lora_alpha") is None:
        flags += ["--lora-alpha", "ALPHA"]
    base = values.get("base_model_name_or_path")
    return Adapters(len(adapted), tuple(flags), base if isinstance(base, str) and base else None)


def _config(checkpoint: Checkpoint) -> AdapterConfig | None:
    folder = checkpoint.data if checkpoint.data.is_dir() else checkpoint.data.parent
    try:
        return find_adapter_config(checkpoint, checkpoint.root, folder)
    except CkptconvError:
        return None  # converting says what is wrong with it
