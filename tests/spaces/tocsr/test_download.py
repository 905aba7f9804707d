"""A teacher fetched from a hub whose connection breaks, by the hub's own client; the hub is a small server on this machine."""

import hashlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from nas.errors import InputError
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.teacher import _folder
from tests.spaces.tocsr.conftest import SCHEDULER, SHALLOW, small_unet

COMMIT = "0123456789" * 4
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Hub(BaseHTTPRequestHandler):
    """One repository, whose weights are sent as far as `sent` says; then the connection is closed, or held while `held` is set."""

    root: ClassVar[Path]
    sent: ClassVar[float] = 1.0
    held: ClassVar[bool] = False
    half_way: ClassVar[threading.Event]

    def do_HEAD(self) -> None:
        self._file(self.path, body=False)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            files = sorted(path for path in self.root.rglob("*") if path.is_file())
            self._json([{"type": "file", "path": str(path.relative_to(self.root)), "size": path.stat().st_size, "oid": _hash(path)[:40]} for path in files])
        elif self.path.startswith("/api/"):
            self._json({"id": "owner/model", "sha": COMMIT, "siblings": []})
        else:
            self._file(self.path, body=True)

    def _file(self, url: str, body: bool) -> None:
        path = self.root / url.partition(f"/resolve/{COMMIT}/")[2]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_hash(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            until = len(content) if path.name != Path(WEIGHTS).name else int(self.sent * len(content))
            self.wfile.write(content[start:until])
            self.wfile.flush()
            self.half_way.set()
            while self.held and until < len(content):
                threading.Event().wait(0.02)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The client's cache, empty; the hub is up."""
    Hub.root, Hub.sent, Hub.held, Hub.half_way = tmp_path / "repository", 1.0, False, threading.Event()
    CompactUNet.of(small_unet(**SHALLOW), SCHEDULER).save_pretrained(Hub.root / "unet")
    (Hub.root / "scheduler").mkdir()
    (Hub.root / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))  # between its attempts
    yield tmp_path / "cache"
    Hub.held = False
    server.shutdown()


def fetched(cache: Path) -> list[Path]:
    """Weights under a final name."""
    return [path for path in cache.rglob("*.safetensors") if path.is_file()]


def test_a_download_that_breaks_half_way_is_one_line_and_the_same_call_completes_it(cache: Path) -> None:
    Hub.sent = 0.5
    with pytest.raises(InputError, match=r"teacher 'owner/model' cannot be fetched from the hub \(\w+\); give the same command again, or put unet/") as caught:
        _folder("owner/model")
    assert "\n" not in str(caught.value)
    assert fetched(cache) == []
    Hub.sent = 1.0
    folder = _folder("owner/model")
    assert (folder / WEIGHTS).read_bytes() == (Hub.root / WEIGHTS).read_bytes()
    CompactUNet.from_teacher_folder(folder)


def test_a_hub_out_of_reach_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="teacher 'owner/model' cannot be fetched from the hub"):
        _folder("owner/model")


def test_a_process_killed_while_it_downloads_leaves_nothing_under_a_final_name(cache: Path) -> None:
    Hub.sent, Hub.held = 0.5, True
    process = multiprocessing.get_context("fork").Process(target=_folder, args=("owner/model",))
    process.start()
    assert Hub.half_way.wait(60)
    process.kill()
    process.join()
    assert fetched(cache) == []
    Hub.sent, Hub.held = 1.0, False
    assert (_folder("owner/model") / WEIGHTS).read_bytes() == (Hub.root / WEIGHTS).read_bytes()
