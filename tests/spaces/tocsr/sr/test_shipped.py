"""The model that ships: whole, small, and better than bicubic on drawings it has never seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from nas.files import damage
from nas.spaces.tocsr.assets import shipped_pipeline
from nas.spaces.tocsr.sr.evaluate import bicubic_up, system_of
from nas.spaces.tocsr.sr.metrics import gmsd, psnr
from nas.spaces.tocsr.sr.pairs import bicubic
from nas.spaces.tocsr.sr.photographs import Picture
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline


@pytest.fixture(scope="module")
def shipped() -> TOCSRPipeline:
    pipeline = TOCSRPipeline.from_pretrained(shipped_pipeline())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawing(seed: int) -> Picture:
    """192 x 192 pixels of smooth shapes with sharp edges."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (768, 768), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y, w, h = (int(v) for v in (*rng.integers(0, 600, 2), *rng.integers(60, 400, 2)))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(picture.resize((192, 192), Image.Resampling.BOX))


def test_all_assets_together_are_small_and_whole() -> None:
    folder = shipped_pipeline()
    assert damage(folder) == []
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 20e6


def test_no_config_names_the_place_it_was_made_at() -> None:
    assert not [path for path in shipped_pipeline().rglob("*.json") if "_name_or_path" in path.read_text(encoding="utf-8")]


def test_the_card_says_which_row_ships(shipped: TOCSRPipeline) -> None:
    card = (shipped_pipeline() / "README.md").read_text(encoding="utf-8")
    assert f"The row that ships: {shipped.config.row}" in card
    terms = json.loads((Path(shipped_pipeline()) / "made_from.json").read_text())["origin"]["terms"]
    assert (terms["hr"] > 0) == ("HR term" in shipped.config.row)


def test_it_is_better_than_bicubic_on_edges(shipped: TOCSRPipeline) -> None:
    enlarge, gains = system_of(shipped, 1), []
    for seed in range(3):
        large = drawing(seed)
        low = bicubic(large)
        found, cubic = enlarge(low), bicubic_up(low)
        gains.append(psnr(found, large) - psnr(cubic, large))
        assert gmsd(found, large) < gmsd(cubic, large)
    assert min(gains) > 0.3


def test_tiles_agree_with_the_whole_within_the_stated_tolerance(shipped: TOCSRPipeline) -> None:
    low = bicubic(drawing(5))
    whole, tiled = (system_of(shipped, 1, tile=tile)(low).astype(float) for tile in (0, 32))
    assert np.abs(whole - tiled).mean() < 1.5
