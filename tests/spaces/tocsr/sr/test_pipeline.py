"""The pipeline: sizes, tiles, kinds of pictures, saving and loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.errors import DamagedFile, InputError
from nas.files import write_manifest
from nas.spaces.tocsr.sr.conditional import conditional_unet
from nas.spaces.tocsr.sr.pairs import upsample
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline, _upsampled
from tests.spaces.tocsr.sr.conftest import tiny_vae


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (16, 16), (33, 21)])
def test_any_size_becomes_four_times_as_large(pipeline: TOCSRPipeline, size: tuple[int, int]) -> None:
    assert pipeline(Image.new("RGB", size, (200, 30, 90))).images[0].size == (4 * size[0], 4 * size[1])


def test_tiles_give_every_pixel_and_the_same_picture_each_time(pipeline: TOCSRPipeline, picture: Image.Image) -> None:
    tiled = [pipeline(picture, tile=16, overlap=4).images[0] for _ in range(2)]
    np.testing.assert_array_equal(*map(pixels, tiled))
    assert tiled[0].size == (96, 80)


def test_windows_are_upsampled_as_the_whole_is() -> None:
    low = torch.rand(1, 3, 30, 21) * 2 - 1
    area = (slice(9, 20), slice(0, 13))
    torch.testing.assert_close(_upsampled(low, area), upsample(low)[:, :, 36:80, :52], atol=1e-5, rtol=0)


def test_upsampling_is_pillows_to_rounding(picture: Image.Image) -> None:
    picture = picture.point(lambda value: 64 + value // 2)  # Pillow clips what overshoots between its two passes
    found = upsample(torch.tensor(pixels(picture)).movedim(-1, 0)[None] / 127.5 - 1)[0].movedim(0, -1).numpy() * 127.5 + 127.5
    wanted = pixels(picture.resize((96, 80), Image.Resampling.BICUBIC))
    assert np.abs(found - wanted).max() < 1.5


def test_steps_choose_the_model(pipeline: TOCSRPipeline, picture: Image.Image) -> None:
    one, many = (pipeline(picture, steps).images[0] for steps in (1, 2))
    assert np.abs(pixels(one) - pixels(many)).max() > 0


def test_a_list_of_pictures_gives_a_list(pipeline: TOCSRPipeline, picture: Image.Image) -> None:
    both = pipeline([picture, picture.resize((9, 9))], output_type="np").images
    assert [image.shape for image in both] == [(80, 96, 3), (36, 36, 3)]
    assert 0 <= both[0].min() <= both[0].max() < 1.5


def test_a_saved_pipeline_comes_back_exactly(pipeline: TOCSRPipeline, picture: Image.Image, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "p")
    again = TOCSRPipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert again.config.row == "Eq. 23"
    for steps in (1, 3):
        np.testing.assert_array_equal(*(pixels(p(picture, steps).images[0]) for p in (pipeline, again)))


def test_a_pipeline_without_a_multi_step_model_takes_one_step(pipeline: TOCSRPipeline, picture: Image.Image, tmp_path: Path) -> None:
    TOCSRPipeline(pipeline.vae, pipeline.scheduler, pipeline.unet, None, "residual", 0.3).save_pretrained(tmp_path / "p")
    alone = TOCSRPipeline.from_pretrained(tmp_path / "p")
    with pytest.raises(InputError, match="takes 1 step, got 4"):
        alone(picture, 4)


def test_a_folder_of_another_version_is_refused(pipeline: TOCSRPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "tocsr_version": 7}))
    with pytest.raises(InputError, match="of version 7, this toolkit reads 1"):
        TOCSRPipeline.from_pretrained(tmp_path)


def test_a_folder_that_is_no_pipeline_or_damaged_is_refused(pipeline: TOCSRPipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pipeline folder"):
        TOCSRPipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(DamagedFile, match=r"model_index\.json is missing"):
        TOCSRPipeline.from_pretrained(tmp_path)
    pipeline.save_pretrained(tmp_path)
    write_manifest(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DamagedFile, match="hash differs"):
        TOCSRPipeline.from_pretrained(tmp_path)


def test_an_autoencoder_that_halves_three_times_works_too(pipeline: TOCSRPipeline, picture: Image.Image) -> None:
    made = TOCSRPipeline(tiny_vae(4), pipeline.scheduler, pipeline.unet, None)
    made.set_progress_bar_config(disable=True)
    assert made(picture.resize((13, 19)), tile=16, overlap=2).images[0].size == (52, 76)
    with pytest.raises(InputError, match="multiples of 2"):
        made(picture, tile=17)


def test_a_pipeline_needs_a_model(pipeline: TOCSRPipeline) -> None:
    with pytest.raises(InputError, match="one-step unet, a multi-step one, or both"):
        TOCSRPipeline(pipeline.vae, pipeline.scheduler)


def test_the_output_must_be_a_kind_that_is_known(pipeline: TOCSRPipeline, picture: Image.Image) -> None:
    with pytest.raises(InputError, match="'pil' or 'np', got 'pt'"):
        pipeline(picture, output_type="pt")


def test_models_are_conditional(pipeline: TOCSRPipeline) -> None:
    assert pipeline.unet.config.in_channels == 2 * pipeline.vae.config.latent_channels
    with pytest.raises(InputError, match="conditional already"):
        conditional_unet(pipeline.unet)
