"""Two small U-Nets with random weights: one like the embedded teacher, one like SD1.5."""

import pytest
import torch
from diffusers import UNet2DConditionModel

SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}

SHALLOW = {
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
DEEP = {
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def small_unet(**changes: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 16, 32, 32),
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


@pytest.fixture
def shallow() -> UNet2DConditionModel:
    """One layer a block, attention in the third level only."""
    return small_unet(**SHALLOW)


@pytest.fixture
def deep() -> UNet2DConditionModel:
    """Two layers a block, attention everywhere but in the innermost level."""
    return small_unet(**DEEP)


@pytest.fixture(params=["shallow", "deep"])
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    """Either of the two."""
    found: UNet2DConditionModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def scheduler() -> dict[str, object]:
    """A v-prediction scheduler's config."""
    return dict(SCHEDULER)
