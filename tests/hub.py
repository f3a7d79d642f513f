"""Be a hub: repositories, branches, large files sent once, and commits, as huggingface_hub asks for them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["TOKEN", "Hub", "serving"]

TOKEN = "hf_onlyTheTestsKnowThisOne"
SHA = "b" * 40
_LARGE = (".safetensors", ".bin")


@dataclass
class Repo:
    """Hold a repository: files by branch and name."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})


@dataclass
class Hub:
    """Hold what was sent.

    Attributes:
        url: Its address.
        repos: Repositories by name.
        large: Large files by SHA-256, committed or not.
        sent: SHA-256 of each large file that was sent, every time.
        commits: How many commits there were.
        refused: SHA-256 of large files that are refused.
        asked: Method and path of every request.
        home: Where a client may keep what it fetches.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    commits: int = 0
    refused: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    home: Path | None = None

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo].branches[branch]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub of one's own."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self) -> None:
        hub, path, body = self.state, self.path.split("?")[0], self._body()
        hub.asked.append(f"{self.command} {path}")
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/whoami-v2":
            return self._answer({"type": "user", "name": "me", "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if parts[0] == "lfs":
            return self._large(parts[1], body)
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        name = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
        repo = hub.repos.get(name)
        if repo is None:
            return self._answer({"error": "no"}, 404, X_Error_Code="RepoNotFound")
        if parts[0] != "api":
            return self._file(repo, parts)
        return self._of(repo, name, parts[4:], body)

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.state.url}/{name}", "name": name}
        if name in self.state.repos:
            return self._answer({**url, "error": "You already created this model repo"}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.state.repos[name] = Repo(private)
        return self._answer(url)

    def _of(self, repo: Repo, name: str, rest: list[str], body: bytes) -> None:
        if not rest or rest[0] == "revision":  # the second is how huggingface_hub 0 asks
            return self._answer({"id": name, "sha": SHA, "private": repo.private, "siblings": [], "tags": []})
        what, branch = rest[0], rest[1]
        if what == "branch":
            if branch in repo.branches:
                return self._answer({"error": "Reference already exists"}, 409)
            repo.branches[branch] = dict(repo.branches["main"])
            return self._answer({})
        if branch not in repo.branches:
            return self._answer({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
        if what == "preupload":
            names = [f["path"] for f in json.loads(body)["files"]]
            modes = [
                {
                    "path": n,
                    "uploadMode": "lfs" if n.endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for n in names
            ]
            return self._answer({"files": modes})
        assert what == "commit"
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.branches[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.branches[branch][value["path"]] = self.state.large[value["oid"]]
        self.state.commits += 1
        url = f"{self.state.url}/{name}/commit/{SHA}"
        return self._answer({"success": True, "commitOid": SHA, "commitUrl": url})

    def _file(self, repo: Repo, parts: list[str]) -> None:
        content = repo.branches.get(parts[3], {}).get("/".join(parts[4:]))
        if content is None:
            return self._answer({}, 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self._answer(content, ETag=etag, X_Repo_Commit=SHA)

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            to = {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.state.large else {"actions": to})})
        self._answer({"transfer": "basic", "objects": objects})

    def _large(self, oid: str, body: bytes) -> None:
        if oid in self.state.refused:
            return self._answer({"error": "no"}, 403)
        assert hashlib.sha256(body).hexdigest() == oid
        self.state.sent.append(oid)
        self.state.large[oid] = body
        return self._answer({})
