"""A fake Hugging Face hub on a loopback address, with the routes needed to download and upload a model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """The fake hub. ``models`` maps model ids to files by name; ``gated`` ids require a licence."""

    models: dict[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    url: str = ""
    requests: list[str] = field(default_factory=list)
    writable: bool = True
    """Whether the caller's token has write access."""
    private: dict[str, bool] = field(default_factory=dict)
    """Visibility of the repositories that were created."""

    def downloads(self) -> list[str]:
        """Names of the downloaded files, in order."""
        return [
            path.rpartition("/")[2]
            for path in self.requests
            if path.startswith("GET") and "/resolve/" in path
        ]


@contextmanager
def serve_hub(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            is_api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models/").lstrip("/").split("/")
            model, rest = "/".join(parts[:2]), parts[2:]
            files = hub.models.get(model)
            if model in hub.gated:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif files is None:
                self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif is_api and rest == ["auth-check", "write"]:
                self._send(200 if hub.writable else 403, b"{}")
            elif is_api and rest[:1] == ["tree"]:
                self._send(
                    200, json.dumps([_entry(name, content) for name, content in files.items()]).encode()
                )
            elif is_api:
                siblings = [{"rfilename": name} for name in files]
                self._send(200, json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode())
            elif rest[:1] == ["resolve"] and (name := "/".join(rest[2:])) in files:
                etag = hashlib.sha1(files[name]).hexdigest()
                self._send(200, files[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
            else:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not hub.writable and path != "/api/validate-yaml":
                self._send(403, b"{}", {"X-Error-Message": "no write access"})
            elif path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
                known = name in hub.models
                hub.models.setdefault(name, {})
                hub.private.setdefault(name, _is_private(wanted))
                self._send(409 if known else 200, json.dumps({"url": f"{hub.url}/{name}"}).encode())
            elif path == "/api/validate-yaml":
                self._send(200, b'{"errors": [], "warnings": []}')
            elif "/preupload/" in path:
                files = [{"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for item in json.loads(body)["files"]]  # fmt: skip
                self._send(200, json.dumps({"files": files}).encode())
            elif "/commit/" in path:
                name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
                hub.models[name] = {**hub.models[name], **_committed(body)}
                answer = {"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
                self._send(200, json.dumps(answer).encode())
            else:
                self._send(404, b"{}")

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _is_private(wanted: Mapping[str, object]) -> bool:
    return wanted.get("private") is True or wanted.get("visibility") == "private"


def _committed(body: bytes) -> dict[str, bytes]:
    """The files of a commit, which is one JSON object a line."""
    lines = [json.loads(line) for line in body.splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
