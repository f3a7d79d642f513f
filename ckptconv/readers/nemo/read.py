"""Read what NeMo 1 leaves: a ``.nemo`` archive, or the folder it was unpacked to.

NeMo 1.23, ``core/connectors/save_restore_connector.py``, ``collections/nlp/parts/nlp_overrides.py``: beside
``model_config.yaml`` lies ``model_weights.ckpt``, one in a folder for each rank (``mp_rank_00``; with
pipeline stages ``tp_rank_00_pp_rank_000``), or a distributed checkpoint in ``model_weights``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.dcp.dcp import DcpFolder, open_dcp, open_dcp_inside
from ckptconv.containers.tarindex import Member, tar_members
from ckptconv.containers.torch.rankfile import RankFile, tensors_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.dialects.saved import COMMON
from ckptconv.errors import FormatError
from ckptconv.facts.nemo import nemo_arguments
from ckptconv.places.jsonfile import parse_json
from ckptconv.places.regular import open_binary, read_bytes
from ckptconv.places.window import Window
from ckptconv.places.yamlfile import parse_yaml
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.megatron.find import Run
from ckptconv.readers.megatron.options import MegatronOptions
from ckptconv.readers.megatron.read import joined
from ckptconv.readers.nemo.find import CONFIG, FOLDER, WEIGHTS
from ckptconv.readers.torch_dist.find import Located
from ckptconv.readers.torch_dist.options import TorchDistOptions
from ckptconv.readers.torch_dist.read import opened
from ckptconv.records import dataclass

__all__ = ["open_checkpoint"]

_RANK: Final = re.compile(
    rf"(?:(?:mp_rank_(?P<alone>\d+)|tp_rank_(?P<tp>\d+)_pp_rank_(?P<pp>\d+))/)?{re.escape(WEIGHTS)}"
)
_MODEL: Final = "model."
_MOST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class _Files:
    """Know the files of a model, in a folder or in an archive: there each has a place."""

    path: Path
    members: Mapping[str, Member] | None

    def names(self) -> list[str]:
        """List the files that may be the model's, relative to where it lies."""
        if self.members is not None:
            return [*self.members]
        found = [*self.path.glob("*"), *self.path.glob("*_rank_*/*"), *self.path.glob(f"{FOLDER}*")]
        return sorted(p.relative_to(self.path).as_posix() for p in found if p.is_file())

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        if self.members is None:
            return read_bytes(self.path / name, most=_MOST, within=self.path)
        at = self.members[name]
        if at.size > _MOST:
            raise FormatError(f"{name} has {at.size:,} bytes", where=self.path)
        with open_binary(self.path) as file:
            return Window(file, str(self.path), at.offset, at.size).read_at(0, at.size)

    def torch(self, name: str) -> Any:
        """Return what a file of ``torch.save`` holds; tensors are located."""
        if self.members is None:
            return open_torch(self.path / name).root
        at = self.members[name]
        return open_torch(self.path, offset=at.offset, length=at.size).root

    def dcp(self) -> DcpFolder:
        """Open the distributed checkpoint in ``model_weights``."""
        if self.members is None:
            return open_dcp(self.path / FOLDER)
        return open_dcp_inside(self.path, self.members, FOLDER)


def open_checkpoint(path: Path, options: MegatronOptions) -> Checkpoint:
    """Open an archive or its folder; see `ckptconv.readers.reader.Reader`."""
    if path.is_dir() and not (path / CONFIG).is_file():
        path = path.parent
    files = _Files(path, tar_members(path) if path.is_file() else None)
    names = files.names()
    if CONFIG not in names:
        raise FormatError(f"there is no {CONFIG} in it", where=path, hint="is it an archive of NeMo 1?")
    config = parse_yaml(files.read(CONFIG), where=path)
    if not isinstance(config, dict):
        raise FormatError(f"{CONFIG} holds no settings", where=path)
    arguments = nemo_arguments(config)
    ranks = {name: match for name in names if (match := _RANK.fullmatch(name)) is not None}
    if ranks:
        made = _of_ranks(files, ranks, arguments, options)
    elif any(name.startswith(FOLDER) for name in names):
        made = _distributed(files, arguments, options)
    else:
        raise FormatError(
            f"there is neither {WEIGHTS} nor {FOLDER} in it",
            where=path,
            hint="archives without weights cannot be converted",
        )
    return replace(
        made,
        producer="nemo",
        format=f"NeMo 1{' archive' if files.members is not None else ''}, {made.format}",
        notes=(Note("info", f"the model is what {CONFIG} says"), *_tokenizer(files, names), *made.notes),
    )


def _of_ranks(
    files: _Files, ranks: Mapping[str, re.Match[str]], arguments: Mapping[str, Any], options: MegatronOptions
) -> Checkpoint:
    """Join the ranks' state dicts, whose names begin with ``model.``."""
    found: dict[str, RankFile] = {}
    for name, match in ranks.items():
        tp, pp = int(match["tp"] or match["alone"] or 0), match["pp"]
        folder = f"mp_rank_{tp:02d}" + (
            f"_{int(pp):03d}" if pp is not None and _stages(arguments) > 1 else ""
        )
        root = files.torch(name)
        if not isinstance(root, dict):
            raise FormatError(f"{name} holds no state dict", where=files.path)
        tensors = {n.removeprefix(_MODEL): t for n, t in tensors_of(root, files.path)}
        within = files.path if files.members is not None else None
        # All that is in an archive has its path; these are told apart.
        at = files.path / name
        found[folder] = RankFile(at, {}, dict(arguments), 3.0, None, {0: tensors}, within=within)
    run = Run(files.path, files.path, dict.fromkeys(found, files.path))
    return joined(run, found, options)


def _stages(arguments: Mapping[str, Any]) -> int:
    size = arguments.get("pipeline_model_parallel_size")
    return size if isinstance(size, int) else 1


def _distributed(files: _Files, arguments: Mapping[str, Any], options: MegatronOptions) -> Checkpoint:
    """Read a distributed checkpoint of megatron-core.

    Raises:
        FormatError: if it was saved with another backend than torch's.
    """
    marker = f"{FOLDER}metadata.json"
    said = parse_json(files.read(marker), where=files.path) if marker in files.names() else {}
    backend = said.get("sharded_backend", "torch_dist") if isinstance(said, dict) else ""
    if backend != "torch_dist":
        raise FormatError(
            f"saved with the {backend} backend, which is not read",
            where=files.path,
            hint="load it with NeMo, and save it with dist_ckpt_format: torch_dist",
        )
    dcp = files.dcp()
    common = files.torch(FOLDER + COMMON) if FOLDER + COMMON in files.names() else {}
    located = Located(files.path, files.path, backend)
    how = TorchDistOptions(**{n: getattr(options, n) for n in ("tp", "pp", "vpp", "ep", "etp", "weights")})
    run = (dict(arguments), (Note("info", "the parallel sizes were those of the run"),))
    return opened(located, dcp, common if isinstance(common, dict) else {}, run, how)


def _tokenizer(files: _Files, names: list[str]) -> list[Note]:
    """Say which files of the archive are the tokenizer's: they are not unpacked."""
    found = [n for n in names if "tokenizer" in n.lower() and not n.endswith(".yaml")]
    if files.members is None or not found:
        return []
    text = f"the archive holds the tokenizer's files ({', '.join(found[:4])}): unpack them for --tokenizer"
    return [Note("info", text)]
