"""More latent channels: what the wider networks start as, the variants of Table S4, Eq. (4), and what is refused."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from nas.errors import InputError
from nas.evaluators.costs import count_params
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.counts import count_params_without_groupnorm, sd15_unet
from nas.spaces.tocsr.expansion import Distilled, Variant, check_vae_teacher, expand_autoencoder, expand_unet, expansion_layers, scaled_latents, teacher_latents
from tests.spaces.tocsr.conftest import SCHEDULER


def autoencoder(channels: int = 4, levels: int = 2, quant: bool = True) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=(8,) * levels,
        latent_channels=channels, norm_num_groups=4, use_quant_conv=quant, use_post_quant_conv=quant,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("quant", [True, False])
def test_a_wider_autoencoder_starts_as_the_old_one(quant: bool) -> None:
    vae = autoencoder(quant=quant)
    wider = expand_autoencoder(vae, 16)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        old, new = vae.encode(images).latent_dist, wider.encode(images).latent_dist
        torch.testing.assert_close(new.mean[:, :4], old.mean)
        torch.testing.assert_close(new.logvar[:, :4], old.logvar)
        torch.testing.assert_close(wider.decode(new.mode()).sample, vae.decode(old.mode()).sample)
    assert new.mean.shape == (2, 16, 8, 8)
    fresh = new.mean[:, 4:].std()
    assert 0.1 * old.mean.std() < fresh < 10 * old.mean.std()
    assert bool(torch.isfinite(new.logvar).all())
    with pytest.raises(InputError, match="has 4 latent channels already"):
        expand_autoencoder(vae, 4)


@pytest.mark.parametrize("variant", ["v1", "v2", "v3"])
def test_a_wider_unet_starts_as_the_old_one_on_the_old_channels(deep: UNet2DConditionModel, variant: Variant) -> None:
    wider = expand_unet(deep, 16, variant).eval()
    sample, text = torch.randn(2, 16, 8, 8), torch.randn(2, 5, 24)
    with torch.no_grad():
        old = deep(sample[:, :4], 7, text).sample
        new = wider(sample, 7, text).sample
    torch.testing.assert_close(new[:, :4], old)
    assert float(new[:, 4:].abs().max()) == 0
    loss = wider(sample, 7, text).sample.square().sum() + wider(sample, 7, text).sample[:, 4:].sum()
    loss.backward()
    assert all(p.grad is not None for part in (wider.conv_in, wider.conv_out) for p in part.parameters())


@pytest.mark.parametrize(("variant", "millions"), [("v1", 859.43), ("v2", 859.46), ("v3", 859.398)])
def test_parameters_of_the_variants_are_those_of_table_s4(variant: Variant, millions: float) -> None:
    unet = sd15_unet(4)
    with torch.device("meta"):
        layers = expansion_layers(variant, 4, 16, 320)
    rest = count_params_without_groupnorm(unet) - count_params(unet.conv_in) - count_params(unet.conv_out)
    assert (rest + sum(map(count_params, layers))) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("variant", ["v1", "v3"])
def test_a_variant_is_saved_and_read_back(deep: UNet2DConditionModel, variant: Variant, tmp_path: Path) -> None:
    config = {**deep.config, "in_channels": 16, "out_channels": 16, "scheduler": SCHEDULER, "expansion": [variant, 4]}
    model = CompactUNet.from_config(config).eval()
    model.load_state_dict(expand_unet(deep, 16, variant).state_dict())
    model.save_pretrained(tmp_path)
    again = CompactUNet.from_pretrained(tmp_path).eval()
    inputs = torch.randn(1, 16, 8, 8), 3, torch.randn(1, 5, 24)
    with torch.no_grad():
        assert torch.equal(model(*inputs).sample, again(*inputs).sample)


def test_equation_4_is_latent_matching_plus_reconstruction() -> None:
    teacher, student = autoencoder(16), expand_autoencoder(autoencoder(4), 16)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        wanted = teacher_latents(teacher, images)
        loss, found = Distilled(student, 0.5)(images, wanted)
        mean = student.encode(images).latent_dist.mode()
        expected = 0.5 * (scaled_latents(student, mean) - wanted).square().mean() + (student.decode(mean).sample - images).square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, mean * student.config.scaling_factor)


def test_networks_that_cannot_be_expanded_are_one_clear_line(deep: UNet2DConditionModel) -> None:
    with pytest.raises(InputError, match="must have 16 latent channels, got 4"):
        check_vae_teacher(autoencoder(4), autoencoder(4), 16)
    with pytest.raises(InputError, match="must compress by 2 like"):
        check_vae_teacher(autoencoder(16, levels=3), autoencoder(4), 16)
    with pytest.raises(InputError, match="inpainting"):
        expand_unet(UNet2DConditionModel(in_channels=9, out_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=8), 16)
    with pytest.raises(InputError, match="did you mean 'v2'"):
        expand_unet(deep, 16, "v22")  # type: ignore[arg-type]
