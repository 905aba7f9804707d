"""The files of the embedded teacher, opened only after their hashes have been checked."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nas.errors import DamagedFile, InputError
from nas.files import inside, read_json
from nas.spaces.tocsr.data import Latents

SETS = ("fit", "measure", "verify")

_FOLDER = Path(__file__).parent / "assets"


class EmbeddedAssets:
    """One frozen version of an embedded teacher: `unet`, `vae`, `scheduler` in diffusers format, text table and latents.

    Raises:
        DamagedFile: a file is missing or its hash differs from the manifest's.
    """

    def __init__(self, version: str) -> None:
        self.root = _FOLDER / version
        for name, wanted in self.manifest["files"].items():
            path = inside(self.root, name)
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
                raise DamagedFile(f"embedded teacher: {path} is missing or damaged; install stage-nas again")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Version, hashes and how it was trained."""
        form = {"version": str, "files": {str: str}, "active_stages": object}
        try:
            content: dict[str, Any] = read_json(self.root / "manifest.json", form)
        except DamagedFile as error:
            raise DamagedFile(f"embedded teacher: {error}; install stage-nas again") from error
        return content

    def latents(self) -> dict[str, Latents]:
        """The clean latents of each set with their text, unit variance, float32."""
        data = load_file(self.root / "data/latents.safetensors")
        values = data["latents"].float() * data["scale"].view(1, -1, 1, 1)
        text = self.text(data["tokens"])
        everything = Latents(values, text, data["group"])
        return {name: everything.rows(torch.nonzero(data["split"] == number).flatten()) for number, name in enumerate(SETS)}

    def text(self, tokens: Tensor) -> Tensor:
        """Token ids `(B, T)` -> conditioning `(B, T, D)`."""
        table = load_file(self.root / "text/embedding.safetensors")["embedding"].float()
        return table[tokens]


def shipped_version(name: str) -> str | None:
    """The shipped teacher that `name` means: "embedded" and "embedded-tight" their newest version, "embedded-v2" itself; None for other names."""
    shipped = [path.parent.name for path in _FOLDER.glob("embedded*-v*/manifest.json")]
    versions = [version for version in shipped if name in (version, version.rpartition("-v")[0])]
    return max(versions, key=lambda version: int(version.rpartition("-v")[2]), default=None)


def newest_version() -> str:
    """The version that "embedded" means."""
    version = shipped_version("embedded")
    assert version is not None
    return version


def shipped_pipeline() -> Path:
    """The folder of the super-resolution model in use: the highest version that ships.

    Raises:
        InputError: none does.
    """
    found = sorted(_FOLDER.glob("tocsr-sr-v*/model_index.json"), key=lambda path: int(path.parent.name.removeprefix("tocsr-sr-v")))
    if not found:
        raise InputError("no super-resolution model ships with this installation; give a pipeline folder with --model")
    return found[-1].parent
