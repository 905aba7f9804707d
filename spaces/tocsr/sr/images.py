"""Pictures of all kinds as colours for the model, and back: transparency, gray, palettes, 16 bits, cameras' orientation."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from nas.errors import InputError
from nas.files import write_whole
from nas.spaces.tocsr.data import UNREADABLE

FACTOR = 4
"""Of enlargement."""

MOST_PIXELS = 16 << 20
"""Of a picture to enlarge: its result has sixteen times as many, at 16 bytes each while it is put together and as many while it is written."""


@dataclass(frozen=True)
class Kept:
    """What a picture has besides colours: its alpha channel (H, W) uint8, whether it is gray, its colour profile."""

    alpha: Image.Image | None
    gray: bool
    profile: bytes | None


MOST_LARGE_PIXELS = FACTOR**2 * MOST_PIXELS
"""Of a picture to train on or to compare with."""


def read_picture(path: Path, most: int = MOST_PIXELS) -> Image.Image:
    """The picture in a file, upright; of at most so many pixels.

    Raises:
        InputError: not an image, damaged, animated, empty, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check(image, path, most)
                image.load()
                return ImageOps.exif_transpose(image)
    except UNREADABLE as error:
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        reason = "it is too large; cut it into parts first" if bomb else _why(error)
        raise InputError(f"{path} must be a picture: {reason}") from error


def is_deep(path: Path) -> bool:
    """Whether a picture that can be read has more than 8 bits a channel in its file."""
    with Image.open(path) as image:
        return image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile)


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "not an image that Pillow can read" if "cannot identify" in str(error) else f"it is damaged ({str(error)[:80] or type(error).__name__})"


def _check(image: Image.Image, path: Path, most: int) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{path} is animated ({image.n_frames} frames); give it frame by frame")  # type: ignore[attr-defined]
    if image.width * image.height > most:
        raise InputError(f"{path} must have at most {most:,} pixels, got {image.width} x {image.height}; cut it into parts first")


def split(picture: Image.Image) -> tuple[Tensor, Kept]:
    """Colours `(3, H, W)` in [-1, 1], and the rest; 16-bit gray keeps its depth.

    Raises:
        InputError: a picture without pixels.
    """
    if not picture.width or not picture.height:
        raise InputError(f"a picture must have at least one pixel, got {picture.width} x {picture.height}")
    picture, profile = ImageOps.exif_transpose(picture), picture.info.get("icc_profile")
    if picture.mode.startswith(("I", "F")):
        gray = _deep_gray(picture)
        return torch.from_numpy(gray).expand(3, -1, -1).clone() * 2 - 1, Kept(None, True, profile)
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    gray_mode = picture.mode in ("1", "L", "LA", "La")
    colours = np.asarray(picture.convert("RGBA" if alpha else "RGB"), dtype=np.float32)[..., :3]
    return torch.from_numpy(colours.transpose(2, 0, 1).copy()) / 127.5 - 1, Kept(alpha, gray_mode, profile if picture.mode != "CMYK" else None)


def _deep_gray(picture: Image.Image) -> NDArray[np.float32]:
    """`(H, W)` in [0, 1]: 16 bits for integers (32 when the values need it), floats as they are."""
    values = np.asarray(picture, dtype=np.float64)
    most = 1.0 if picture.mode == "F" else 65535.0 if values.max() <= 65535 else 2.0**31 - 1
    return (values / most).clip(0, 1).astype(np.float32)


def joined(colours: Tensor, kept: Kept) -> Image.Image:
    """The enlarged picture of colours `(3, 4 H, 4 W)` in [-1, 1], gray or transparent as the small one was."""
    picture = Image.fromarray(to_picture(colours.mean(0, keepdim=True))[..., 0] if kept.gray else to_picture(colours))
    if kept.alpha is not None:
        picture.putalpha(kept.alpha.resize((FACTOR * kept.alpha.width, FACTOR * kept.alpha.height), Image.Resampling.BICUBIC))
    if kept.profile:
        picture.info["icc_profile"] = kept.profile
    return picture


def to_picture(colours: Tensor) -> NDArray[np.uint8]:
    """Colours `(3, H, W)` in [-1, 1] as 8-bit pixels `(H, W, 3)`."""
    return np.rint((colours.movedim(0, -1).numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)


def to_unit(colours: Tensor) -> NDArray[np.float32]:
    """Colours `(3, H, W)` in [-1, 1] as `(H, W, 3)` in [0, 1]."""
    found: NDArray[np.float32] = ((colours + 1) / 2).movedim(0, -1).numpy()
    return found


def write_picture(path: Path, picture: Image.Image, note: str = "") -> None:
    """Writes a picture whole or not at all, in the format its name asks for; `note` goes into a PNG.

    Raises:
        InputError: the format is unknown or cannot hold the picture, or the file cannot be written.
    """
    form = Image.registered_extensions().get(path.suffix.lower())
    if form is None or form not in Image.SAVE:
        raise InputError(f"{path} must end in the name of a picture format, such as .png or .jpg, got '{path.suffix}'")
    if form == "JPEG" and picture.mode not in ("RGB", "L"):
        raise InputError(f"{path}: JPEG has no transparency; write a .png")
    options: dict[str, object] = {"icc_profile": picture.info.get("icc_profile")}
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        if note:
            info.add_text(NOTE, note)
        options["pnginfo"] = info
    if form == "JPEG":
        options["quality"] = 95
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=form, **options)
        write_whole(path, buffer.getvalue())
    except ValueError as error:  # of Pillow, for a mode or size that the format has not
        raise InputError(
            f"{path}: {form} cannot hold the picture, {picture.width} x {picture.height} in mode {picture.mode} ({error}); write a .png"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place or free some space") from error


NOTE = "stage-nas"


def note_of(path: Path) -> str:
    """The note in a PNG that `write_picture` wrote; empty if there is none."""
    try:
        with Image.open(path) as image:
            image.load()
            return str(image.info.get(NOTE, ""))
    except UNREADABLE:
        return ""
