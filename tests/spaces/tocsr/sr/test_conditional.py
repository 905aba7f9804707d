"""The conditional network: what growing it changes, what its parametrisations mean."""

import pytest
import torch
from diffusers import DDIMScheduler

from nas.errors import InputError
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.sr.conditional import ConditionalModel, Diffused, conditional_unet


def test_a_grown_network_predicts_what_its_backbone_does_whatever_the_condition(backbone: CompactUNet) -> None:
    grown = conditional_unet(backbone).eval()
    x, z = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t, text = torch.tensor([3, 900]), torch.zeros(2, 1, 6)
    torch.testing.assert_close(grown(torch.cat([x, z], 1), t, text).sample, backbone(x, t, text).sample)
    assert grown.config.in_channels == 8


def test_a_conditional_network_is_not_grown_twice(backbone: CompactUNet) -> None:
    with pytest.raises(InputError, match="conditional already"):
        conditional_unet(conditional_unet(backbone))


def test_a_network_without_scheduler_is_refused(backbone: CompactUNet) -> None:
    with pytest.raises(InputError, match="must know its scheduler"):
        conditional_unet(CompactUNet.from_config({**backbone.config, "scheduler": None}))


@pytest.mark.parametrize("target", ["latent", "residual"])
def test_what_is_diffused_stands_for_the_latent(target: str) -> None:
    diffused, z_hr, z_lr = Diffused(target, 0.3), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(diffused.latent(diffused.x0(z_hr, z_lr), z_lr), z_hr)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="latent, residual, got 'noise'"):
        Diffused("noise")


class Oracle(ConditionalModel):
    """Knows x_0 and predicts the noise that belongs to it."""

    x0: torch.Tensor

    def forward(self, x_t: torch.Tensor, z_lr: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        abar = self.abar[t].view(-1, 1, 1, 1)
        return (x_t - abar.sqrt() * self.x0) / (1 - abar).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("target", ["latent", "residual"])
def test_any_number_of_steps_reaches_what_a_perfect_model_knows(backbone: CompactUNet, steps: int, target: str) -> None:
    model = Oracle(conditional_unet(backbone), Diffused(target, 0.3))
    z_hr, z_lr = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    model.x0 = model.diffused.x0(z_hr, z_lr)
    torch.testing.assert_close(model.sample(torch.randn(2, 4, 8, 8), z_lr, steps), z_hr, atol=2e-3, rtol=0)


def test_a_schedule_that_ends_in_pure_noise_is_refused(backbone: CompactUNet) -> None:
    cosine = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2"}
    unet = conditional_unet(CompactUNet.from_config({**backbone.config, "scheduler": cosine}))
    with pytest.raises(InputError, match="must leave some signal"):
        ConditionalModel(unet, Diffused())


def test_an_error_of_eps_is_amplified_at_the_last_step_and_one_of_v_is_not(backbone: CompactUNet, scheduler: dict[str, object]) -> None:
    noise, z_lr = torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    for kind, wanted in (("epsilon", 14.6), ("v_prediction", 1.0)):
        unet = conditional_unet(CompactUNet.from_config({**backbone.config, "scheduler": {**scheduler, "prediction_type": kind}}))
        model = ConditionalModel(unet, Diffused("latent"))
        before = model.one_step(noise, z_lr).detach()
        with torch.no_grad():
            unet.conv_out.bias += 0.01
        assert float((model.one_step(noise, z_lr).detach() - before).abs().mean()) / 0.01 == pytest.approx(wanted, rel=0.01)


@torch.no_grad()
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_sampling_is_diffusers_ddim(backbone: CompactUNet, steps: int) -> None:
    model = ConditionalModel(conditional_unet(backbone).eval(), Diffused("latent"))
    config = {**model.scheduler, "prediction_type": "epsilon", "timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}
    ddim = DDIMScheduler.from_config(config)
    ddim.set_timesteps(steps)
    x = noise = torch.randn(1, 4, 8, 8)
    z_lr = torch.randn(1, 4, 8, 8)
    for t in ddim.timesteps:
        x = ddim.step(model(x, z_lr, t[None]), t, x).prev_sample
    torch.testing.assert_close(model.sample(noise, z_lr, steps), x, atol=1e-3, rtol=1e-3)


def test_steps_beyond_the_schedule_are_refused(backbone: CompactUNet) -> None:
    model = ConditionalModel(conditional_unet(backbone), Diffused())
    with pytest.raises(InputError, match="steps must be 1 to 1000, got 0"):
        model.sample(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), 0)
