"""A fake Hugging Face hub on a loopback address, with the routes needed to download a model."""

from __future__ import annotations

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
