"""A checkpoint behind a plain web server, whose listings are pages of links without sizes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ckptconv.places.places import forget
from running import contents, fails, succeeds

pytest.importorskip("aiohttp")


def _server(root: Path, *, sizes: bool) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = root / self.path.strip("/")
            if not path.exists():
                self.send_error(404)
                return
            if path.is_dir():
                names = [p.name + "/" * p.is_dir() for p in sorted(path.iterdir())]
                data = "".join(f'<a href="{self.path.rstrip("/")}/{n}">{n}</a>\n' for n in names).encode()
                part = None
            else:
                data = path.read_bytes()
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if part is not None:
                data = data[int(part[1]) : int(part[2]) + 1]
            self.send_response(200 if part is None else 206)
            self.send_header("Content-Type", "text/html" if path.is_dir() else "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            if sizes:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(params=[True, False], ids=["sizes when asked", "no sizes at all"])
def url(request: pytest.FixtureRequest, tmp_path: Path, demo_run: Path) -> Iterator[tuple[str, bool]]:
    succeeds("deepspeed-to-hf", demo_run, tmp_path / "www" / "model", "-q")
    server = _server(tmp_path / "www", sizes=request.param)
    forget()
    yield f"http://127.0.0.1:{server.server_port}/model", request.param
    server.shutdown()


def test_a_listing_without_sizes(
    url: tuple[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptconv.places.remote._TRIES", 1)
    where, sizes = url
    out = tmp_path / "out"
    if not sizes:
        fails(1, "convert", where, out, "--to", "hf", naming=("how long",))
        return
    succeeds("convert", where, out, "--to", "hf", "-q")
    assert contents(out) == contents(tmp_path / "www" / "model")
