"""Find the names a module saves its parameters under, where its ``state_dict()`` renames them.

DeepSpeed names parameters as ``named_parameters()`` does, in ``param_shapes`` and ``frozen_param_shapes``;
the module's own ``state_dict()``, whose keys are in ``module``, may say otherwise. The value heads of TRL do
(trl 0.9, ``models/modeling_value_head.py``): the model is the attribute ``pretrained_model``, and saved
without that word; of one with a PEFT adapter nothing but the head is saved.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from ckptconv.containers.base import FileTensor

__all__ = ["renames"]

# An attribute that holds the model, and what else such a wrapper has.
_WRAPPERS = (("pretrained_model.", ("v_head.",)),)


def renames(
    module: Mapping[str, FileTensor], named: Mapping[str, tuple[int, ...]], others: Collection[str]
) -> dict[str, str]:
    """Return the names of parameters that are saved under another, and that other.

    Args:
        module: The state dict's tensors; those of stage 3 are placeholders of at most one element.
        named: Shapes of all parameters the files name.
        others: Keys of the module that are no parameters: buffers, and further names of shared ones.
    """
    unknown = {k: t for k, t in module.items() if k not in named and k not in others}
    absent = {n: s for n, s in named.items() if n not in module}
    if not absent:
        return {}
    for wrapper, beside in _WRAPPERS:
        if any(n.startswith(wrapper) for n in named) and all(n.startswith((wrapper, *beside)) for n in named):
            return _without(wrapper, absent, named)

    def is_like(key: str, name: str) -> bool:
        return unknown[key].shape == absent[name] or unknown[key].numel <= 1

    before = Counter(p for n in absent for p, rest in _cuts(n) if rest in unknown and is_like(rest, n))
    if before:
        return _without(before.most_common(1)[0][0], absent, named)
    behind = Counter(p for k in unknown for p, rest in _cuts(k) if rest in absent and is_like(k, rest))
    for prefix, _ in behind.most_common(1):
        return {n: prefix + n for n in absent if prefix + n in unknown}
    return {}


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Cut a name after each of its dots."""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _without(prefix: str, absent: Collection[str], named: Collection[str]) -> dict[str, str]:
    """Take a prefix off the names the module does not have, unless that makes two parameters one."""
    bare = {n: n.removeprefix(prefix) for n in absent if n.startswith(prefix) and n != prefix}
    return {} if any(new in named for new in bare.values()) else bare
