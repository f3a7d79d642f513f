"""Send the files of a run to places behind URLs, part by part."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ckptconv.engine.abreast import Group
from ckptconv.engine.options import DIGEST_BLOCK
from ckptconv.engine.remotejournal import RemoteJournal
from ckptconv.engine.sink import PartFile, Sink, create
from ckptconv.engine.task import block_count
from ckptconv.errors import OutputError
from ckptconv.places import objects
from ckptconv.places.objects import Upload
from ckptconv.plans.plan import OutFile, Plan

__all__ = ["Outputs", "Parts", "Spooled", "check_spool", "cut_to"]

_SPOOLED = 2  # files that lie on disk at a time: one is sent while the next is made
_SENDING = 4  # parts of a file that lies on disk that are on their way at a time
_held = threading.BoundedSemaphore(8)  # of all such files


def check_spool(spool: Path, files: Iterable[OutFile]) -> None:
    """Refuse to start where what is first written to disk does not fit there.

    Raises:
        OutputError: if the two largest files that are spooled need more than is free.
    """
    sizes = sorted((f.layout.size for f in files if f.layout.needs_crc), reverse=True)
    need, free = sum(sizes[:_SPOOLED]), shutil.disk_usage(spool).free
    if need > free:
        raise OutputError(
            f"{need} bytes are to be spooled before they are sent, but only {free} are free",
            where=spool.parent,
            hint="set TMPDIR to a folder with more space, or write smaller files with --max-shard-size",
        )


def cut_to(room: int, sizes: Sequence[int]) -> list[range]:
    """Cut a sequence of files into runs of at most ``room`` bytes, each of one file at least.

    Args:
        room: Bytes.
        sizes: Of each file.
    """
    runs: list[range] = []
    first = held = 0
    for i, size in enumerate(sizes):
        if i > first and held + size > room:
            runs.append(range(first, i))
            first, held = i, 0
        held += size
    return [*runs, range(first, len(sizes))]


class Outputs:
    """Open the files of a run, and keep their uploads until they are to be seen.

    Args:
        plan: The plan.
        folder: The output folder.
        spool: A folder on disk.
        journal: The run's journal.

    Attributes:
        visible: Files that an earlier run has completed already.
    """

    def __init__(self, plan: Plan, folder: Path, spool: Path, journal: RemoteJournal) -> None:
        self._plan, self._folder, self._spool, self._journal = plan, folder, spool, journal
        self._abreast: set[str] = set()
        self._lock = threading.Lock()
        self._open: dict[str, Upload] = {}
        self._whole: dict[str, Upload] = {}
        self.visible: set[str] = set()

    def take_up(self, sizes: Mapping[str, int]) -> set[str]:
        """Return the files that an earlier run has sent whole; abort what it has not.

        Args:
            sizes: Bytes of each file of the plan.
        """
        for name, token in self._journal.abandoned:
            objects.known(str(self._folder / name), token).abort()
        for name, token in self._journal.uploads.items():
            url = str(self._folder / name)
            if name not in sizes or name not in self._journal.done:
                continue
            if upload := objects.resume(url, sizes[name], token):
                self._whole[name] = upload
            elif self._journal.naming and self._is_visible(name, sizes[name]):
                self.visible.add(name)
        return {*self._whole, *self.visible}

    def _is_visible(self, name: str, size: int) -> bool:
        path = self._folder / name
        return path.is_file() and path.stat().st_size == size

    def blocks(self, file: OutFile) -> int:
        """Return how many blocks of a file are one thread's: those of a part, unless it is spooled."""
        return 1 if self._is_spooled(file) else objects.part_size(file.layout.size) // DIGEST_BLOCK

    def fitting(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Return groups whose files fit on disk: what is made abreast is spooled, not held in parts.

        Half of what is free is for one group: it is sent while the next is made.
        """
        room, fitting = shutil.disk_usage(self._spool).free // 2, []
        for group in groups:
            sizes = [self._plan.files[n].layout.size for n in group.files]
            fitting += [Group(group.files[r.start : r.stop], group.shared) for r in cut_to(room, sizes)]
        for group in fitting:
            if len(group.files) > 1:
                self._abreast |= {self._plan.files[n].name for n in group.files}
        return fitting

    def _is_spooled(self, file: OutFile) -> bool:
        return file.layout.needs_crc or file.name in self._abreast

    def blocks_apart(self, file: OutFile) -> int:
        """Return how many blocks must be made by one process: those of a part, or all of the file."""
        if file.layout.needs_crc or not objects.is_divisible(str(self._folder)):
            return block_count(file.layout.size)
        return objects.part_size(file.layout.size) // DIGEST_BLOCK

    def open(self, file: OutFile) -> Sink:
        """Begin a file. One whose early bytes depend on later ones, or one of several, lies on disk first."""
        whole = lambda: self.whole(file)  # noqa: E731
        if self._is_spooled(file):
            return Spooled(self._spool, file, lambda: self.begin(file), whole)
        return Parts(file, self.begin(file), whole)

    def begin(self, file: OutFile) -> Upload:
        """Begin the upload of a file."""
        upload = objects.begin(str(self._folder / file.name), file.layout.size)
        with self._lock:
            self._open[file.name] = upload
        self._journal.begun(file.name, upload.token())
        return upload

    def took(self, file: OutFile, receipts: Mapping[int, str]) -> None:
        """Enter parts of a file that another process has sent."""
        self._open[file.name].took(receipts)

    def whole(self, file: OutFile) -> None:
        """All of a file has been sent."""
        upload = self._open[file.name]
        upload.close()
        self._journal.uploaded(file.name, upload.token())
        with self._lock:
            self._whole[file.name] = self._open.pop(file.name)

    def complete(self, name: str) -> None:
        """Make a file visible."""
        self._whole[name].complete()
        self.visible.add(name)

    def give_up(self) -> None:
        """Abort what is not whole, and all of it if nothing is known to a later run."""
        left = list(self._open.values())
        left += [u for n, u in self._whole.items() if n not in self._journal.done]
        for upload in left:
            with suppress(OSError):
                upload.abort()


class Parts:
    """Gather a file's bytes to parts; the tasks of a file are its parts, so a part is one thread's.

    Args:
        file: The file.
        upload: Sends them.
        whole: Called when all have been sent.
    """

    def __init__(self, file: OutFile, upload: Upload, whole: Callable[[], None]) -> None:
        self._file, self._upload, self._all_sent = file, upload, whole
        self._part = objects.part_size(file.layout.size)
        self._lock = threading.Lock()
        self._filling: dict[int, bytearray] = {}

    def write(self, data: memoryview | bytes, at: int) -> None:
        view = memoryview(data)
        while len(view):
            index, offset = divmod(at, self._part)
            length = min(self._part, self._file.layout.size - index * self._part)
            with self._lock:
                part = self._filling.setdefault(index, bytearray())
            if len(part) != offset:
                raise AssertionError(f"{self._file.name}: byte {at} follows {index * self._part + len(part)}")
            piece = view[: length - offset]
            part += piece
            if len(part) == length:
                self._upload.part(index, part)
                with self._lock:
                    del self._filling[index]
            view, at = view[len(piece) :], at + len(piece)

    def finish(self) -> None:
        self._all_sent()

    def abort(self) -> None:
        self._upload.abort()

    def close(self) -> None:
        self._filling.clear()


class Spooled(PartFile):
    """Write a file to disk, and send it when it is sealed.

    Args:
        spool: A folder on disk.
        file: The file.
        begin: Begins its upload.
        whole: Called when all of it has been sent.
    """

    def __init__(
        self, spool: Path, file: OutFile, begin: Callable[[], Upload], whole: Callable[[], None]
    ) -> None:
        create(spool / (file.name + ".part"), file.layout.size)
        super().__init__(spool, file.name)
        self._file, self._begin, self._all_sent = file, begin, whole

    def finish(self) -> None:
        self.close()
        upload, size = self._begin(), objects.part_size(self._file.layout.size)

        def send(index: int) -> None:
            with _held, open(self.path, "rb") as spooled:
                spooled.seek(index * size)
                upload.part(index, bytearray(spooled.read(size)))

        with ThreadPoolExecutor(_SENDING, thread_name_prefix="send") as pool:
            for sent in [pool.submit(send, i) for i in range(-(-self._file.layout.size // size))]:
                sent.result()
        self.path.unlink()
        self._all_sent()
