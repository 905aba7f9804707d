"""Folders of training pictures as people have them, too many for memory: read when drawn, any size, corrupt files named and passed over.

Of data sets in their published layout only the full-size pictures are taken: DIV2K (`DIV2K_train_HR`, beside its low-resolution copies),
FFHQ (`images1024x1024`, beside thumbnails and originals), LSDIR (`HR`, beside `X2`, `X3`, `X4`).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator, Tensor

from nas.blocks.store import block_key
from nas.errors import InputError
from nas.progress import Progress, Quiet
from nas.spaces.tocsr.data import UNREADABLE, picture_files, upright

LAYOUTS = {"DIV2K": "DIV2K_train_HR", "FFHQ": "images1024x1024", "LSDIR": "HR"}
"""Data set -> its folder of full-size pictures."""


@dataclass(frozen=True)
class PictureFolder:
    """Pictures that training draws crops from.

    Attributes:
        files: the pictures; a picture is drawn as often as any other.
        size: side of a crop in pixels; smaller pictures are enlarged to it.
        progress: where files that cannot be read are named, each once.
    """

    files: tuple[Path, ...]
    size: int
    progress: Progress = field(default_factory=Quiet)
    _unreadable: set[Path] = field(default_factory=set)

    @classmethod
    def of(cls, folders: Sequence[Path], size: int, progress: Progress | None = None, first: int | None = None) -> "PictureFolder":
        """All pictures under the folders, or the `first` of each (10,000 of FFHQ in [TOC-SR]), by name.

        Raises:
            InputError: one of them is no folder or holds no picture.
        """
        report = progress or Quiet()
        files: list[Path] = []
        for folder in folders:
            found = picture_files(_full_size(folder, report), report)[:first]
            report.note(f"{folder}: {len(found):,} pictures")
            files += found
        return cls(tuple(files), size, report)

    def apart(self, n: int, seed: int = 0) -> "tuple[PictureFolder, PictureFolder]":
        """These pictures without `n` of them, and the `n` held out.

        Raises:
            InputError: there are not more than `n`.
        """
        if not 0 < n < len(self.files):
            raise InputError(f"{len(self.files)} pictures cannot have {n} held out and some left to train on; give more pictures")
        order = np.random.default_rng(seed).permutation(len(self.files))
        held = set(order[:n].tolist())
        parts = [tuple(file for number, file in enumerate(self.files) if (number in held) == wanted) for wanted in (False, True)]
        return PictureFolder(parts[0], self.size, self.progress), PictureFolder(parts[1], self.size, self.progress)

    @property
    def fingerprint(self) -> str:
        """Short hash of every file's name and size."""
        return block_key(files=[[file.name, file.stat().st_size] for file in self.files], size=self.size)[:16]

    def crops(self, random: Generator, n: int) -> Tensor:
        """`(n, 3, size, size)` in [-1, 1]: random crops of random pictures, half of them mirrored; decided by the generator and the files.

        Raises:
            InputError: no file can be read.
        """
        starts = torch.randint(len(self.files), (n,), generator=random).tolist()
        places = torch.rand(n, 3, generator=random).tolist()
        with ThreadPoolExecutor(min(n, 8, os.cpu_count() or 1)) as pool:
            return torch.stack(list(pool.map(self._crop, starts, places)))

    def centres(self) -> Tensor:
        """The middle of every picture that can be read, `(n, 3, size, size)` in [-1, 1]: what figures are taken on."""
        pictures = [picture for picture in map(self._read, self.files) if picture is not None]
        if not pictures:
            raise InputError(f"none of the {len(self.files)} files is a picture that can be read")
        return torch.stack([_values(ImageOps.fit(picture, (self.size, self.size), Image.Resampling.LANCZOS)) for picture in pictures])

    def _crop(self, start: int, place: tuple[float, float, float]) -> Tensor:
        for offset in range(len(self.files)):  # a file that cannot be read is replaced by the next
            picture = self._read(self.files[(start + offset) % len(self.files)])
            if picture is not None:
                return _cut(picture, self.size, *place)
        raise InputError(f"none of the {len(self.files)} files is a picture that can be read")

    def _read(self, file: Path) -> Image.Image | None:
        if file in self._unreadable:
            return None
        try:
            return upright(file)
        except UNREADABLE as error:
            self._unreadable.add(file)
            self.progress.note(f"skipped {file}: {error}")
            return None


def _full_size(folder: Path, report: Progress) -> Path:
    """The folder, or the one inside it that holds a known data set's full-size pictures."""
    for name, inside in LAYOUTS.items():
        if (folder / inside).is_dir():
            report.note(f"{folder}: laid out like {name}, its pictures are taken from {inside}")
            return folder / inside
    return folder


def _cut(picture: Image.Image, size: int, y: float, x: float, mirror: float) -> Tensor:
    """The crop at shares `y`, `x` of the room there is; mirrored for `mirror` below a half."""
    if min(picture.size) < size:
        scale = size / min(picture.size)
        picture = picture.resize((max(size, round(picture.width * scale)), max(size, round(picture.height * scale))), Image.Resampling.LANCZOS)
    left, top = int(x * (picture.width - size + 1)), int(y * (picture.height - size + 1))
    crop = _values(picture.crop((left, top, left + size, top + size)))
    return crop.flip(2) if mirror < 0.5 else crop


def _values(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1).copy()) / 127.5 - 1
