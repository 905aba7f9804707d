"""Every kernel against its formula, written out tap by tap."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from nas.spaces.tocsr.sr.kernels import SHAPES, gaussian, plateau, sinc, squared_distance


def mahalanobis(x: float, y: float, sx: float, sy: float, theta: float) -> float:
    """c^T Sigma^-1 c with Sigma = R diag(sx^2, sy^2) R^T, by matrices."""
    rotation = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    sigma = rotation @ np.diag([sx**2, sy**2]) @ rotation.T
    c = np.array([x, y])
    return float(c @ np.linalg.inv(sigma) @ c)


def by_hand(size: int, of: object) -> np.ndarray:
    """The kernel of a function of (x, y), normalised."""
    half = size // 2
    taps = np.array([[of(x, y) for x in range(-half, half + 1)] for y in range(-half, half + 1)])  # type: ignore[operator]
    return taps / taps.sum()


@pytest.mark.parametrize(("sx", "sy", "theta"), [(1.5, 1.5, 0.0), (2.0, 0.7, 0.6), (0.3, 2.9, -2.5)])
def test_gaussian_kernels_follow_their_formula(sx: float, sy: float, theta: float) -> None:
    m = squared_distance(9, sx, sy, theta)
    for beta in (1.0, 0.6, 3.0):
        wanted = by_hand(9, lambda x, y, beta=beta: math.exp(-0.5 * mahalanobis(x, y, sx, sy, theta) ** beta))
        np.testing.assert_allclose(gaussian(m, beta), wanted, atol=1e-12)
        flat = by_hand(9, lambda x, y, beta=beta: 1 / (1 + mahalanobis(x, y, sx, sy, theta) ** beta))
        np.testing.assert_allclose(plateau(m, beta), flat, atol=1e-12)


def bessel_j1(x: float) -> float:
    """J1 by its integral."""
    return quad(lambda t: math.cos(t - x * math.sin(t)), 0, math.pi)[0] / math.pi


def test_sinc_is_the_transform_of_a_disc_and_finite_at_its_centre() -> None:
    cutoff = 1.3

    def tap(x: float, y: float) -> float:
        r = math.hypot(x, y)
        return cutoff * bessel_j1(cutoff * r) / (2 * math.pi * r) if r else cutoff**2 / (4 * math.pi)

    np.testing.assert_allclose(sinc(7, cutoff), by_hand(7, tap), atol=1e-10)


def test_every_kernel_sums_to_one() -> None:
    m = squared_distance(21, 2.0, 0.5, 1.0)
    for shape, _ in SHAPES.values():
        assert shape(m, 1.5).sum() == pytest.approx(1)
    assert sinc(21, 2.0).sum() == pytest.approx(1)
