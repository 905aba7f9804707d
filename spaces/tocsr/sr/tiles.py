"""Pictures of any size in tiles with blended overlaps.

Memory besides the tile at work: 16 bytes a pixel of the result (three colours and the weight in float32).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nas.errors import InputError


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of one axis begin; the last ends with the axis.

    >>> starts(10, 4, 1), starts(3, 4, 1)
    ([0, 3, 6], [0])
    """
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def windows(height: int, width: int, tile: int, overlap: int) -> list[tuple[slice, slice]]:
    """Tiles of a picture, row by row; `tile` 0 is the whole picture.

    Raises:
        InputError: the overlap leaves a tile nothing of its own.
    """
    if tile == 0:
        return [(slice(0, height), slice(0, width))]
    if tile < 8 or not 0 <= overlap <= tile // 2:
        raise InputError(f"tiles must have at least 8 pixels and overlap by at most half, got tile {tile}, overlap {overlap}; tile 0 is the whole picture")
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    return [(slice(y, min(y + tile, height)), slice(x, min(x + tile, width))) for y in rows for x in columns]


def blended(parts: Iterator[tuple[Sequence[slice], Tensor]], height: int, width: int, factor: int, overlap: int, device: torch.device | str = "cpu") -> Tensor:
    """The picture `(C, factor * height, factor * width)` that the enlarged windows make; in overlaps each fades out linearly.

    Args:
        parts: windows of the small picture and their results `(C, factor * h, factor * w)`.
        height: of the small picture.
        width: of the small picture.
        factor: of enlargement.
        overlap: pixels of the small picture over which a window fades.
        device: where the result is put together.
    """
    total, weight = torch.zeros(0), torch.zeros(factor * height, factor * width, device=device)
    for (rows, columns), part in parts:
        if not len(total):
            total = torch.zeros(part.shape[0], *weight.shape, device=device)
        fade = _fade(rows, height, factor, overlap)[:, None] * _fade(columns, width, factor, overlap)
        at = (slice(factor * rows.start, factor * rows.stop), slice(factor * columns.start, factor * columns.stop))
        total[:, *at] += part.to(device) * fade.to(device)
        weight[at] += fade.to(device)
    return total.div_(weight)


def _fade(window: slice, length: int, factor: int, overlap: int) -> Tensor:
    """Weights along one axis, `(factor * window,)`: 1, falling linearly towards inner ends."""
    size, ramp = factor * (window.stop - window.start), factor * overlap
    along = torch.arange(size, dtype=torch.float32) + 0.5
    rising = (along / ramp).clamp(max=1) if ramp and window.start > 0 else torch.ones(size)
    falling = ((size - along) / ramp).clamp(max=1) if ramp and window.stop < length else torch.ones(size)
    return rising * falling
