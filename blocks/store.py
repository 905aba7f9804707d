"""Where calibrated blocks are kept: one directory a block, weights as safetensors, vouched for by a manifest; written atomically."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nas.errors import DamagedFile, InputError
from nas.files import Form, move_aside, parse_json, read_json

_MANIFEST_LIMIT = 1 << 20  # bytes; a manifest is about 1 kB
_VERSION = 1
_NUMBER = int | float
_MANIFEST: Form = {
    "version": int, "key": str, "sha256": str, "stage": str, "choice": str, "spec": dict, "error": _NUMBER | None, "errors": {str: _NUMBER},
    "steps": int, "seconds": _NUMBER, "reason": str, "curve?": [[_NUMBER]], "by_level?": {str: _NUMBER},
}  # fmt: skip


@dataclass(frozen=True)
class BlockRecord:
    """What is known of one calibrated block.

    `error` is the mean over outputs of MSE / variance on held-out features; `errors` the same per output name, `by_level` per range of noise levels.
    A block whose calibration failed has `reason` set and no weights. `curve` is the held-out error by steps, the finished block's last; empty where it
    was not kept.
    """

    stage: str
    choice: str
    spec: Mapping[str, Any]
    error: float | None
    errors: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    reason: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    by_level: Mapping[str, float] = field(default_factory=dict)


def block_key(**parts: Any) -> str:
    """Content key (hex) of a block: hash of everything that decides its weights, given as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


class BlockStore:
    """Calibrated blocks by content key, under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __contains__(self, key: str) -> bool:
        return (self.folder(key) / "manifest.json").exists()

    def keys(self) -> Iterator[str]:
        """All keys in the store, sorted."""
        for path in sorted(self.root.glob("??/*/manifest.json")):
            if len(path.parent.name) == 40:
                yield path.parent.name

    def put(self, key: str, record: BlockRecord, weights: Mapping[str, Tensor]) -> None:
        """Stores a block; a key that another process stored meanwhile stays as it is.

        Raises:
            InputError: the store cannot be written.
        """
        content = save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})  # tied ones have one memory
        manifest = {"version": _VERSION, "key": key, "sha256": hashlib.sha256(content).hexdigest(), **asdict(record)}
        final = self.folder(key)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=final.parent))
            try:
                _write_synced(draft / "block.safetensors", content)
                _write_synced(draft / "manifest.json", json.dumps(manifest, indent=1).encode())
                if not final.exists():
                    draft.rename(final)
            except OSError:
                if not final.exists():  # another process may have won the race
                    raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise InputError(f"cannot write block to {final}: {error.strerror}; set NAS_HOME to a writable folder with space") from error

    def record(self, key: str) -> BlockRecord:
        """What is known of a block, without its weights.

        Raises:
            DamagedFile: the manifest is unreadable or not of this form.
        """
        manifest = self._manifest(key)
        return _record(manifest)

    def weights(self, key: str) -> dict[str, Tensor]:
        """The block's tensors.

        Raises:
            DamagedFile: the file is missing or its hash differs from the manifest's.
        """
        try:
            return dict(load_tensors(self.check(key)))
        except SafetensorError as error:
            raise DamagedFile(f"block {self.folder(key)} holds no tensors: {error}; remove its folder to recalibrate it") from error

    def check(self, key: str) -> bytes:
        """The content of the block's file, which its manifest vouches for.

        Raises:
            DamagedFile: the file is missing or its hash differs from the manifest's.
        """
        path = self.folder(key) / "block.safetensors"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedFile(f"block {path} cannot be read ({error.strerror}); remove its folder to recalibrate it") from error
        if hashlib.sha256(content).hexdigest() != self._manifest(key)["sha256"]:
            raise DamagedFile(f"block {path} is damaged (its hash differs from the manifest's); remove its folder to recalibrate it")
        return content

    def packed(self, key: str) -> tuple[bytes, bytes]:
        """The block as it is kept, manifest and weights, to be stored elsewhere by `unpack`.

        Raises:
            DamagedFile: it is not what its manifest vouches for.
        """
        self.weights(key)
        return (self.folder(key) / "manifest.json").read_bytes(), (self.folder(key) / "block.safetensors").read_bytes()

    def unpack(self, key: str, packed: tuple[bytes, bytes]) -> None:
        """Stores a block that another store packed, unless it is there.

        Raises:
            DamagedFile: its weights are not what its manifest vouches for.
        """
        manifest, content = packed
        if key in self:
            return
        found = parse_json(manifest, f"the manifest of block {key[:12]}", _MANIFEST)
        if found["key"] != key or hashlib.sha256(content).hexdigest() != found["sha256"]:
            raise DamagedFile(f"block {key[:12]} was damaged on its way from another machine")
        self.put(key, _record(found), load_tensors(content))

    def drop(self, key: str) -> None:
        """Moves a damaged block aside, so that it is calibrated again and nothing is destroyed."""
        with suppress(FileNotFoundError):  # another process did
            move_aside(self.folder(key))

    def folder(self, key: str) -> Path:
        """Where a block is kept, or would be."""
        return self.root / key[:2] / key

    def unfinished(self, key: str) -> Path:
        """Where the state of a fit is kept until the block is stored."""
        return self.root / "unfinished" / key / "fit.safetensors"

    def _manifest(self, key: str) -> dict[str, Any]:
        path = self.folder(key) / "manifest.json"
        manifest: dict[str, Any] = read_json(path, _MANIFEST, _MANIFEST_LIMIT)
        if manifest["version"] != _VERSION or manifest["key"] != key:
            raise DamagedFile(f"manifest {path} is not of this version and block; remove its folder to recalibrate the block")
        return manifest


def _record(manifest: Mapping[str, Any]) -> BlockRecord:
    curve = tuple((int(row[0]), float(row[1])) for row in manifest.get("curve", ()) if len(row) == 2)
    return BlockRecord(**{name: manifest[name] for name in BlockRecord.__dataclass_fields__ if name in manifest and name != "curve"}, curve=curve)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
