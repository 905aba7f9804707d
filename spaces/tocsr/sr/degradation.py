"""How small pictures are made of large ones: plain bicubic, and Real-ESRGAN's second-order degradation (key [Real-ESRGAN]).

Second order: blur, resize, noise and JPEG, twice, with a sinc filter before or after the last JPEG. Every parameter has that paper's default.
All randomness comes from the generator given, so that the same seed gives the same bytes.
"""

import io
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nas.errors import InputError, did_you_mean
from nas.spaces.tocsr.sr.images import FACTOR
from nas.spaces.tocsr.sr.kernels import SHAPES, Kernel, sinc, squared_distance
from nas.spaces.tocsr.sr.pairs import Degradation, bicubic
from nas.spaces.tocsr.sr.photographs import Picture

Range = tuple[float, float]

Floats = NDArray[np.float64]
"""A picture `(H, W, 3)` in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Order:
    """One round of blur, resize, noise and JPEG; the defaults are the first round's.

    Attributes:
        blur_prob: chance of a blur at all.
        kernel_sizes: sides of kernels, odd.
        kernel_probs: chance of each shape of `kernels.SHAPES`, given that it is no sinc.
        sinc_prob: chance of a sinc kernel instead.
        blur_sigma: standard deviations in pixels.
        betag_range: shape of generalised kernels; below and above 1 equally often.
        betap_range: of plateau kernels.
        resize_prob: of enlarging, shrinking, keeping.
        resize_range: factors of the two.
        gaussian_noise_prob: else Poisson noise.
        noise_range: standard deviation of Gaussian noise, of 255.
        poisson_scale_range: strength of Poisson noise.
        gray_noise_prob: chance that all three colours get the same noise.
        jpeg_range: quality.
    """

    blur_prob: float = 1.0
    kernel_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    kernel_probs: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    blur_sigma: Range = (0.2, 3.0)
    betag_range: Range = (0.5, 4.0)
    betap_range: Range = (1.0, 2.0)
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Range = (1.0, 30.0)
    poisson_scale_range: Range = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: Range = (30.0, 95.0)


SECOND = Order(
    blur_prob=0.8,
    blur_sigma=(0.2, 1.5),
    resize_prob=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    noise_range=(1.0, 25.0),
    poisson_scale_range=(0.05, 2.5),
)
"""The second round's defaults."""


@dataclass(frozen=True, slots=True)
class RealESRGAN:
    """The second-order degradation, x4; called with a picture whose sides are multiples of 4 and a generator."""

    first: Order = field(default_factory=Order)
    second: Order = SECOND
    final_sinc_prob: float = 0.8

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """The degraded picture `(H / 4, W / 4, 3)` uint8."""
        height, width = picture.shape[:2]
        if height % FACTOR or width % FACTOR:
            raise InputError(f"a picture to degrade must have sides that are multiples of {FACTOR}, got {width} x {height}")
        small = (height // FACTOR, width // FACTOR)
        x = _round(picture / 255.0, self.first, rng, resize_from=(height, width))
        x = jpeg(x, rng.uniform(*self.first.jpeg_range))
        x = _round(x, self.second, rng, resize_from=small)
        last = sinc(int(rng.choice(self.second.kernel_sizes)), rng.uniform(np.pi / 3, np.pi)) if rng.random() < self.final_sinc_prob else None
        mode, quality = _mode(rng), rng.uniform(*self.second.jpeg_range)
        sinc_first = rng.random() < 0.5
        x = jpeg(_filtered(resize(x, small, mode), last), quality) if sinc_first else _filtered(resize(jpeg(x, quality), small, mode), last)
        return _bytes(x)


def draw_kernel(order: Order, rng: np.random.Generator) -> Kernel:
    """A random kernel of a round."""
    size = int(rng.choice(order.kernel_sizes))
    if rng.random() < order.sinc_prob:
        return sinc(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    name = str(rng.choice(list(SHAPES), p=order.kernel_probs))
    shape, isotropic = SHAPES[name]
    sx = rng.uniform(*order.blur_sigma)
    sy, theta = (sx, 0.0) if isotropic else (rng.uniform(*order.blur_sigma), rng.uniform(-np.pi, np.pi))
    low, high = {"g": order.betag_range, "p": order.betap_range}.get(name[0], (1.0, 1.0))
    beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return shape(squared_distance(size, sx, sy, theta), beta)


def resize(x: Floats, size: tuple[int, int], mode: str) -> Floats:
    """Resized by area, bilinear or bicubic interpolation, `(*size, 3)`; without antialiasing, as in Real-ESRGAN."""
    options = {} if mode == "area" else {"align_corners": False}
    found: Floats = torch.nn.functional.interpolate(_tensor(x), size, mode=mode, **options)[0].movedim(0, -1).numpy()
    return found


def filter_by(x: Floats, kernel: Kernel) -> Floats:
    """Correlation with a kernel, the picture mirrored at its edges, `(H, W, 3)`."""
    half = kernel.shape[0] // 2
    padded = np.pad(x, ((half, half), (half, half), (0, 0)), mode="reflect" if min(x.shape[:2]) > half else "symmetric")
    weight = torch.from_numpy(kernel)[None, None].expand(3, 1, -1, -1)
    found: Floats = torch.nn.functional.conv2d(_tensor(padded), weight, groups=3)[0].movedim(0, -1).numpy()
    return found


def gaussian_noise(x: Floats, sigma: float, gray: bool, rng: np.random.Generator) -> Floats:
    """With Gaussian noise of a standard deviation of 255."""
    return (x + rng.standard_normal((*x.shape[:2], 1 if gray else 3)) * sigma / 255).clip(0, 1)


def poisson_noise(x: Floats, scale: float, gray: bool, rng: np.random.Generator) -> Floats:
    """With Poisson noise of as many levels as the picture has, rounded up to a power of 2."""
    clean = np.rint(x.clip(0, 1) * 255) / 255
    clean = (clean @ np.array([0.2989, 0.587, 0.114]))[..., None] if gray else clean
    levels = 2 ** np.ceil(np.log2(len(np.unique(np.rint(clean * 255)))))
    noisy: Floats = x + (rng.poisson(clean * levels) / levels - clean) * scale
    return noisy.clip(0, 1)


def jpeg(x: Floats, quality: float) -> Floats:
    """After compression by a real JPEG codec."""
    buffer = io.BytesIO()
    Image.fromarray(_bytes(x)).save(buffer, "JPEG", quality=round(quality))
    with Image.open(buffer) as image:
        return np.asarray(image, dtype=np.float64) / 255


def _round(x: Floats, order: Order, rng: np.random.Generator, resize_from: tuple[int, int]) -> Floats:
    """Blur, resize (relative to `resize_from`) and noise."""
    x = _filtered(x, draw_kernel(order, rng) if rng.random() < order.blur_prob else None)
    low, high = order.resize_range
    scale = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[int(rng.choice(3, p=order.resize_prob))]
    x = resize(x, (max(1, round(scale * resize_from[0])), max(1, round(scale * resize_from[1]))), _mode(rng))
    gray = bool(rng.random() < order.gray_noise_prob)
    if rng.random() < order.gaussian_noise_prob:
        return gaussian_noise(x, rng.uniform(*order.noise_range), gray, rng)
    return poisson_noise(x, rng.uniform(*order.poisson_scale_range), gray, rng)


def _filtered(x: Floats, kernel: Kernel | None) -> Floats:
    return x if kernel is None else filter_by(x, kernel)


def _bytes(x: Floats) -> Picture:
    return np.asarray(np.rint(x.clip(0, 1) * 255), dtype=np.uint8)


def _mode(rng: np.random.Generator) -> str:
    return str(rng.choice(["area", "bilinear", "bicubic"]))


def _tensor(x: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).movedim(-1, 0)[None]


DEGRADATIONS: dict[str, Degradation] = {"bicubic": bicubic, "realesrgan": RealESRGAN()}


def degradation(name: str) -> Degradation:
    """The degradation that a command line or a recipe names.

    Raises:
        InputError: there is none of that name.
    """
    if name not in DEGRADATIONS:
        raise InputError(f"unknown degradation '{name}'{did_you_mean(name, DEGRADATIONS)}")
    return DEGRADATIONS[name]
