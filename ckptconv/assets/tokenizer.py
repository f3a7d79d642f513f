"""Collect tokenizer files, or make the full set from a bare vocabulary."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from ckptconv.assets.find import tokenizer_files
from ckptconv.errors import FormatError
from ckptconv.places.regular import read_bytes
from ckptconv.plans.plan import AssetFile

__all__ = ["collect_tokenizer"]

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def collect_tokenizer(folder: Path, origin: str, config: Path | None) -> list[AssetFile]:
    """Return a folder's tokenizer files byte for byte; a bare vocabulary becomes the full set first.

    Args:
        folder: Where they are.
        origin: The folder's name for people.
        config: The folder of config.json, which tells transformers the kind of tokenizer.

    Raises:
        FormatError: if transformers cannot make a tokenizer from the vocabulary.
    """
    names = tokenizer_files(folder)
    files = [AssetFile(n, origin, read_bytes(folder / n, within=folder)) for n in names]
    bare = "tokenizer.json" not in names and "tokenizer_config.json" not in names
    if bare and ({"vocab.json", "merges.txt"} <= set(names) or any(n in names for n in _SENTENCEPIECE)):
        known = {f.name for f in files}
        files += [f for f in _made(folder, names, config) if f.name not in known]
    return files


def _made(folder: Path, names: list[str], config: Path | None) -> list[AssetFile]:
    """Let transformers make tokenizer.json and its companions."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work, "in"), Path(work, "out")
        source.mkdir()
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, source / name)
        if config is not None:
            shutil.copyfile(config / "config.json", source / "config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
            tokenizer.save_pretrained(str(target))
        except Exception as e:  # transformers raises every kind here
            why = (str(e).splitlines() or [type(e).__name__])[0]
            raise FormatError(
                f"transformers cannot make a tokenizer from {', '.join(names)}: {why}",
                where=folder,
                hint="pip install 'ckptconv[tokenizers]' for a sentencepiece model; or give a folder with "
                "tokenizer.json by --tokenizer, or write no assets with --no-assets",
            ) from e
        special = target / "special_tokens_map.json"
        if not special.exists():  # transformers 5 leaves it out; older releases look for it
            special.write_text(json.dumps(tokenizer.special_tokens_map, indent=2) + "\n", encoding="utf-8")
        return [
            AssetFile(p.relative_to(target).as_posix(), "made by transformers", p.read_bytes(), True)
            for p in sorted(target.rglob("*"))
            if p.is_file()
        ]
