"""Tiles cover every pixel once blended."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.spaces.tocsr.sr.tiles import blended, windows


@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 40), st.data())
def test_tiles_of_a_picture_blend_to_that_picture(height: int, width: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    whole = torch.rand(2, 3 * height, 3 * width)
    areas = windows(height, width, tile, overlap)
    parts = ((area, whole[:, *(slice(3 * s.start, 3 * s.stop) for s in area)]) for area in areas)
    torch.testing.assert_close(blended(parts, height, width, 3, overlap), whole)


def test_no_tile_is_larger_than_asked() -> None:
    assert all(s.stop - s.start <= 16 for area in windows(100, 37, 16, 4) for s in area)


@pytest.mark.parametrize(("tile", "overlap"), [(4, 0), (16, 9), (-1, 0), (16, -1)])
def test_tiles_that_cannot_be_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(InputError, match="tile 0 is the whole picture"):
        windows(50, 50, tile, overlap)
