"""``--config`` and ``--tokenizer`` take hub ids: from a mirror (HF_ENDPOINT), or offline from the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHA = "a" * 40


@pytest.fixture
def mirror(demo_run: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the demo run's config and tokenizer as the hub's ``org/demo``; yields its address and its log."""
    files = {p.name: p.read_bytes() for p in demo_run.iterdir() if p.suffix in (".json", ".jinja")}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def _answer(self, body: bytes, *, send: bool, **headers: str) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def _serve(self, *, send: bool) -> None:
            asked.append(self.path)
            path = self.path.split("?")[0]
            name = path.rsplit("/", 1)[-1]
            if path.startswith("/api/models/org/demo/tree/"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": SHA} for n, b in files.items()]
                self._answer(json.dumps(tree).encode(), send=send, Content_Type="application/json")
            elif path.startswith("/api/models/org/demo"):
                siblings = [{"rfilename": n} for n in files]
                info = {"id": "org/demo", "sha": SHA, "siblings": siblings, "private": False, "tags": []}
                self._answer(json.dumps(info).encode(), send=send, Content_Type="application/json")
            elif path.startswith(f"/org/demo/resolve/{SHA}/") and name in files:
                etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                self._answer(files[name], send=send, ETag=etag, X_Repo_Commit=SHA)
            else:
                self.send_error(404)

        def do_GET(self) -> None:
            self._serve(send=True)

        def do_HEAD(self) -> None:
            self._serve(send=False)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def convert(run: Path, out: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env = {**inherited, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-m", "ckptconv", "deepspeed-to-hf", str(run), str(out)]
    command += ["--config", "org/demo", "--tokenizer", "org/demo"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_mirror_gives_config_and_tokenizer_and_the_cache_serves_offline(
    mirror: tuple[str, list[str]], demo_run: Path, tmp_path: Path
) -> None:
    endpoint, asked = mirror
    tag = next(p for p in demo_run.iterdir() if p.name.startswith("global_step"))
    bare = tmp_path / "run"
    bare.mkdir()
    (bare / tag.name).symlink_to(tag)
    (bare / "latest").write_text(tag.name)
    done = convert(bare, tmp_path / "out", tmp_path / "home", HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    assert asked
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (demo_run / name).read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    asked.clear()
    again = convert(bare, tmp_path / "out2", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert not asked


def test_an_unreachable_hub_and_an_unknown_id_say_what_to_do(
    mirror: tuple[str, list[str]], demo_run: Path, tmp_path: Path
) -> None:
    offline = convert(demo_run, tmp_path / "out", tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "--config" in offline.stderr
    assert "HF_HUB_OFFLINE" in offline.stderr
    assert not (tmp_path / "out").exists()
