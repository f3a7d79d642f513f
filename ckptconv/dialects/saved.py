"""Tell what a ``torch_dist`` checkpoint holds: the state all ranks share, and which tensors are weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.dialects.factors import own_name
from ckptconv.errors import FormatError

if TYPE_CHECKING:
    from ckptconv.containers.dcp.dcp import DcpFolder

__all__ = ["COMMON", "COMMON_OBJECT", "FORMAT", "OPTIMIZER", "beneath", "common_state", "weights_of"]

FORMAT: Final = "torch_dist format"
COMMON: Final = "common.pt"
OPTIMIZER: Final = re.compile(r"(?:chained_\d+\.)?optimizer\..+")
COMMON_OBJECT: Final = "common_state/shard_0_1"
_LARGER: Final = re.compile(r"(language_model\.|text_decoder\.)decoder\.")
_PREFIXES: Final = ("model.", "module.")
_COPY: Final = "copy the whole iteration again, from one save"


def common_state(dcp: DcpFolder) -> Mapping[str, Any]:
    """Return what all ranks share: arguments, iteration; from ``common.pt`` or, since core 0.19, a record.

    Raises:
        FormatError: if there is neither.
    """
    path = dcp.folder / COMMON
    root: object = None
    if path.is_file():
        root = open_torch(path).root
    elif COMMON_OBJECT in dcp.objects:
        root = dcp.read_object(COMMON_OBJECT)
        root = root[0] if isinstance(root, list) and root else root
    else:
        raise FormatError(f"there is no {COMMON} and no common state", where=dcp.folder, hint=_COPY)
    if not isinstance(root, dict):
        raise FormatError("the common state is no dict", where=dcp.folder, hint=_COPY)
    return root


def weights_of(dcp: DcpFolder, *, nested: bool = False) -> dict[str, str]:
    """Return the model's tensors: name in the files to name in the model.

    Args:
        dcp: What the metadata says.
        nested: Whether they lie under ``model`` in a state dict.
    """
    found = {}
    for key in dcp.tensors:
        if OPTIMIZER.fullmatch(key) or (nested and not key.startswith("model.")):
            continue
        name = key
        while name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        found[key] = own_name(name)
    prefix = beneath(found.values())
    return {key: name.removeprefix(prefix) for key, name in found.items()}


def beneath(names: Iterable[str]) -> str:
    """Return what is put before the names of the language model in a larger one.

    Megatron-Bridge 0.6 says ``language_model.``, MindSpeed-MM 57069cd5 ``text_decoder.``.
    """
    match = next((m for n in names if (m := _LARGER.match(n)) is not None), None)
    return "" if match is None else match[1]
