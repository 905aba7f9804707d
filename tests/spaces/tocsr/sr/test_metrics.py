"""Metrics against direct formulas and known values."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nas.errors import InputError
from nas.spaces.tocsr.sr.metrics import ALWAYS, METRICS, available, gmsd, luma, psnr, psnr_y, ssim

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)
NOISY = (PHOTO + RNG.normal(0, 9, PHOTO.shape)).clip(0, 255).astype(np.uint8)


def test_luma_has_bt601s_ends() -> None:
    assert luma(np.array([[[0, 0, 0]]], dtype=np.uint8)) == pytest.approx(16)
    assert luma(np.array([[[255, 255, 255]]], dtype=np.uint8)) == pytest.approx(235, abs=0.01)


def test_psnr_of_a_known_error() -> None:
    assert psnr(np.full((4, 4), 10), np.full((4, 4), 15)) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(PHOTO, PHOTO) == 100


def test_ssim_is_its_formula_inside_the_window() -> None:
    x, y = luma(NOISY), luma(PHOTO)

    def blur(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, 1.5, truncate=3.4)  # 11 taps

    mx, my = blur(x), blur(y)
    sx, sy, sxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sx + sy + c2))
    assert ssim(NOISY, PHOTO) == pytest.approx(values[5:-5, 5:-5].mean(), abs=2e-3)


@pytest.mark.parametrize(("metric", "best"), [(psnr, 100), (psnr_y, 100), (ssim, 1), (gmsd, 0)])
def test_a_picture_is_best_like_itself_and_worse_noisy(metric: object, best: float) -> None:
    itself, noisy = metric(PHOTO, PHOTO), metric(NOISY, PHOTO)  # type: ignore[operator]
    assert itself == pytest.approx(best, abs=1e-6)
    assert abs(noisy - best) > abs(itself - best)


def test_metrics_that_need_nothing_are_always_there_and_others_say_what_to_install() -> None:
    there, missing = available(list(METRICS))
    assert set(ALWAYS) <= set(there)
    assert set(there) | set(missing) == set(METRICS)
    assert all("pip install" in reason for reason in missing.values())


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'psnr'"):
        available(["pnsr"])
