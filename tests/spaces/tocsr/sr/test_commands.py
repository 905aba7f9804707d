"""`nas tocsr upscale` and `evaluate` as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from tests.core.test_cli import nas as command


@pytest.fixture
def model(pipeline: TOCSRPipeline, tmp_path: Path) -> str:
    pipeline.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path, picture: Image.Image) -> Path:
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / "a.png")
    picture.convert("L").save(tmp_path / "in" / "b.jpg")
    return tmp_path / "in"


def test_a_folder_is_enlarged_and_what_is_no_picture_is_named(folder: Path, model: str, tmp_path: Path) -> None:
    (folder / "c.png").write_text("no picture")
    done = command("tocsr", "upscale", str(folder), str(tmp_path / "out"), "--model", model, "--threads", "1")
    assert done.returncode == 2
    assert "1 of 3 pictures could not be enlarged" in done.stderr
    assert Image.open(tmp_path / "out" / "a.png").size == (96, 80)
    assert Image.open(tmp_path / "out" / "b.png").mode == "L"


def test_a_folder_that_is_made_for_the_results_is_named(folder: Path, model: str, tmp_path: Path) -> None:
    asked = ("tocsr", "upscale", str(folder / "a.png"), str(tmp_path / "out"), "--model", model, "--threads", "1")
    assert command(*asked).stderr == f"making the folder {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "a.png").is_file()
    assert command(*asked).stderr == ""


def test_a_picture_of_16_bits_and_files_that_are_passed_over_are_named(folder: Path, model: str, tmp_path: Path) -> None:
    (folder / "b.jpg").unlink()
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(folder / "deep.png")
    Image.new("P", (8, 8)).save(folder / "moving.gif")
    done = command("tocsr", "upscale", str(folder), str(tmp_path / "out"), "--model", model, "--threads", "1")
    assert done.returncode == 0
    assert f"{folder / 'deep.png'} has more than 8 bits a channel; its result has 8" in done.stderr
    assert f"{folder}: 1 .gif file is passed over" in done.stderr
    assert not (tmp_path / "out" / "moving.png").exists()


def test_the_model_that_ships_enlarges_a_picture_offline(folder: Path, tmp_path: Path) -> None:
    done = command("tocsr", "upscale", str(folder / "a.png"), str(tmp_path / "x.png"), "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(tmp_path / "x.png")]
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 10


def test_evaluation_stands_beside_what_is_published(folder: Path, model: str) -> None:
    options = (
        "--model",
        model,
        "--steps",
        "1",
        "--steps",
        "2",
        "--metric",
        "psnr",
        "--metric",
        "lpips",
        "--beside",
        "realsr",
        "--size",
        "64",
        "--threads",
        "1",
    )
    done = command("tocsr", "evaluate", "--hr", str(folder), "--degradation", "realesrgan", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["system"] for row in found["rows"]] == ["bicubic", "1 step", "2 steps"]
    assert found["n_pictures"] == 2
    assert [part["name"] for part in found["costs"]["parts"]] == ["U-Net", "encoder", "decoder", "total"]
    assert "lpips" in found["missing"] or "lpips" in found["rows"][1]
    assert any(row["method"] == "TOC-SR" for row in found["published"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("upscale", "nothing.png", "x.png"), "no picture or folder 'nothing.png'"),
        (("upscale", ".", "."), "stand among the originals"),
        (("evaluate", "--hr", "nothing"), "not a folder of pictures"),
        (("evaluate", "--hr", ".", "--metric", "psmr"), "did you mean 'psnr'"),
        (("run", "--config", "nothing.toml"), "nothing.toml is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("tocsr", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
