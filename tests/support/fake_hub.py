"""A server that answers as the Hugging Face hub does when a folder is uploaded, for tests without a
network."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Answer = Literal["accept", "401", "403", "cut"]


@dataclass
class FakeHub:
    """What the server received.

    Args:
        answer: "cut": it closes the connection while a file is sent.
    """

    answer: Answer = "accept"
    url: str = ""
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    """Files of commits, by path."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files, by their sha256."""


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A server on a free port, until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub

    def log_message(self, format: str, *given: Any) -> None:
        """Silence."""

    def do_PUT(self) -> None:
        hub = self.state
        hub.requests.append("PUT")
        if hub.answer == "cut":
            self.rfile.read(1)
            self.connection.close()
            return
        hub.blobs[self.path.rpartition("/")[2]] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        hub, path = self.state, self.path.partition("?")[0]
        hub.requests.append(f"POST {path}")
        hub.tokens.add(self.headers.get("Authorization", ""))
        body = self._body()
        if hub.answer in ("401", "403"):
            self._reply({"error": f"refused {self.headers.get('Authorization')}"}, int(hub.answer))
        elif path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._reply({"url": f"{hub.url}/org/name"})
        elif path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            named = json.loads(body)["files"]
            self._reply({"files": [self._mode(each["path"]) for each in named]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self._reply({"objects": [self._upload(each) for each in objects]})
        elif "/commit/" in path:
            self._commit(body)
            self._reply({"commitUrl": f"{hub.url}/org/name/commit/1", "commitOid": "1" * 40})
        else:
            self._reply({"error": f"unknown {path}"}, 404)

    def _mode(self, path: str) -> dict[str, Any]:
        large = path.endswith((".safetensors", ".onnx"))
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.state.url}/blobs/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href}}}

    def _commit(self, body: bytes) -> None:
        for line in body.decode().splitlines():
            each = json.loads(line)
            if each["key"] == "file":
                content = base64.b64decode(each["value"]["content"])
                self.state.files[each["value"]["path"]] = content
            elif each["key"] == "lfsFile":
                self.state.files[each["value"]["path"]] = self.state.blobs[each["value"]["oid"]]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
