"""Pictures and models from anywhere: pickles are refused, strange pictures are read or named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas.errors import DamagedFile, InputError, NasError
from nas.files import write_manifest
from nas.progress import Quiet
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.data import load_pictures, picture_files
from nas.table import read_table
from tests.spaces.tocsr.conftest import SHALLOW, small_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


class Listener(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    CompactUNet.of(small_unet(**SHALLOW)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", WEIGHTS])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(model: Path, name: str) -> None:
    canary = model / "canary"
    (model / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Evil(canary)}, model / name)
    with pytest.raises(NasError):
        CompactUNet.from_pretrained(model)
    with pytest.raises(NasError):
        CompactUNet.from_pretrained(model, use_safetensors=False)
    assert not canary.exists()


def test_a_pickle_offered_as_a_table_is_refused_and_not_run(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "t.npz"
    np.savez(path, sizes=np.array([Evil(canary)], dtype=object))
    with pytest.raises(InputError, match="plain arrays"):
        read_table(path)
    assert not canary.exists()


@pytest.mark.parametrize("part", range(20))
def test_a_truncated_winner_is_refused(model: Path, part: int) -> None:
    write_manifest(model)
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: len(content) * part // 20])
    with pytest.raises(DamagedFile, match="its manifest says"):
        CompactUNet.from_pretrained(model)


def test_no_pictures_is_an_error_and_one_is_enough_to_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures"):
        picture_files(tmp_path)
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "a.png")
    pictures, kept = load_pictures(picture_files(tmp_path), 16, Quiet())
    assert pictures.shape == (1, 3, 16, 16)
    assert len(kept) == 1


def test_a_corrupt_picture_and_a_bomb_are_named_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    Image.new("RGB", (200, 200)).save(tmp_path / "c.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    listener = Listener()
    _, kept = load_pictures(picture_files(tmp_path), 16, listener)
    assert [path.name for path in kept] == ["a.png"]
    assert [note.split(": ")[0] for note in listener.notes] == [f"skipped {tmp_path / 'b.png'}", f"skipped {tmp_path / 'c.png'}"]


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_a_picture_of_any_mode_is_read_at_its_brightness(tmp_path: Path, mode: str) -> None:
    half = Image.new("L", (20, 20), 128)
    if mode == "I;16":
        picture = Image.fromarray(np.full((20, 20), 128 * 257, dtype=np.uint16))
    elif mode == "1":
        picture = Image.new("1", (20, 20), 1)
    else:
        picture = half.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    picture.save(path)
    pictures, _ = load_pictures([path], 16, Quiet())
    expected = 1.0 if mode == "1" else 128 / 127.5 - 1
    assert torch.allclose(pictures, torch.tensor(expected), atol=0.02)
