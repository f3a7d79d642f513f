"""Read a model from the hub as ``hf://org/model``: from a mirror on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import ckptconv

SHA = "a" * 40


@pytest.fixture
def hub(demo_run: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    model = tmp_path / "model"
    ckptconv.convert(demo_run, model, to="hf")
    files = {p.name: p.read_bytes() for p in model.iterdir()}

    def entry(name: str) -> dict[str, object]:
        oid = hashlib.sha1(files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(files[name]), "oid": oid}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), Content_Type="application/json")

        def _send(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for key, text in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            name = path.rsplit("/", 1)[-1]
            if path.startswith("/api/models/org/demo/tree/"):
                self._json([entry(n) for n in files])
            elif path.startswith("/api/models/org/demo"):
                self._json({"id": "org/demo", "sha": SHA, "private": False, "tags": [], "siblings": []})
            elif path.startswith("/org/demo/resolve/") and name in files:
                etag = f'"{entry(name)["oid"]}"'
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if asked is None:
                    self._send(200, files[name], ETag=etag, X_Repo_Commit=SHA)
                else:
                    part = files[name][int(asked[1]) : int(asked[2]) + 1]
                    self._send(206, part, ETag=etag, X_Repo_Commit=SHA)
            else:
                self._send(404, b"", X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._json([entry(n) for n in files if n in asked])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", model
    server.shutdown()


def test_a_model_of_the_hub(hub: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, model = hub
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "ckptconv", "convert", "hf://org/demo", str(out), "--to", "hf", "--quiet"],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in model.iterdir())
    for path in out.iterdir():
        assert path.read_bytes() == (model / path.name).read_bytes(), path.name
