"""A model folder is pushed to a hub by its real client; the hub is a small server on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nas.errors import InputError
from nas.hub import push


class Hub(BaseHTTPRequestHandler):
    """Answers what a push asks, and keeps what it was sent."""

    made: ClassVar[dict[str, Any]] = {}
    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        name = "somebody/small"
        if self.path == "/api/repos/create":
            Hub.made = json.loads(body)
            self._answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif "preupload" in self.path:
            asked = json.loads(body)["files"]
            self._answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
        elif "validate-yaml" in self.path:
            self._answer({"errors": [], "warnings": []})
        else:
            rows = [json.loads(line) for line in body.splitlines()]
            Hub.files = {row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in rows if row["key"] == "file"}
            self._answer({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/1", "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        self._answer({"id": "somebody/small", "sha": "1", "siblings": []})

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield address
    server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    (path / "README.md").write_text("---\nlibrary_name: stage-nas\n---\n# A model\n")
    return path


def test_a_folder_becomes_one_private_repository(hub: str, folder: Path) -> None:
    assert push(folder, "somebody/small") == f"{hub}/somebody/small"
    assert Hub.made.get("private") or Hub.made.get("visibility") == "private"
    assert Hub.files["model.safetensors"] == bytes(range(256))
    assert b"# A model" in Hub.files["README.md"]


@pytest.mark.parametrize("repo", ["no name", "a/b/c", "bad"])
def test_a_name_that_cannot_be_is_one_line(hub: str, folder: Path, repo: str) -> None:
    with pytest.raises(InputError, match=r"cannot push to .*give USER/NAME"):
        push(folder, repo)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot push to 'somebody/small'"):
        push(folder, "somebody/small")
