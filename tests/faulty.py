"""A TCP proxy before an HTTP server: counts requests, and answers some of them with faults."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 72\r\n"
    b"Connection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>reduce your rate</Message>  </Error>"
)


@dataclass
class Fault:
    """What happens to requests: ``503``, ``reset`` before it is done or in the answer, ``slow``, ``delay``.

    One that is a ``stall`` is taken and never answered; the answer to ``stall-midway`` never ends.

    Attributes:
        kind: What happens.
        matches: Which requests, by their first line.
        times: How often; None for ever.
    """

    kind: str
    matches: Callable[[str], bool] = lambda line: True
    times: int | None = 1


@dataclass
class FaultyProxy:
    """Stand before a server on localhost.

    Attributes:
        target: The server's port.
        lines: The first line of every request since `reset`.
        faults: What goes wrong; the first that matches a request happens to it.
    """

    target: int
    bucket: str = ""
    lines: list[str] = field(default_factory=list)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._stopped = False

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def files(self) -> Any:
        """s3fs behind the proxy, without its caches."""
        import s3fs

        return s3fs.S3FileSystem(use_listings_cache=False)

    def uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        found = self.files().call_s3("list_multipart_uploads", Bucket=self.bucket)
        return [u["Key"] for u in found.get("Uploads", [])]

    def found(self, folder: str = "") -> list[str]:
        start = f"{self.bucket}/{folder}".rstrip("/")
        found = self.files().find(start)
        return sorted(f.removeprefix(start + "/") for f in found)

    def reset(self) -> None:
        with self._lock:
            self.lines.clear()
            self.ranges.clear()

    def count(self) -> Counter[str]:
        return Counter(line.split(" ", 1)[0] for line in self.lines)

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _fault(self, line: str) -> str | None:
        with self._lock:
            self.lines.append(line)
            for fault in self.faults:
                if fault.times != 0 and fault.matches(line):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault.kind
        return None

    def _serve(self, client: socket.socket) -> None:
        """Pass on the requests of one connection, one after the other."""
        try:
            with client, socket.create_connection(("127.0.0.1", self.target)) as server:
                incoming, outgoing = client.makefile("rb"), server.makefile("rb")
                while head := _head(incoming):
                    line = head.split(b"\r\n", 1)[0].decode()
                    if found := re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", head):
                        self.ranges.append((line.split(" ")[1], int(found[2]) - int(found[1]) + 1))
                    fault = self._fault(line)
                    if b"100-continue" in head.lower():
                        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                        head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
                    body = _body(incoming, head)
                    if fault == "503":
                        client.sendall(_BUSY)
                        return
                    if fault == "reset-early":
                        return
                    if fault == "stall":
                        incoming.read(1)  # until the client goes
                        return
                    server.sendall(head + body)
                    answer = _head(outgoing)
                    rest = b"" if line.startswith("HEAD") else _body(outgoing, answer)
                    if fault == "reset":
                        client.sendall((answer + rest)[: (len(answer) + len(rest)) // 2])
                        return
                    if fault == "stall-midway":
                        client.sendall((answer + rest)[: len(answer) + len(rest) // 2])
                        incoming.read(1)
                        return
                    if fault == "delay":
                        time.sleep(0.6)
                    if fault == "slow":
                        client.sendall(answer)
                        for at in range(0, len(rest), max(1, len(rest) // 8)):
                            client.sendall(rest[at : at + max(1, len(rest) // 8)])
                            time.sleep(0.05)
                        continue
                    client.sendall(answer + rest)
        except OSError:
            return


def _head(stream: Any) -> bytes:
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _body(stream: Any, head: bytes) -> bytes:
    if found := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head):
        return stream.read(int(found[1]))  # type: ignore[no-any-return]
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        raw = b""
        while True:
            size = stream.readline()
            raw += size + stream.read(int(size.split(b";")[0], 16)) + stream.readline()
            if int(size.split(b";")[0], 16) == 0:
                return raw
    return b""
