"""Blur kernels of Real-ESRGAN's degradation (key [Real-ESRGAN]): Gaussian, generalised and plateau-shaped, isotropic or not, and sinc.

Symbols: `c (2,)` a tap's coordinates (x, y) from the centre, `Sigma = R diag(sx^2, sy^2) R^T` with R the rotation by theta,
`m = c^T Sigma^-1 c`, `beta` the shape, `w` the cut-off of the ideal low-pass filter in radians a pixel. Every kernel sums to 1.

    Gaussian exp(-m / 2)    generalised exp(-m^beta / 2)    plateau 1 / (1 + m^beta)    sinc w J1(w |c|) / (2 pi |c|)
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

Kernel = NDArray[np.float64]
"""`(k, k)`, k odd."""


def squared_distance(size: int, sx: float, sy: float, theta: float) -> Kernel:
    """`m` at every tap, `(size, size)`; rows are y."""
    along = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(along, along, indexing="ij")
    cos, sin = np.cos(theta), np.sin(theta)
    found: Kernel = ((x * cos + y * sin) / sx) ** 2 + ((y * cos - x * sin) / sy) ** 2
    return found


def gaussian(m: Kernel, beta: float = 1.0) -> Kernel:
    """The Gaussian kernel; generalised with `beta` other than 1."""
    return _normalised(np.exp(-0.5 * m**beta))


def plateau(m: Kernel, beta: float) -> Kernel:
    """The plateau-shaped kernel."""
    return _normalised(1 / (1 + m**beta))


def sinc(size: int, cutoff: float) -> Kernel:
    """The ideal circular low-pass filter, cut to `size` taps; its limit at the centre is w^2 / (4 pi)."""
    r = np.sqrt(squared_distance(size, 1.0, 1.0, 0.0))
    centre = r == 0
    safe = np.where(centre, 1.0, r)
    return _normalised(np.where(centre, cutoff**2 / (4 * np.pi), cutoff * j1(cutoff * safe) / (2 * np.pi * safe)))


SHAPES: dict[str, tuple[Callable[..., Kernel], bool]] = {
    "iso": (gaussian, True),
    "aniso": (gaussian, False),
    "generalized_iso": (gaussian, True),
    "generalized_aniso": (gaussian, False),
    "plateau_iso": (plateau, True),
    "plateau_aniso": (plateau, False),
}
"""Kind -> the formula and whether it is isotropic."""


def _normalised(kernel: Kernel) -> Kernel:
    found: Kernel = kernel / kernel.sum()
    return found
