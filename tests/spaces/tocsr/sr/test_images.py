"""Pictures of all kinds survive the way through the model."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.errors import InputError
from nas.spaces.tocsr.sr.images import is_deep, joined, note_of, read_picture, split, write_picture
from nas.spaces.tocsr.sr.pairs import upsample

RAMP = np.linspace(0, 255, 48).reshape(6, 8).astype(np.uint8)


def enlarged(picture: Image.Image) -> Image.Image:
    """By plain upsampling, as the pipeline would by its model."""
    colours, kept = split(picture)
    return joined(upsample(colours[None])[0], kept)


@pytest.mark.parametrize(
    ("mode", "wanted"), [("RGB", "RGB"), ("L", "L"), ("1", "L"), ("LA", "LA"), ("RGBA", "RGBA"), ("P", "RGB"), ("CMYK", "RGB"), ("I;16", "L")]
)
def test_every_mode_comes_back_as_it_should(mode: str, wanted: str) -> None:
    picture = Image.fromarray(RAMP).convert("I").convert(mode) if mode == "I;16" else Image.fromarray(RAMP).convert("RGB").convert(mode)
    found = enlarged(picture)
    assert found.mode == wanted
    assert found.size == (32, 24)


def test_sixteen_bits_are_not_clipped_to_eight() -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    torch.testing.assert_close(split(deep)[0], split(Image.fromarray(RAMP))[0], atol=1e-6, rtol=0)
    fine, _ = split(Image.fromarray(np.array([[1000, 1001]], dtype=np.uint16)))
    assert fine[0, 0, 0] < fine[0, 0, 1]


def png_of_16_bits(width: int, height: int) -> bytes:
    """A colour PNG that Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + b"\x12\x34" * 3 * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_picture_of_more_than_8_bits_is_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "colour.png").write_bytes(png_of_16_bits(4, 3))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "gray.tiff")
    Image.new("RGB", (4, 4)).save(tmp_path / "usual.png")
    Image.new("L", (4, 4)).save(tmp_path / "usual.jpg")
    assert [name for name in ("colour.png", "gray.tiff", "usual.png", "usual.jpg") if is_deep(tmp_path / name)] == ["colour.png", "gray.tiff"]


def test_alpha_is_enlarged_by_itself() -> None:
    picture = Image.fromarray(np.full((6, 8, 3), 90, np.uint8))
    picture.putalpha(Image.fromarray(RAMP))
    wanted = Image.fromarray(RAMP).resize((32, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(enlarged(picture).getchannel("A")), np.asarray(wanted))


def test_a_palette_with_transparency_becomes_rgba() -> None:
    picture = Image.fromarray(RAMP).convert("P")
    picture.info["transparency"] = 3
    assert enlarged(picture).mode == "RGBA"


def test_the_cameras_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").size == (6, 8)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"a\.png must be a picture: not an image"):
        read_picture(path)
    Image.fromarray(RAMP).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="must be a picture: it is damaged"):
        read_picture(path)
    with pytest.raises(InputError, match="No such file"):
        read_picture(tmp_path / "b.png")


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="animated \\(2 frames\\)"):
        read_picture(tmp_path / "a.gif")


def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="at most 40 pixels, got 8 x 6"):
        read_picture(tmp_path / "a.png", most=40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="too large; cut it into parts"):
        read_picture(tmp_path / "a.png")


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="at least one pixel, got 0 x 4"):
        split(Image.new("RGB", (0, 4)))


def test_results_are_written_whole_with_a_note(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", Image.fromarray(RAMP), "abc")
    assert note_of(tmp_path / "a.png") == "abc"
    assert note_of(tmp_path / "b.png") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_result_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name of a picture format, such as .png or .jpg, got '.txt'"):
        write_picture(tmp_path / "a.txt", Image.fromarray(RAMP))
    with pytest.raises(InputError, match="JPEG has no transparency"):
        write_picture(tmp_path / "a.jpg", Image.new("RGBA", (4, 4)))
    with pytest.raises(InputError, match=r"a\.webp: WEBP cannot hold the picture, 16384 x 1 in mode RGB \(.*16383.*\); write a \.png"):
        write_picture(tmp_path / "a.webp", Image.new("RGB", (16384, 1)))
    with pytest.raises(InputError, match=r"a\.eps: EPS cannot hold the picture, 4 x 4 in mode RGBA"):
        write_picture(tmp_path / "a.eps", Image.new("RGBA", (4, 4)))
    with pytest.raises(InputError, match=r"cannot write .*a\.png: No such file"):
        write_picture(tmp_path / "none" / "a.png", Image.fromarray(RAMP))
