"""Find a tensor by a name of its producer's or of Hugging Face's, and explain where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from ckptconv.api.diff import View, as_opened, under_hf_names
from ckptconv.errors import PlanError, UsageError
from ckptconv.places.places import PathArg, place
from ckptconv.planning.decode import quantised, with_values
from ckptconv.planning.request import about_source, request_of
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.request import Request
from ckptconv.plans.shown import Shown
from ckptconv.readers.registry import open_checkpoint
from ckptconv.records import dataclass
from ckptconv.relations import Spec
from ckptconv.verify.explain import Explained
from ckptconv.verify.explain import explain as explain_plan
from ckptconv.verify.overview import rank_paths

__all__ = ["HUGGING_FACE", "Match", "explain", "explain_in"]

HUGGING_FACE = "Hugging Face"


@dataclass(frozen=True, slots=True, repr=False)
class Match(Shown):
    """Name a tensor, and say whose name that is."""

    name: str
    names: str
    spec: Spec

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        return {"name": self.name, "of": self.names, "shape": self.spec.shape, "dtype": self.spec.dtype}


@dataclass(frozen=True, slots=True)
class _Names:
    """A checkpoint's tensors under all names that are known."""

    views: dict[str, View]
    refused: PlanError | None


def explain(
    path: PathArg,
    name: str,
    *,
    config: str | None = None,
    family: str | None = None,
    vocab_size: int | None = None,
    **fields: Any,
) -> Explained | tuple[Match, ...]:
    """Say from which files, ranks and bytes a tensor comes; only metadata is read.

    Args:
        path: The checkpoint.
        name: The tensor, by the producer's name for it or Hugging Face's, or a glob pattern.
        config: Folder or hub id of config.json, for Hugging Face's names.
        family: The architecture's table.
        vocab_size: True rows of the vocabulary.
        **fields: What is said about the checkpoint, as in `ckptconv.open`.

    Returns:
        The explanation; or what a pattern matches, if that is several tensors.

    Raises:
        UsageError: if there is no such tensor; near names are in the hint.
    """
    checkpoint = open_checkpoint(place(path), about_source(fields))
    said = {"config": config, "family": family, "vocab_size": vocab_size}
    options = request_of({n: v for n, v in said.items() if v is not None})
    known = _names(checkpoint, options)
    for names, view in known.views.items():
        if (target := _resolve(view, name)) is not None:
            asked = name if target != name else None
            (found,) = explain_plan(view.plan, [target], names, rank_paths(checkpoint))
            return replace(found, asked=asked)
    matches = _matching(known, [name])
    if not matches:
        raise _unknown(known, name, checkpoint)
    if len({m.name for m in matches}) > 1:
        return tuple(matches)
    one = matches[0]
    return explain_plan(known.views[one.names].plan, [one.name], one.names, rank_paths(checkpoint))[0]


def explain_in(checkpoint: Checkpoint, names: Sequence[str]) -> list[Explained]:
    """Explain tensors by the producer's names for them."""
    return explain_plan(as_opened(checkpoint).plan, names, checkpoint.producer, rank_paths(checkpoint))


def _names(checkpoint: Checkpoint, options: Request) -> _Names:
    views = {checkpoint.producer: as_opened(checkpoint)}
    coded = quantised(checkpoint)
    if coded is not None and coded.members:
        values = under_hf_names(with_values(checkpoint), options)
        return _Names({HUGGING_FACE: values, "as stored": views[checkpoint.producer]}, None)
    try:
        hf = under_hf_names(checkpoint, options)
    except PlanError as e:
        if options.config is not None or options.family is not None:
            raise
        return _Names(views, e)
    if set(hf.names) | set(hf.aliases) == set(checkpoint.relation.right) | set(checkpoint.aliases):
        return _Names({HUGGING_FACE: hf}, None)
    return _Names({**views, HUGGING_FACE: hf}, None)


def _resolve(view: View, name: str) -> str | None:
    """Return the tensor of this name, or the one it shares its data with."""
    kept = view.aliases.get(name, name)
    return kept if kept in view.plan.relation.right else None


def _matching(known: _Names, patterns: Sequence[str]) -> list[Match]:
    return [
        Match(n, names, view.plan.relation.right[n])
        for names, view in known.views.items()
        for n in view.names
        if any(fnmatchcase(n, p) for p in patterns)
    ]


def _unknown(known: _Names, name: str, checkpoint: Checkpoint) -> UsageError:
    every = list(dict.fromkeys(n for v in known.views.values() for n in (*v.names, *v.aliases)))
    near = get_close_matches(name, every, 3, 0.6) or [n for n in every if name in n][:3]
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"names are such as {', '.join(every[:3])}; ckptconv inspect lists them"
    if known.refused is not None:
        hint += f" (Hugging Face's names are not known: {known.refused.message}; give --config)"
    return UsageError(f"there is no tensor {name}", where=checkpoint.data, hint=hint)
