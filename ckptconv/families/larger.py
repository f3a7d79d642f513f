"""Declare models that see or hear by the language model that stands in them, and parts that pass through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ckptconv.families import find_family
from ckptconv.families.base import Config, Family, FamilyPart
from ckptconv.slots import Entry

__all__ = ["around_any", "larger", "passing"]


def passing(*prefixes: str) -> tuple[FamilyPart, ...]:
    """Declare parts whose tensors keep their names: the same in frameworks, but for a leading ``model.``."""
    return tuple(FamilyPart(prefix, prefix.removeprefix("model.")) for prefix in prefixes)


def larger(
    text: Family,
    model_type: str,
    *,
    parts: tuple[FamilyPart, ...],
    body: str = "model.",
    head: str = "lm_head.",
    inside: str = "text_config",
) -> Family:
    """Declare a larger model around a language model.

    Args:
        text: The language model's family.
        model_type: That of config.json, and the name for ``--family``.
        parts: The other parts.
        body: What stands for ``model.`` in the language model's names.
        head: What stands for ``lm_head.``.
        inside: The key of config.json with the language model's config.
    """
    names = {"model.": body, "lm_head.": head}
    return replace(
        text,
        name=model_type,
        model_types=(model_type,),
        entries=_under(text.entries, names),
        ignored=(*text.ignored, r".*lm_head\.weight", r".*\.rotary_emb\.inv_freq"),
        template=None,
        inside=inside,
        language=text,
        beneath="language_model.",
        parts=parts,
    )


def around_any(
    model_type: str,
    *,
    parts: tuple[FamilyPart, ...],
    body: str = "model.language_model.",
    head: str = "lm_head.",
) -> Family:
    """Declare a larger model in which any language model may stand.

    Args:
        model_type: That of config.json, and the name for ``--family``.
        parts: The other parts.
        body: What stands for ``model.`` in the language model's names.
        head: What stands for ``lm_head.``.
    """

    def made(config: Config) -> Family | None:
        inner = config.get("text_config")
        text = find_family(inner.get("model_type")) if isinstance(inner, dict) else None
        if text is None or not text.entries:
            return None
        return larger(text, model_type, parts=parts, body=body, head=head)

    return Family(name=model_type, model_types=(model_type,), entries=(), flags={}, parts=parts, text=made)


def _under(entries: Iterable[Entry], names: dict[str, str]) -> tuple[Entry, ...]:
    def new(name: str) -> str:
        old = next((old for old in names if name.startswith(old)), "")
        return names[old] + name.removeprefix(old) if old else name

    return tuple(replace(e, name=new(e.name)) for e in entries)
