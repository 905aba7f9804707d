"""Evaluation: pairs, rows, gains, counts, formats."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.errors import InputError
from nas.evaluators.costs import count_params
from nas.spaces.tocsr.sr import published
from nas.spaces.tocsr.sr.evaluate import BICUBIC, Pair, bicubic_up, degraded, evaluate, gain, paired, parts, system_of
from nas.spaces.tocsr.sr.metrics import ALWAYS, METRICS, Kind
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.tables import FORMATS, check_form, rendered, summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 50 x 41 pixels."""
    rng = np.random.default_rng(0)
    (tmp_path / "hr").mkdir()
    for name in "abc":
        small = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        small.resize((50, 41), Image.Resampling.BICUBIC).save(tmp_path / "hr" / f"{name}.png")
    return tmp_path / "hr"


def test_degraded_pictures_are_a_quarter_and_the_same_each_time(folder: Path) -> None:
    one, again = (list(degraded(folder, "realesrgan", 5)) for _ in range(2))
    assert [(pair.low.shape, pair.high.shape) for pair in one] == [((10, 12, 3), (40, 48, 3))] * 3
    assert [pair.low.tobytes() for pair in one] == [pair.low.tobytes() for pair in again]


def test_paired_folders_go_by_stem(folder: Path, tmp_path: Path) -> None:
    low = tmp_path / "lr"
    low.mkdir()
    for path in folder.iterdir():
        Image.open(path).resize((12, 10)).save(low / f"{path.stem}.bmp")
    assert [pair.name for pair in paired(low, folder)] == ["a", "b", "c"]
    Image.new("RGB", (9, 9)).save(low / "b.bmp")
    with pytest.raises(InputError, match="'b': the large picture must be 36 x 36"):
        list(paired(low, folder))
    (low / "c.bmp").unlink()
    with pytest.raises(InputError, match="'c' is in one only"):
        list(paired(low, folder))


def test_two_pictures_of_one_stem_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "more").mkdir()
    Image.new("RGB", (48, 40)).save(folder / "more" / "b.jpg")
    with pytest.raises(InputError, match=r"'.*b\.png' and '.*b\.jpg' go by one name, 'b'; rename one of them"):
        list(paired(folder, folder))


def test_a_picture_that_is_all_border_is_refused(tmp_path: Path) -> None:
    for name, side in (("lr", 2), ("hr", 8)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / name / "a.png")
    for pairs in (paired(tmp_path / "lr", tmp_path / "hr"), degraded(tmp_path / "hr", "bicubic", 0)):
        with pytest.raises(InputError, match=r"hr/a\.png must have sides of at least 20 pixels to be compared, got 8 x 8"):
            list(pairs)


def test_a_perfect_system_gains_over_bicubic_and_bicubic_nothing(folder: Path) -> None:
    pairs = list(degraded(folder, "bicubic", 0))
    answers = {pair.low.tobytes(): pair.high for pair in pairs}
    rows = evaluate({BICUBIC: bicubic_up, "oracle": lambda low: answers[low.tobytes()]}, pairs, ALWAYS)
    assert rows[1].values["psnr"] == 100
    better, p = gain(rows[1], rows[0])
    assert better > 10
    assert p < 0.05
    assert gain(rows[0], rows[0]) == (0.0, 1.0)


def test_the_pipeline_is_a_system(pipeline: TOCSRPipeline) -> None:
    low = np.zeros((9, 11, 3), dtype=np.uint8)
    assert system_of(pipeline, 1, tile=8, overlap=2)(low).shape == (36, 44, 3)


class _Fussy:
    """A metric of another package that fails in one of three ways."""

    def __init__(self, broken: str) -> None:
        self._broken, self._n = broken, 0

    def add(self, found: np.ndarray, wanted: np.ndarray) -> float | None:
        del found, wanted
        self._n += 1
        if self._broken == "second" and self._n == 2:
            raise RuntimeError("Expected another size")
        return float("nan") if self._broken == "nan" else 1.0

    def value(self) -> float:
        if self._broken == "whole":
            raise RuntimeError("More samples are required")
        return 1.0


@pytest.mark.parametrize(
    ("broken", "reason"), [("second", "picture 'b': Expected another size"), ("nan", "picture 'a': it became nan"), ("whole", "3 pictures: More samples")]
)
def test_a_metric_of_another_package_that_fails_is_named_and_the_others_stand(folder: Path, broken: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "niqe", Kind(lambda: _Fussy(broken), False, 2, "pip install it"))
    pairs = list(degraded(folder, "bicubic", 0))
    rows = evaluate({BICUBIC: bicubic_up, "same": bicubic_up}, pairs, ["psnr", "niqe"])
    assert [set(row.values) for row in rows] == [{"psnr"}] * 2
    content = summary(rows, [], 64, {"fid": "not here"}, [], [pair.name for pair in pairs])
    assert set(content["missing"]) == {"fid", "niqe"}
    assert reason in content["missing"]["niqe"]


def test_nothing_to_evaluate_on_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one picture"):
        evaluate({BICUBIC: bicubic_up}, [], ALWAYS)


def test_parts_add_up(pipeline: TOCSRPipeline) -> None:
    unet, encoder, decoder, total = parts(pipeline, 64)
    assert unet.params == count_params(pipeline.unet)
    assert total.params == unet.params + encoder.params + decoder.params
    assert 0 < unet.macs < total.macs == unet.macs + encoder.macs + decoder.macs
    assert parts(pipeline, 128)[2].macs == 4 * decoder.macs
    with pytest.raises(InputError, match="multiple of 4, got 66"):
        parts(pipeline, 66)


def test_every_format_has_the_same_rows() -> None:
    pairs = [Pair(name, np.full((9, 9, 3), 100, np.uint8), np.full((36, 36, 3), 104 + k, np.uint8)) for k, name in enumerate("ab")]
    rows = evaluate({BICUBIC: bicubic_up, "other": lambda low: bicubic_up(low) + np.uint8(1)}, pairs, ["psnr", "ssim"])
    content = summary(rows, [], 512, {"fid": "not here"}, published.beside("RealSR"), ["a", "b"])
    assert json.loads(rendered(content, "json"))["rows"][1]["psnr_gain"] == pytest.approx(2.2, abs=0.3)
    assert [row["system"] for row in csv.DictReader(io.StringIO(rendered(content, "csv")))] == ["bicubic", "other"]
    for form in ("text", "markdown"):
        found = rendered(content, form)
        assert all(word in found for word in ("other", "psnr_gain", "fid is missing: not here", "TOC-SR", "25.73"))
    assert rendered(content, "markdown").count("\n|") > 8
    with pytest.raises(InputError, match="text, json, csv, markdown, got 'xml'"):
        check_form("xml")
    assert set(FORMATS) == {"text", "json", "csv", "markdown"}


def test_the_papers_tables_are_complete() -> None:
    sizes = {table: sum(row.table == table for row in published.ROWS) for table in ("1", "2", "3", "S7")}
    assert sizes == {"1": 12, "2": 16, "3": 2, "S7": 4}
    ours = next(row for row in published.beside("DIV2K-Val") if row.method == "TOC-SR")
    assert (ours.psnr, ours.lpips, ours.fid, ours.gmacs, ours.params_m) == (24.26, 0.242, 22.36, 273, 130)
    with pytest.raises(InputError, match="nothing is published on 'Set5'"):
        published.check_dataset("Set5")
