"""A tiny pipeline with random weights, and small pictures."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image

from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.sr.conditional import conditional_unet
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline

SHALLOW = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4, "layers_per_block": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_vae(blocks: int = 3) -> AutoencoderKL:
    """4 latent channels, f = 2^(blocks - 1)."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(4,) * blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
        mid_block_add_attention=False,
    ).eval()


@pytest.fixture
def vae() -> AutoencoderKL:
    """Halves twice, like the embedded one."""
    return tiny_vae()


@pytest.fixture
def scheduler() -> dict[str, object]:
    """SD1.5's betas, v prediction."""
    return {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


@pytest.fixture
def backbone(scheduler: dict[str, object]) -> CompactUNet:
    """An unconditional network of 4 channels that predicts v."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2, **SHALLOW
    )
    return CompactUNet.of(unet.eval(), scheduler)


@pytest.fixture
def pipeline(vae: AutoencoderKL, backbone: CompactUNet, scheduler: dict[str, object]) -> TOCSRPipeline:
    """Both models; the one-step one differs a little from the multi-step one."""
    one, many = conditional_unet(backbone), conditional_unet(backbone)
    with torch.no_grad():
        one.conv_in.weight[:, 4:] += 0.1
    made = TOCSRPipeline(vae, DDPMScheduler.from_config(scheduler), one.eval(), many.eval(), "residual", 0.3, "Eq. 23")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def picture() -> Image.Image:
    """24 x 20 pixels of colour."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
