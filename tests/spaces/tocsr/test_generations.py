"""Same-seed samples of teacher and winners."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from nas.errors import InputError
from nas.progress import Quiet
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.generations import compare_generations, frechet_distance, sampled
from tests.core.test_cli import nas as command
from tests.spaces.tocsr.conftest import SCHEDULER
from tests.spaces.tocsr.test_expansion import autoencoder


def colours(pictures: Tensor) -> Tensor:
    """Mean colour of each picture."""
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1
    return pictures.mean((2, 3))


@pytest.fixture
def teacher(shallow: UNet2DConditionModel) -> CompactUNet:
    return CompactUNet.of(shallow, SCHEDULER).eval()


@pytest.fixture
def vae() -> AutoencoderKL:
    return autoencoder(4)


def test_samples_follow_from_the_seed_and_the_rows_compare_with_another_seed(teacher: CompactUNet, vae: AutoencoderKL) -> None:
    text = torch.randn(6, 3, 24, generator=torch.Generator().manual_seed(0))
    one = sampled(teacher, text, 8, 2, seed=0)
    assert one.shape == (6, 4, 8, 8)
    assert torch.equal(one, sampled(teacher, text, 8, 2, seed=0))
    rows = compare_generations(teacher, {"same": CompactUNet.of(teacher, SCHEDULER)}, text, steps=2, seed=0, progress=Quiet(), vae=vae, extractor=colours)
    assert [row["name"] for row in rows] == ["teacher, another seed", "same"]
    assert rows[1]["mse"] == 0
    assert rows[1]["fid"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["relative"] > 0.5
    assert rows[0]["fid"] > 0
    bare = compare_generations(teacher, {}, text, steps=1, seed=0, progress=Quiet())
    assert bare[0]["fid"] is None
    with pytest.raises(InputError, match=r"must give features \(6, d\)"):
        compare_generations(teacher, {}, text, steps=1, seed=0, progress=Quiet(), vae=vae, extractor=lambda pictures: pictures)


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (200_000, 2)), random.normal([3, 0], [2, 1], (200_000, 2))
    assert frechet_distance(one, other) == pytest.approx(9 + 1, rel=0.02)  # |m|^2 + (2 - 1)^2
    with pytest.raises(InputError, match="at least 2 samples"):
        frechet_distance(one[:1], other)


def test_wrong_runs_are_one_line(tmp_path: Path) -> None:
    import nas

    nas.search("synthetic:3", 0.1, workdir=tmp_path, name="other", trials=2)
    assert "for runs of tocsr_unet" in command("tocsr", "evaluate", "--generations", str(tmp_path / "other")).stderr
    assert "--hr, or a run with --generations" in command("tocsr", "evaluate").stderr
