"""Samples of a diffusion model: latents at uniform timesteps with their noise, from latents or from a folder of pictures."""

import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nas.data import Samples, Splits
from nas.errors import InputError
from nas.progress import Progress

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

OTHER_SUFFIXES = (".gif", ".apng", ".avif", ".heic", ".heif", ".jp2")
"""Of pictures that are not read: most of the first two kinds move, the others need more than Pillow alone."""

MIN_MEASURED = 128  # samples in each of `measure` and `verify`


@dataclass(frozen=True)
class Latents:
    """Clean latents `(n, C, H, W)` of unit variance, their text conditioning `(n, T, D)`, and the picture each comes from `(n,)`."""

    latents: Tensor
    text: Tensor
    groups: Tensor

    def rows(self, index: Tensor) -> "Latents":
        """The chosen latents."""
        return Latents(self.latents[index], self.text[index], self.groups[index])


def noised(clean: Latents, alphas_cumprod: Tensor, n: int, seed: int) -> Samples:
    """`n` samples (x_t, t, text) with the noise as target; timesteps uniform over the schedule (stratified), each latent used equally often.

    Graph inputs "sample" `(n, C, H, W)`, "timestep" `(n,)` int64, "text" `(n, T, D)`; x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise (Eq. 18).
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(clean.latents), generator=random) for _ in range(-(-n // len(clean.latents)))])[:n]
    strata = (torch.randperm(n, generator=random) + torch.rand(n, generator=random)) / n
    timestep = (strata * len(alphas_cumprod)).long().clamp(max=len(alphas_cumprod) - 1)
    latents = clean.latents[order]
    noise = torch.randn(latents.shape, generator=random)
    abar = alphas_cumprod[timestep].view(-1, 1, 1, 1).to(latents.dtype)
    sample = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    return Samples({"sample": sample, "timestep": timestep, "text": clean.text[order]}, clean.groups[order], noise)


def split_by_picture(clean: Latents, alphas_cumprod: Tensor, fraction: float = 0.25, seed: int = 0) -> Splits:
    """Three sets, disjoint by picture: `fraction` of the pictures to fit, the rest in halves to measure and to verify.

    Raises:
        InputError: fewer than 3 pictures, or a fraction that leaves a set empty.
    """
    pictures = torch.unique(clean.groups)
    n_fit = max(1, round(fraction * len(pictures)))
    n_measure = (len(pictures) - n_fit) // 2
    if n_measure < 1:
        raise InputError(f"{len(pictures)} pictures cannot make three disjoint sets with {fraction:.0%} to fit; give at least 3 and a smaller fraction")
    order = pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))]
    parts = (order[:n_fit], order[n_fit : n_fit + n_measure], order[n_fit + n_measure :])
    sets = []
    for number, part in enumerate(parts):
        rows = torch.nonzero(torch.isin(clean.groups, part)).flatten()
        sets.append(noised(clean.rows(rows), alphas_cumprod, max(len(rows), MIN_MEASURED), seed=seed + 1 + number))
    return Splits(*sets)


def picture_files(folder: Path, progress: Progress | None = None) -> list[Path]:
    """All picture files under a folder, sorted by name; how many pictures of other kinds are passed over is noted."""
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder of pictures")
    found = sorted(folder.rglob("*"))
    files = [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES]
    if not files:
        raise InputError(f"no pictures in '{folder}'; it must hold {', '.join(PICTURE_SUFFIXES)} files")
    for kind, count in sorted(Counter(path.suffix.lower() for path in found if path.suffix.lower() in OTHER_SUFFIXES).items()):
        if progress is not None:
            progress.note(f"{folder}: {count} {kind} file{'s are' if count > 1 else ' is'} passed over; convert to {PICTURE_SUFFIXES[0]} what is to be used")
    return files


def load_pictures(files: Sequence[Path], size: int, progress: Progress) -> tuple[Tensor, list[Path]]:
    """Centre crops `(n, 3, size, size)` in [-1, 1] and the files they come from; a file that is no picture is noted and skipped."""
    pictures, kept = [], []
    for file in progress.track(files, "pictures"):
        try:
            whole = upright(file)
        except UNREADABLE as error:
            progress.note(f"skipped {file}: {error}")
            continue
        fitted = ImageOps.fit(whole, (size, size), Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.asarray(fitted, dtype=np.float32).transpose(2, 0, 1).copy()) / 127.5 - 1)
        kept.append(file)
    if not pictures:
        raise InputError(f"none of the {len(files)} files is a picture that can be read")
    return torch.stack(pictures), kept


UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError, Warning)
"""What Pillow raises on a damaged file, besides what it should."""


_OPENING = threading.Lock()  # the filters of warnings belong to the whole process


def upright(file: Path) -> Image.Image:
    """The picture as 8-bit RGB, turned as its camera was held; transparent parts show their colours.

    Raises:
        Exception: one of `UNREADABLE`, for a file that is no picture or a damaged one.
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        opened = Image.open(file)
    with opened as image:
        return eight_bits(ImageOps.exif_transpose(image))


def eight_bits(picture: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB; 16-bit gray at its brightness, which Pillow would clip instead of scaling."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")
