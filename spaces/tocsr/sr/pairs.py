"""Training pairs: latents of textured crops of photographs and of the same crops degraded and upsampled again (Eq. 17, 19 of [TOC-SR])."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from nas.data import hash_tensors
from nas.errors import DamagedFile, InputError
from nas.files import write_whole
from nas.progress import Progress
from nas.spaces.tocsr.sr.images import FACTOR
from nas.spaces.tocsr.sr.photographs import Picture

Degradation = Callable[[Picture, np.random.Generator], Picture]
"""HR picture whose sides are multiples of 4 -> LR picture `(H / 4, W / 4, 3)`."""

PER_VIEW = 16  # crops of one scaled and turned photograph
TEXTURE = 3  # the most textured of so many places is taken


@dataclass(frozen=True, slots=True)
class Pairs:
    """`hr (n, 3, s, s)` uint8, and the latents `z_hr`, `z_lr (n, C, s / f, s / f)` float16."""

    hr: Tensor
    z_hr: Tensor
    z_lr: Tensor

    def __len__(self) -> int:
        return len(self.hr)

    @property
    def key(self) -> str:
        """Hash of the latents."""
        return hash_tensors({"z_hr": self.z_hr, "z_lr": self.z_lr})

    def residual_scale(self) -> float:
        """Standard deviation of z_hr - z_lr."""
        return float((self.z_hr.float() - self.z_lr.float()).std())


def bicubic(picture: Picture, rng: np.random.Generator | None = None) -> Picture:
    """Plain bicubic x4 with antialiasing (Section 3.3.1 of [TOC-SR])."""
    del rng
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((width // FACTOR, height // FACTOR), Image.Resampling.BICUBIC))


def upsample(low: Tensor) -> Tensor:
    """Bicubic x4 of `(B, C, h, w)` in [-1, 1], as Pillow does it but in floating point."""
    return torch.nn.functional.interpolate(low, scale_factor=FACTOR, mode="bicubic", antialias=True).clamp(-1, 1)


def to_tensor(pictures: Picture) -> Tensor:
    """`(n, H, W, C)` or `(H, W, C)` uint8 -> `(n or 1, C, H, W)` in [-1, 1]."""
    values = torch.tensor(pictures)
    return (values if values.ndim == 4 else values[None]).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The mode of the latent of images in [-1, 1], shifted and scaled as the diffusion model sees it; computed, and left, where the autoencoder is."""
    mode: Tensor = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode()
    return (mode - (vae.config.shift_factor or 0.0)) * float(vae.config.scaling_factor)


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images in about [-1, 1] of latents."""
    image: Tensor = vae.decode(latents / float(vae.config.scaling_factor) + (vae.config.shift_factor or 0.0)).sample
    return image


def make_pairs(photographs: Mapping[str, Picture], vae: AutoencoderKL, degradation: Degradation, *, n: int, size: int, seed: int, progress: Progress) -> Pairs:
    """`n` textured crops of `size` pixels of randomly scaled, turned and mirrored photographs; a function of the seed.

    Raises:
        InputError: a photograph is smaller than a crop, or `size` is no multiple of 8 latents' worth of pixels.
    """
    _check(photographs, size)
    names, rng = sorted(photographs), np.random.default_rng(seed)
    views = -(-n // PER_VIEW)
    hr, z_hr, z_lr = [], [], []
    for _ in progress.track(range(views), "pairs"):
        picture = _view(photographs[names[rng.integers(len(names))]], size, rng)
        up = upsample(to_tensor(degradation(picture, rng)))
        texture = np.abs(to_tensor(picture).numpy() - up.numpy()).mean((0, 1))
        places = [_place(texture, size, rng) for _ in range(PER_VIEW)]
        crops = np.stack([picture[y : y + size, x : x + size] for y, x in places])
        hr.append(torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous())
        z_hr.append(encode(vae, to_tensor(crops)).half().cpu())
        z_lr.append(encode(vae, torch.cat([up[:, :, y : y + size, x : x + size] for y, x in places])).half().cpu())
    return Pairs(*(torch.cat(parts)[:n].contiguous() for parts in (hr, z_hr, z_lr)))


def kept_pairs(path: Path, key: Mapping[str, object], make: Callable[[], Pairs]) -> Pairs:
    """The pairs in the file if they were made with the same key (JSON values), else made now and kept there."""
    wanted = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get("key")
            if found == wanted:
                return Pairs(**load_file(path))
        except (SafetensorError, TypeError, OSError) as error:
            raise DamagedFile(f"{path} holds no training pairs: {error}; remove it and go on") from error
    pairs = make()
    content = save({"hr": pairs.hr, "z_hr": pairs.z_hr, "z_lr": pairs.z_lr}, {"key": wanted})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free {len(content):,} bytes or give another --work") from error
    return pairs


def check_size(size: int) -> None:
    """Raises unless crops of so many pixels a side make latents that a U-Net can read."""
    if size % FACTOR or size < 8 * FACTOR:
        raise InputError(f"crops must have a multiple of {FACTOR} pixels, at least {8 * FACTOR}, got {size}")


def _check(photographs: Mapping[str, Picture], size: int) -> None:
    check_size(size)
    if not photographs:
        raise InputError("there must be at least one photograph to train on, got none")
    for name, picture in photographs.items():
        if min(picture.shape[:2]) < size:
            raise InputError(f"photograph '{name}' must have sides of at least {size} pixels, got {picture.shape[1]} x {picture.shape[0]}; leave it out")


def _view(picture: Picture, size: int, rng: np.random.Generator) -> Picture:
    """The photograph at a random scale of 0.4 to 1 (1 in three of ten cases), turned and mirrored, its sides multiples of 4."""
    scale = 1.0 if rng.random() < 0.3 else rng.uniform(0.4, 1.0)
    height, width = (max(size, int(side * scale)) for side in picture.shape[:2])
    if scale < 1:
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    y, x = (int(rng.integers(min(side % FACTOR + 1, FACTOR))) for side in (height, width))  # where the grid of small pixels begins
    picture = picture[y : y + (height - y) // FACTOR * FACTOR, x : x + (width - x) // FACTOR * FACTOR]
    turned = np.rot90(picture, int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned)


def _place(texture: NDArray[np.float32], size: int, rng: np.random.Generator) -> tuple[int, int]:
    """The most textured of a few random places on the latent grid."""
    places: Sequence[tuple[int, int]] = [
        (FACTOR * int(rng.integers((texture.shape[0] - size) // FACTOR + 1)), FACTOR * int(rng.integers((texture.shape[1] - size) // FACTOR + 1)))
        for _ in range(TEXTURE)
    ]
    return max(places, key=lambda at: float(texture[at[0] : at[0] + size, at[1] : at[1] + size].mean()))
