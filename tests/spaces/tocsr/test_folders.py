"""Folders of pictures as people have them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.errors import InputError
from nas.progress import Quiet
from nas.spaces.tocsr.folders import LAYOUTS, PictureFolder


class Notes(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures smaller, larger, flatter than a crop, grayscale, palette, 16 bits, transparent; a torn one and a text."""
    path = tmp_path / "pictures"
    (path / "inner").mkdir(parents=True)
    Image.fromarray(pixels(100, 60)).save(path / "a.png")
    Image.fromarray(pixels(9, 200)).save(path / "b.jpg")
    Image.fromarray(pixels(40, 50)[..., 0]).save(path / "inner" / "gray.PNG")
    Image.fromarray(pixels(40, 50)).convert("P").save(path / "palette.png")
    Image.fromarray(pixels(40, 50)[..., 0].astype(np.uint16) * 257).save(path / "deep.png")
    Image.fromarray(np.dstack([pixels(33, 32), pixels(33, 32)[..., :1]])).save(path / "alpha.webp", lossless=True)
    (path / "torn.jpg").write_bytes((path / "b.jpg").read_bytes()[:120])
    (path / "notes.txt").write_text("no picture")
    return path


def test_crops_of_any_picture_have_one_size_and_follow_from_the_generator(folder: Path) -> None:
    notes = Notes()
    pictures = PictureFolder.of([folder], 32, notes)
    assert len(pictures.files) == 7
    found = pictures.crops(torch.Generator().manual_seed(1), 40)
    assert found.shape == (40, 3, 32, 32)
    assert float(found.min()) >= -1
    assert float(found.max()) <= 1
    assert sum("torn.jpg" in line for line in notes.lines) == 1
    again = PictureFolder.of([folder], 32).crops(torch.Generator().manual_seed(1), 40)
    assert torch.equal(found, again)
    assert not torch.equal(found, pictures.crops(torch.Generator().manual_seed(2), 40))
    assert len(pictures.centres()) == 6


def test_a_crop_is_a_part_of_its_picture_mirrored_or_not(tmp_path: Path) -> None:
    Image.fromarray(pixels(20, 20)).save(tmp_path / "a.png")
    whole = torch.from_numpy(pixels(20, 20)).permute(2, 0, 1).float() / 127.5 - 1
    windows = whole.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
    for crop in PictureFolder.of([tmp_path], 8).crops(torch.Generator().manual_seed(0), 10):
        assert any(bool((windows == c).flatten(1).all(1).any()) for c in (crop, crop.flip(2)))


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(16, 16))
    picture.save(tmp_path / "plain.png")
    tags = Image.Exif()
    tags[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees to the right
    picture.rotate(90).save(tmp_path / "turned.png", exif=tags)
    plain, turned = PictureFolder.of([tmp_path], 16).centres()
    assert torch.equal(plain, turned)


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_a_known_data_set_only_the_full_size_pictures_are_taken(tmp_path: Path, name: str) -> None:
    for inside in (f"{LAYOUTS[name]}/0000", "small"):
        (tmp_path / inside).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(pixels(8, 8)).save(tmp_path / inside / f"{number}.png")
    notes = Notes()
    pictures = PictureFolder.of([tmp_path], 8, notes, first=2)
    assert [file.parent.parent.name for file in pictures.files] == [LAYOUTS[name]] * 2
    assert any(name in line for line in notes.lines)


def test_held_out_pictures_are_apart_and_folders_without_pictures_are_one_line(folder: Path, tmp_path: Path) -> None:
    rest, held = PictureFolder.of([folder], 32).apart(2)
    assert len(held.files) == 2
    assert set(rest.files).isdisjoint(held.files)
    assert rest.fingerprint != held.fingerprint
    with pytest.raises(InputError, match="7 pictures cannot have 7 held out"):
        PictureFolder.of([folder], 32).apart(7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures in"):
        PictureFolder.of([tmp_path / "empty"], 32)
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of the 1 files is a picture"):
        PictureFolder.of([tmp_path / "empty"], 32).crops(torch.Generator(), 1)
