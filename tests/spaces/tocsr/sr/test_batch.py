"""Batches of pictures: names, what is passed over, what is wrong."""

from pathlib import Path

import pytest
from PIL import Image

from nas.errors import InputError
from nas.progress import Quiet
from nas.spaces.tocsr.sr.batch import How, tasks_of, upscale
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline


@pytest.fixture
def folder(tmp_path: Path, picture: Image.Image) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "deep/a.png"):
        picture.resize((8, 6)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def test_a_folders_results_keep_stem_and_subfolder(folder: Path, tmp_path: Path) -> None:
    names = [str(task.result.relative_to(tmp_path / "out")) for task in tasks_of(folder, tmp_path / "out")]
    assert names == ["a.png", "b.png", "deep/a.png"]


def test_a_file_goes_to_a_file_or_into_a_folder(folder: Path, tmp_path: Path) -> None:
    assert tasks_of(folder / "a.jpg", tmp_path / "x.jpg")[0].result == tmp_path / "x.jpg"
    assert tasks_of(folder / "a.jpg", tmp_path)[0].result == tmp_path / "a.png"


def test_what_makes_no_sense_is_refused(folder: Path, tmp_path: Path, picture: Image.Image) -> None:
    with pytest.raises(InputError, match="no picture or folder"):
        tasks_of(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="stand among the originals"):
        tasks_of(folder, folder)
    with pytest.raises(InputError, match="would replace the picture"):
        tasks_of(folder / "a.jpg", folder / "a.jpg")
    with pytest.raises(InputError, match="is a file; results of a folder go to a folder"):
        tasks_of(folder, folder / "a.jpg")
    for given in (folder, folder / "a.jpg"):
        with pytest.raises(InputError, match=r"there is no folder '.*resluts'; make it, or correct its name"):
            tasks_of(given, tmp_path / "resluts" / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures in"):
        tasks_of(tmp_path / "empty", tmp_path / "out")
    picture.save(folder / "a.png")
    with pytest.raises(InputError, match="would both become"):
        tasks_of(folder, tmp_path / "out")


def test_results_inside_the_folder_are_not_enlarged_again(folder: Path, pipeline: TOCSRPipeline) -> None:
    tasks = tasks_of(folder, folder / "out")
    assert len(list(upscale(pipeline, tasks, How(tile=0), "m", Quiet()))) == 3
    assert tasks_of(folder, folder / "out") == tasks


def test_an_interrupted_batch_goes_on_with_what_is_left(folder: Path, tmp_path: Path, pipeline: TOCSRPipeline) -> None:
    tasks = tasks_of(folder, tmp_path / "out")
    batch = upscale(pipeline, tasks, How(), "m", Quiet())
    first = next(batch)
    batch.close()
    stamp = first.stat().st_mtime_ns
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert len(list(upscale(pipeline, tasks, How(), "m", Quiet()))) == 3
    assert first.stat().st_mtime_ns == stamp
    assert all(Image.open(task.result).size == (32, 24) for task in tasks)
    list(upscale(pipeline, tasks, How(seed=1), "m", Quiet()))
    assert first.stat().st_mtime_ns > stamp


def test_a_bad_picture_does_not_stop_the_others(folder: Path, tmp_path: Path, pipeline: TOCSRPipeline) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    done = []
    with pytest.raises(InputError, match=r"1 of 3 pictures could not be enlarged: .*b\.png must be a picture"):
        done.extend(upscale(pipeline, tasks_of(folder, tmp_path / "out"), How(), "m", Quiet()))
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["a.png", "a.png"]


def test_a_place_that_cannot_be_written_stops_at_once(folder: Path, tmp_path: Path, pipeline: TOCSRPipeline) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        list(upscale(pipeline, tasks_of(folder / "a.jpg", tmp_path / "out" / "x.png"), How(), "m", Quiet()))
