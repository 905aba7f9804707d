"""Pairs, adaptation and distillation: each resumable, each an artefact, losses what their equations say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from nas.errors import DamagedFile, InputError
from nas.progress import Quiet
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.sr.conditional import ConditionalModel, Diffused, conditional_unet
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.pairs import Pairs, encode, make_pairs, to_tensor, upsample
from nas.spaces.tocsr.sr.steps import MADE_FROM, Adaptation, Data, Distillation, adapt, distill, pairs_of
from nas.spaces.tocsr.sr.train import Targets, Terms, diffusion_loss, distillation_loss, draw_lessons, noise_of, teacher_targets
from nas.spaces.tocsr.trainer import TrainingSettings, seeded

FEW = TrainingSettings(3, 2, rate=1e-3)


@pytest.fixture
def photographs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (70, 90, 3), dtype=np.uint8) for name in ("one", "two")}


@pytest.fixture
def pairs(photographs: dict[str, np.ndarray], vae: AutoencoderKL) -> Pairs:
    return make_pairs(photographs, vae, degradation("bicubic"), n=6, size=32, seed=0, progress=Quiet())


@pytest.fixture
def model(backbone: CompactUNet) -> ConditionalModel:
    return ConditionalModel(conditional_unet(backbone), Diffused("residual", 0.5)).eval()


def test_pairs_are_latents_of_the_same_place(pairs: Pairs, vae: AutoencoderKL) -> None:
    assert pairs.hr.shape == (6, 3, 32, 32)
    torch.testing.assert_close(encode(vae, pairs.hr.float() / 127.5 - 1), pairs.z_hr.float(), atol=2e-3, rtol=2e-3)
    assert pairs.z_lr.shape == pairs.z_hr.shape
    assert pairs.residual_scale() > 0


def test_the_low_latent_is_that_of_the_degraded_picture(vae: AutoencoderKL) -> None:
    flat = {"flat": np.full((64, 64, 3), 77, np.uint8)}
    pairs = make_pairs(flat, vae, degradation("bicubic"), n=2, size=32, seed=0, progress=Quiet())
    torch.testing.assert_close(pairs.z_lr, pairs.z_hr, atol=4e-3, rtol=0)
    assert float((upsample(to_tensor(flat["flat"])) - (77 / 127.5 - 1)).abs().max()) < 1e-5


def test_pairs_are_made_once(photographs: dict[str, np.ndarray], vae: AutoencoderKL, tmp_path: Path) -> None:
    data = Data(n=4, size=32)
    first = pairs_of(photographs, vae, data, tmp_path, Quiet())
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    assert pairs_of(photographs, vae, data, tmp_path, Quiet()).key == first.key
    assert path.stat().st_mtime_ns == stamp
    assert pairs_of(photographs, vae, Data(n=4, size=32, seed=9), tmp_path, Quiet()).key != first.key
    path.write_bytes(b"x")
    with pytest.raises(DamagedFile, match="holds no training pairs"):
        pairs_of(photographs, vae, data, tmp_path, Quiet())


def test_photographs_smaller_than_a_crop_are_named(photographs: dict[str, np.ndarray], vae: AutoencoderKL) -> None:
    with pytest.raises(InputError, match="photograph 'one' must have sides of at least 96 pixels, got 90 x 70"):
        make_pairs(photographs, vae, degradation("bicubic"), n=1, size=96, seed=0, progress=Quiet())


def test_the_diffusion_loss_is_eq_21(model: ConditionalModel, pairs: Pairs) -> None:
    z_hr, z_lr = pairs.z_hr[:2].float(), pairs.z_lr[:2].float()
    random = seeded(0, 5)
    t = torch.randint(1000, (2,), generator=random)
    noise = torch.randn(z_hr.shape, generator=random)
    abar = model.abar[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * (z_hr - z_lr) / 0.5 + (1 - abar).sqrt() * noise
    error = (model(x_t, z_lr, t) - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(diffusion_loss(model)(model, (z_hr, z_lr), seeded(0, 5)), error.mean())
    torch.testing.assert_close(diffusion_loss(model, "v")(model, (z_hr, z_lr), seeded(0, 5)), (error / model.abar[t]).mean())


def test_pure_eq_23_sees_the_teachers_latents_and_noise_only(model: ConditionalModel, pairs: Pairs) -> None:
    targets = Targets(1, torch.randn(3, 4, 8, 8).half())
    lesson = draw_lessons(pairs, targets, Terms())(seeded(0, 0), 5)
    assert len(lesson["taught"]) == len(lesson["noise"]) == 5
    loss = distillation_loss(model, Terms())(model, lesson, seeded(0, 0))
    found = model.one_step(lesson["noise"], lesson["z_lr"])
    torch.testing.assert_close(loss, (found - lesson["taught"]).square().mean() / 0.25)


def test_with_an_hr_term_half_a_batch_is_the_teachers(model: ConditionalModel, pairs: Pairs) -> None:
    targets = Targets(1, torch.randn(3, 4, 8, 8).half())
    lesson = draw_lessons(pairs, targets, Terms(0.1, 1.0))(seeded(0, 0), 6)
    assert (len(lesson["taught"]), len(lesson["noise"])) == (3, 6)
    loss = distillation_loss(model, Terms(0.1, 1.0))(model, lesson, seeded(0, 0))
    found = model.one_step(lesson["noise"], lesson["z_lr"])
    wanted = 0.1 * (found[:3] - lesson["taught"]).square().mean() / 0.25 + (found - lesson["z_hr"]).square().mean() / 0.25
    torch.testing.assert_close(loss, wanted)


def test_rows_are_called_what_they_are() -> None:
    assert Terms().name == "Eq. 23"
    assert Terms(0.1, 1.0).name == "Eq. 23 + HR term"
    assert Terms(0.0, 1.0, 0.5).name == "HR term + image L1"
    with pytest.raises(InputError, match="one of them more"):
        Terms(0.0)


def test_terms_that_need_more_say_so(model: ConditionalModel) -> None:
    with pytest.raises(InputError, match="need the decoder"):
        distillation_loss(model, Terms(image_l1=1.0))
    with pytest.raises(InputError, match="pip install lpips"):
        distillation_loss(model, Terms(lpips=1.0), vae=torch.nn.Identity())  # type: ignore[arg-type]


def test_the_teachers_latents_are_its_samples_and_survive_a_kill(model: ConditionalModel, pairs: Pairs, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    some = teacher_targets(model, pairs, 2, 3, path, key="k", progress=Quiet())
    more = teacher_targets(model, pairs, 4, 3, path, key="k", progress=Quiet())
    rows = torch.arange(4)
    with torch.no_grad():
        wanted = model.sample(noise_of(1, rows, (4, 8, 8)), pairs.z_lr[:4].float(), 3)
    torch.testing.assert_close(more.latents.float(), wanted, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(some.latents, more.latents[:2])
    with pytest.raises(InputError, match="of another teacher"):
        teacher_targets(model, pairs, 4, 3, path, key="other", progress=Quiet())


def test_from_backbone_to_one_step(backbone: CompactUNet, vae: AutoencoderKL, pairs: Pairs, tmp_path: Path) -> None:
    adapted = adapt(backbone, vae, pairs, tmp_path / "adapted", how=Adaptation(), settings=FEW, work=tmp_path, progress=Quiet(), heldout=pairs)
    assert adapted.unet is None
    assert adapted.multistep.config.in_channels == 8
    how = Distillation(Terms(0.5, 1.0, 0.1), targets=3, steps=2)
    found = distill(adapted, pairs, tmp_path / "one", how=how, settings=FEW, work=tmp_path, progress=Quiet(), heldout=pairs)
    assert found.config.row == "Eq. 23 + HR term + image L1"
    made = json.loads((tmp_path / "one" / MADE_FROM).read_text())
    assert [row["step"] for row in made["curve"]] == [0, 3]
    assert set(made["targets"]) == {"teacher", "lr"}
    before = (tmp_path / "one" / MADE_FROM).stat().st_mtime_ns
    distill(adapted, pairs, tmp_path / "one", how=how, settings=FEW, work=tmp_path, progress=Quiet())
    assert (tmp_path / "one" / MADE_FROM).stat().st_mtime_ns == before
    changed = [not torch.equal(a, b) for a, b in zip(found.unet.parameters(), found.multistep.parameters(), strict=True)]
    assert any(changed)
