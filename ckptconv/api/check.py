"""Compare a folder's files with their certificate."""

from __future__ import annotations

from ckptconv.api.progress import following
from ckptconv.engine.events import Listener
from ckptconv.places.places import PathArg
from ckptconv.verify import certificate
from ckptconv.verify.certificate import Checked

__all__ = ["check"]


def check(
    folder: PathArg, *, workers: int = 0, listen: Listener | None = None, progress: bool = False
) -> Checked:
    """Compare a folder's files with the certificate among them; the source is not needed.

    Args:
        folder: A folder that was verified.
        workers: Files read at a time; 0 is two a core, at most 8.
        listen: Called with every event, from any thread.
        progress: Show a bar.

    Returns:
        What differs: ``ok``, ``wrong`` and ``extra``.

    Raises:
        CkptconvError: if there is no certificate, or it is none.
    """
    with following(listen, "checking", progress=progress) as tell:
        return certificate.check(folder, tell, workers)
