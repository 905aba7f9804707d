"""What a model has in place of its teacher's stages, as a table that a person can read."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len


class Row(NamedTuple):
    """One stage: what the teacher has there, what is there now ("=" for the same), and the parameters of both."""

    stage: str
    teacher: str
    here: str
    before: int
    after: int


def diff_text(rows: Sequence[Row], before: int, after: int) -> str:
    """The rows, the rest of the network as `fixed`, and the totals `before` and `after`."""
    rest = before - sum(row.before for row in rows)
    lines = (*rows, Row("fixed", "", "=", rest, rest), Row("total", "", "", before, after))
    cells = [("stage", "teacher", "here", "params before", "params after", "kept")]
    cells += [(*line[:3], f"{line.before:,}", f"{line.after:,}", f"{100 * line.after / max(line.before, 1):.1f} %") for line in lines]
    widths = [max(cell_len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(_set(text, width, k) for k, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip() for line in cells)


def _set(text: str, width: int, column: int) -> str:
    """Text filled up to so many columns of a terminal, where some characters take two."""
    room = " " * (width - cell_len(text))
    return text + room if column < 3 else room + text
