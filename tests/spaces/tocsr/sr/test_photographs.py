"""Photographs in a folder: read when asked for, as many kept as fit, the same pixels as ever."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL
from PIL import Image

from nas.errors import InputError
from nas.progress import Quiet
from nas.spaces.tocsr.sr import photographs as module
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.pairs import make_pairs
from nas.spaces.tocsr.sr.photographs import PhotographFolder, hold_out, photographs_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(rng.integers(0, 256, (80, 200, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_a_photograph_is_halved_until_it_is_short_enough(folder: Path) -> None:
    found = photographs_in(folder, 120, Quiet())
    assert list(found) == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(found["a.png"], np.asarray(Image.open(folder / "a.png").reduce(2)))


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(tmp_path / "deep.png")
    assert photographs_in(tmp_path, 99, Quiet())["deep.png"].tolist() == [[[116] * 3] * 4] * 4


def test_photographs_are_read_when_asked_for_and_kept_as_far_as_they_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = module.read_picture

    def listening(path: Path, most: int) -> Image.Image:
        read.append(path.name)
        return original(path, most)

    monkeypatch.setattr(module, "read_picture", listening)
    found = PhotographFolder(sorted(folder.iterdir()), 999, keep=2 * 80 * 200 * 3)
    rest, held = hold_out(found, ["b.png"])
    assert (list(rest), list(held), "b.png" in found, read) == (["a.png", "c.png"], ["b.png"], True, [])
    for name in ("a.png", "b.png", "a.png", "c.png", "a.png", "b.png"):
        assert found[name].shape == (80, 200, 3)
    assert read == ["a.png", "b.png", "c.png", "b.png"]


def test_pairs_of_a_folder_are_those_of_its_photographs_in_memory(folder: Path, vae: AutoencoderKL) -> None:
    few = PhotographFolder(sorted(folder.iterdir()), 999, keep=1)
    lazy, ready = (make_pairs(source, vae, degradation("bicubic"), n=20, size=32, seed=3, progress=Quiet()) for source in (few, dict(few)))
    assert lazy.key == ready.key
    assert bool((lazy.hr == ready.hr).all())


def test_photographs_are_held_out_by_name(folder: Path) -> None:
    found = photographs_in(folder, 999, Quiet())
    with pytest.raises(KeyError):
        hold_out(found, ["b.png"])[0]["b.png"]
    with pytest.raises(InputError, match=r"did you mean 'b\.png'"):
        hold_out(found, ["bb.png"])
    with pytest.raises(InputError, match="leave some to train on"):
        hold_out(found, list(found))
