"""Find config and tokenizer files: beside the weights, in a folder, or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptconv.errors import CkptconvError, UsageError
from ckptconv.places.places import is_remote, place
from ckptconv.plans.loaded import TOKENIZER_FILES

__all__ = ["CONFIG", "GENERATION_CONFIG", "TOKENIZER_FILES", "find_assets", "tokenizer_files"]

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


def find_assets(
    given: str | None, beside: Sequence[Path], patterns: Sequence[str] = TOKENIZER_FILES, *, flag: str
) -> tuple[Path | None, str]:
    """Return the folder that holds assets, and how to name it to people.

    Args:
        given: A folder, a file in one, or a hub id; None to look beside the checkpoint.
        beside: Folders to look in, nearest first.
        patterns: What makes a folder beside the checkpoint the one.
        flag: The flag ``given`` is from, for errors.

    Raises:
        UsageError: if ``given`` is neither a folder nor a hub id.
        CkptconvError: if the hub cannot be reached or does not have it.
    """
    if given is None:
        for folder in beside:
            if any(p.is_file() for pattern in patterns for p in folder.glob(pattern)):
                return folder, str(folder)
        return None, ""
    path = place(given).expanduser()
    if path.is_file():
        if flag == "--config" and path.name != CONFIG:
            raise UsageError(
                f"{flag}: {path.name} is not {CONFIG}", hint="give the folder that holds config.json"
            )
        return path.parent, str(path.parent)
    if path.is_dir():
        return path, str(path)
    if given.count("/") > 1 or given.startswith((".", "/", "~")) or is_remote(given):
        raise UsageError(
            f"{flag}: no such folder: {given}", hint="give a folder or a hub id such as org/model"
        )
    return _from_hub(given, flag), f"{given} on the hub"


def tokenizer_files(folder: Path) -> list[str]:
    """List the tokenizer, template and processor files of a folder, as paths relative to it."""
    found = [p for pattern in TOKENIZER_FILES for p in sorted(folder.glob(pattern)) if p.is_file()]
    return [p.relative_to(folder).as_posix() for p in found]


def _from_hub(repo: str, flag: str) -> Path:
    """Fetch config and tokenizer files of a hub model; HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN count."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError) as e:
        raise CkptconvError(
            f"{flag}: {(str(e).strip().splitlines() or [type(e).__name__])[0]}",
            hint="check the name, or give a folder",
        ) from e
    except (LocalEntryNotFoundError, OSError) as e:
        raise CkptconvError(
            f"{flag}: {repo} is no folder here, and the hub cannot be reached: {type(e).__name__}",
            hint="check the name, HF_ENDPOINT and HF_HUB_OFFLINE, or give a folder",
        ) from e
