"""Degradations: sizes, seeds, and each operation against what it says."""

import numpy as np
import pytest
from PIL import Image

from nas.errors import InputError
from nas.spaces.tocsr.sr.degradation import SECOND, Order, RealESRGAN, degradation, filter_by, gaussian_noise, jpeg, poisson_noise, resize
from nas.spaces.tocsr.sr.kernels import gaussian, squared_distance


@pytest.fixture
def photo() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([128 + 100 * np.sin(x / 5), 128 + 100 * np.cos(y / 4), (x + y) * 2.0], -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["bicubic", "realesrgan"])
def test_same_seed_same_bytes_and_a_quarter_of_the_sides(name: str, photo: np.ndarray) -> None:
    degrade = degradation(name)
    one, again = (degrade(photo, np.random.default_rng(3)) for _ in range(2))
    assert one.shape == (12, 16, 3)
    assert one.dtype == np.uint8
    assert one.tobytes() == again.tobytes()


def test_other_seeds_degrade_otherwise(photo: np.ndarray) -> None:
    found = {RealESRGAN()(photo, np.random.default_rng(seed)).tobytes() for seed in range(5)}
    assert len(found) == 5


def test_bicubic_is_pillows(photo: np.ndarray) -> None:
    wanted = np.asarray(Image.fromarray(photo).resize((16, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(degradation("bicubic")(photo, np.random.default_rng(0)), wanted)


def test_unknown_degradation_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'bicubic'"):
        degradation("bicubik")


def test_defaults_are_the_papers() -> None:
    first = Order()
    assert first.kernel_sizes == (7, 9, 11, 13, 15, 17, 19, 21)
    assert sum(first.kernel_probs) == pytest.approx(1)
    assert (first.blur_sigma, first.resize_range, first.noise_range, first.jpeg_range) == ((0.2, 3.0), (0.15, 1.5), (1.0, 30.0), (30.0, 95.0))
    assert (SECOND.blur_prob, SECOND.blur_sigma, SECOND.resize_range, SECOND.noise_range) == (0.8, (0.2, 1.5), (0.3, 1.2), (1.0, 25.0))
    assert RealESRGAN().final_sinc_prob == 0.8


def test_filtering_is_a_correlation_with_mirrored_edges() -> None:
    x = np.random.default_rng(0).random((9, 8, 3))
    kernel = gaussian(squared_distance(5, 1.5, 0.7, 0.4))
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    wanted = sum(kernel[i, j] * padded[i : i + 9, j : j + 8] for i in range(5) for j in range(5))
    np.testing.assert_allclose(filter_by(x, kernel), wanted, atol=1e-12)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resizing_keeps_a_plain_picture(mode: str) -> None:
    np.testing.assert_allclose(resize(np.full((8, 12, 3), 0.3), (5, 17), mode), 0.3, atol=1e-9)


def test_gaussian_noise_has_the_strength_it_is_given() -> None:
    plain = np.full((64, 64, 3), 0.5)
    noisy = gaussian_noise(plain, 10.0, gray=False, rng=np.random.default_rng(0)) - plain
    assert noisy.std() * 255 == pytest.approx(10, rel=0.03)
    gray = gaussian_noise(plain, 10.0, gray=True, rng=np.random.default_rng(0)) - plain
    assert np.ptp(gray, axis=-1).max() < 1e-12


def test_poisson_noise_grows_with_the_root_of_the_level() -> None:
    ramp = np.repeat(np.linspace(0, 1, 256)[None, :, None], 400, 0).repeat(3, 2)  # 256 levels
    noise = poisson_noise(ramp, 1.0, gray=False, rng=np.random.default_rng(0)) - ramp
    for level in (64, 128):
        assert noise[:, level].std() == pytest.approx(np.sqrt(ramp[0, level, 0] / 256), rel=0.06)
    gray = poisson_noise(ramp[:, 64:128], 1.0, gray=True, rng=np.random.default_rng(0)) - ramp[:, 64:128]
    assert np.ptp(gray, axis=-1).max() < 1e-12


def test_jpeg_hurts_more_at_low_quality(photo: np.ndarray) -> None:
    x = photo / 255
    errors = [np.abs(jpeg(x, quality) - x).mean() for quality in (95, 30)]
    assert 0 < errors[0] < errors[1]


def test_sides_that_are_no_multiples_of_four_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 4, got 9 x 8"):
        RealESRGAN()(np.zeros((8, 9, 3), dtype=np.uint8), np.random.default_rng(0))
