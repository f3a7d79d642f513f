"""Let the collector of cycles rest while many objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_collector"]


@contextmanager
def without_collector() -> Iterator[None]:
    """Make many objects that stay without looking through them for cycles again and again.

    A checkpoint of thousands of ranks is millions of them: a tenth of the time it takes to open. Afterwards
    they are old ones, which are looked through seldom (what is thawed joins the oldest).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if not gc.get_freeze_count():  # else someone else's would thaw
                gc.freeze()
                gc.unfreeze()
            gc.enable()
