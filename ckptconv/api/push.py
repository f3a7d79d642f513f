"""Publish a verified model on the hub, with a card that says what it is and how it was verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.api.progress import following
from ckptconv.assets.card import CARD, is_ours, model_card
from ckptconv.assets.find import CONFIG
from ckptconv.assets.publish import Repository, repository
from ckptconv.engine.events import Listener, Progress, Started
from ckptconv.errors import FormatError, MismatchError, UsageError
from ckptconv.places.jsonfile import read_json
from ckptconv.places.places import PathArg, is_remote, place
from ckptconv.places.unfinished import JOURNAL
from ckptconv.records import dataclass
from ckptconv.verify import certificate
from ckptconv.verify.certificate import NAME

__all__ = ["Pushed", "push"]

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Pushed:
    """Say what was published.

    Attributes:
        url: Where it is.
        commit: The address of the commit.
        files: The files of the commit.
        bytes: What they hold together.
        card: Whether a model card was made.
    """

    url: str
    commit: str
    files: tuple[str, ...]
    bytes: int
    card: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "url": self.url,
            "commit": self.commit,
            "files": list(self.files),
            "bytes": self.bytes,
            "card": self.card,
        }


def push(
    folder: PathArg,
    to: str,
    *,
    private: bool = False,
    revision: str | None = None,
    listen: Listener | None = None,
    progress: bool = False,
) -> Pushed:
    """Publish a model's folder in one commit, once its files have proved to be those that were verified.

    What the hub has already is not sent again, so that after an interruption the same call goes on.
    HF_ENDPOINT and HF_TOKEN count. A model card is made unless the folder or the repository has one.

    Args:
        folder: A folder on disk with a certificate: from ``--verify`` or `verify_roundtrip` with ``certify``.
        to: The repository, ``USER/MODEL``; it is made if it is not there.
        private: Only its owners are to see it; refused if it is there and public.
        revision: The branch, made if it is not there; the main one if not given.
        listen: Called with events, the bytes of each file as it is sent among them.
        progress: Show a bar.

    Raises:
        UsageError: if ``to`` is no name of a repository.
        MismatchError: if a file is not as it was verified.
        CkptconvError: if there is no certificate, nobody is logged in, or the hub refuses.
    """
    path, where = place(folder), repository(to, private=private, revision=revision)
    said = _verified(path)
    files: dict[str, Path | bytes] = {name: path / name for name in _names(path, said)}
    sizes = {name: held.stat().st_size for name, held in files.items() if isinstance(held, Path)}
    where.make()
    if CARD not in files and (card := _card(path, where, said)) is not None:
        files[CARD] = card
        sizes[CARD] = len(card)
    with following(listen, "sending", progress=progress) as heard:
        tell = heard or (lambda event: None)
        tell(Started(sum(sizes.values()), 0))
        commit = where.send(files, f"{said['tool']}: {path.name or to}", lambda n: tell(Progress(n)))
    made = isinstance(files.get(CARD), bytes)
    return Pushed(where.url, commit, tuple(files), sum(sizes.values()), made)


def _verified(folder: Path) -> Mapping[str, Any]:
    """Return the certificate of a folder that is as it says.

    Raises:
        MismatchError: if it is not.
    """
    if is_remote(folder):
        raise UsageError("only a folder on disk is published", hint="copy it here first")
    if not folder.is_dir():
        raise FormatError("no such folder", where=folder, hint="check the path")
    if (folder / JOURNAL).exists():
        raise FormatError(
            "a conversion into this folder is not done", where=folder, hint="run it again with --resume"
        )
    found = certificate.check(folder)
    if not found.ok:
        name, text = next(iter(found.wrong.items()))
        raise MismatchError(
            f"{name} {text}: the files are not those that were verified",
            where=folder,
            hint="verify it again (ckptconv verify-roundtrip SRC OUT), or convert again",
        )
    return found.certificate


def _names(folder: Path, said: Mapping[str, Any]) -> list[str]:
    """Return what is published: certified files, what else is there, the certificate and its signatures.

    A link that nobody has certified may lead anywhere, and stays here.
    """
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    every = [
        q for p in found if (q := p.relative_to(folder)).as_posix() in said["files"] or not p.is_symlink()
    ]
    shown = [p.as_posix() for p in every if not any(part.startswith(".") for part in p.parts)]
    names = [n for n in shown if not n.endswith(".part")]
    return sorted(names, key=lambda n: (n.startswith(NAME), n not in said["files"], n))


def _card(folder: Path, where: Repository, said: Mapping[str, Any]) -> bytes | None:
    """Return the card to be sent; None if the repository has one that somebody wrote."""
    there = where.text(CARD)
    if there is not None and not is_ours(there):
        return None
    config = _json(folder / CONFIG)
    adapter = _json(folder / _ADAPTER) if (folder / _ADAPTER).is_file() else None
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    return model_card(where.name, config, said, digest, adapter).encode()


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
