"""Say where one is with a checkpoint: architecture, config, tokenizer, steps, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

from ckptconv.assets.find import CONFIG, find_assets
from ckptconv.errors import CkptconvError
from ckptconv.places.places import PathArg, place
from ckptconv.planning.adapters.outlook import Adapters, adapters_in
from ckptconv.planning.model import Architecture, find_architecture
from ckptconv.planning.request import request_of
from ckptconv.plans.checkpoint import Checkpoint, beside_of
from ckptconv.readers.registry import READERS
from ckptconv.readers.saves import list_saves
from ckptconv.records import dataclass

__all__ = ["Outlook", "outlook"]

_COMMANDS = {
    "deepspeed": "deepspeed-to-hf",
    **dict.fromkeys(("megatron", "mindspeed-llm", "modellink"), "megatron-merge"),
    "mindspore": "mindformers-to-hf",
}


@dataclass(frozen=True, slots=True)
class Outlook:
    """Hold what is known beside the weights.

    Attributes:
        family: The architecture; None if none is known.
        config: Where config.json is, or what it is built from; None if it has to be given.
        tokenizer: The tokenizer's folder; None if none was found.
        adapters: How many weights have a LoRA adapter beside them.
        steps: The steps of the saves in the run's folder, oldest first.
        lacking: What a conversion to Hugging Face would say, if it cannot be done as it stands.
        command: What to type next.
    """

    family: str | None
    config: str | None
    tokenizer: str | None
    adapters: int
    steps: tuple[int, ...]
    lacking: str | None
    command: str


def outlook(path: PathArg, checkpoint: Checkpoint) -> Outlook:
    """Look for what a conversion needs beside the weights.

    Args:
        path: What the user named.
        checkpoint: What was opened there.
    """
    named = place(path)
    found, lacking = Architecture(None, None), None
    try:
        found = find_architecture(checkpoint, request_of({"to": "hf"}), needed=True)
    except CkptconvError as error:
        lacking = error.message
    folder, _ = find_assets(None, beside_of(checkpoint), flag="--tokenizer")
    config = found.config
    lora = adapters_in(checkpoint)
    origin = None if config is None else str(config.folder / CONFIG) if config.folder else config.origin
    return Outlook(
        family=None if found.family is None else found.family.name,
        config=origin,
        tokenizer=found.tokenizer or (None if folder is None else str(folder)),
        adapters=lora.count,
        steps=_steps(named),
        lacking=lacking,
        command=_command(named, checkpoint, lora, known=config is not None),
    )


def _steps(path: Path) -> tuple[int, ...]:
    """Return the steps of a run's saves, once each; none where a save itself is named."""
    if not path.is_dir():
        return ()
    try:
        saves = list_saves(path, READERS).saves
    except CkptconvError:
        return ()
    return tuple(dict.fromkeys(s.step for s in saves if s.step is not None and s.path != path))


def _command(path: Path, checkpoint: Checkpoint, lora: Adapters, *, known: bool) -> str:
    """Return the command for what was found, with what has to be given."""
    source = shlex.quote(str(path))
    if checkpoint.producer == "huggingface" and lora.count and "merge" not in lora.flags:
        return f"ckptconv convert {shlex.quote(lora.base or 'MODEL')} OUT --to hf --adapter {source}"
    if checkpoint.producer == "huggingface" and not lora.count:
        return f"ckptconv convert {source} OUT --to torch_dist"
    own = _COMMANDS.get(checkpoint.producer)
    command = f"ckptconv {own} {source} OUT" if own else f"ckptconv convert {source} OUT --to hf"
    flags = [*lora.flags] if known else [*lora.flags, "--config", shlex.quote(lora.base or "DIR_OR_HUB_ID")]
    return " ".join((command, *flags))
