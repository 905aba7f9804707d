"""One stage of a checkpoint without the rest."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from nas.errors import DamagedFile, InputError
from nas.spaces.tocsr.lazy import load_stage
from nas.spaces.tocsr.unet import stages_of


@pytest.mark.parametrize("shards", [None, "200KB"])
def test_every_stage_comes_with_its_own_weights(deep: UNet2DConditionModel, tmp_path: Path, shards: str | None) -> None:
    deep.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    for name, stage in stages_of(deep).items():
        found = load_stage(tmp_path, name).state_dict()
        assert list(found) == list(stage.state_dict())
        assert all(torch.equal(found[key], value) for key, value in stage.state_dict().items())


def test_a_stage_that_is_not_there_and_a_torn_checkpoint_are_one_line(shallow: UNet2DConditionModel, tmp_path: Path) -> None:
    shallow.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no stage 'down9'; did you mean 'down"):
        load_stage(tmp_path, "down9")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedFile, match="stage 'mid' cannot be read"):
        load_stage(tmp_path, "mid")
