"""Regret against measurements as an SVG file: medians as lines, quartiles as bands, one panel an eps."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from nas.compare import Row
from nas.errors import InputError
from nas.problem import Floats

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#2f4b7c", "#a05195", "#665191", "#bcbd22")
"""The first seven are told apart by colour-blind readers (Okabe and Ito); line styles change after twelve."""

WIDTH, HEIGHT, MARGIN = 420, 280, 44
LEFT = 64
"""Margin for the labels of regrets."""
FLOOR = 1e-3
"""Regrets below are drawn here: the axis is logarithmic."""


def check_plot(path: Path) -> None:
    """Raises unless a plot can be written there; before anything is measured for it."""
    if path.suffix != ".svg":
        raise InputError(f"a plot is written as SVG; '{path}' must end in .svg")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"cannot write the plot '{path}': {'it is a folder' if path.is_dir() else 'its folder does not exist'}; give another --plot")


def plot(rows: Sequence[Row], path: Path, space: str = "") -> None:
    """Writes the plot; its headings name the space.

    Raises:
        InputError: it cannot be written there.
    """
    check_plot(path)
    epses = list(dict.fromkeys(row.eps for row in rows))
    names = list(dict.fromkeys(row.optimizer for row in rows))
    heads = [f"{space}{', ' if space else ''}eps {eps:g}" for eps in epses]
    panels = [_panel([row for row in rows if row.eps == eps], names, head, x=i * WIDTH) for i, (eps, head) in enumerate(zip(epses, heads, strict=True))]
    legend = [_legend_entry(name, names, HEIGHT + 14 * i) for i, name in enumerate(names)]
    width, height = WIDTH * len(epses), HEIGHT + 14 * len(names) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
    content = "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *panels, *legend, "</svg>"]) + "\n"
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the plot '{path}': {error.strerror}; give another --plot") from error


def _panel(rows: Sequence[Row], names: Sequence[str], head: str, x: int) -> str:
    count = max(row.regrets.shape[1] for row in rows) - 1
    parts = [f'<g transform="translate({x},0)">', f'<text x="{WIDTH / 2}" y="16" text-anchor="middle">{escape(head)}</text>', *_axes(count)]
    for row in rows:
        low, median, high = np.quantile(row.regrets, (0.25, 0.5, 0.75), axis=0)
        colour = _colour(row.optimizer, names)
        band = [*_points(high, count), *reversed(_points(low, count))]
        parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{" ".join(_points(median, count))}" fill="none" stroke="{colour}" stroke-width="1.8"{_dash(row.optimizer, names)}/>')
    return "\n".join([*parts, "</g>"])


def _axes(count: int) -> list[str]:
    lines = []
    for regret in (1.0, 0.1, 0.01, FLOOR):
        y = _y(regret)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        label = f"{regret:g}" if regret > FLOOR else f"<= {FLOOR:g}"
        lines.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    ticks = sorted({round(count * part / 5) for part in range(6)})
    lines += [f'<text x="{_x(k, count):.1f}" y="{HEIGHT - MARGIN + 28}" text-anchor="middle">{k}</text>' for k in ticks]
    return [*lines, f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">measurements (lines: median regret, bands: quartiles)</text>']


def _points(regrets: Floats, count: int) -> list[str]:
    return [f"{_x(k, count):.1f},{_y(float(regret)):.1f}" for k, regret in enumerate(regrets)]


def _x(k: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - 10) * k / max(1, count)


def _y(regret: float) -> float:
    depth = np.log10(max(regret, FLOOR)) / np.log10(FLOOR)
    return float(26 + (HEIGHT - MARGIN - 16) * depth)


def _colour(name: str, names: Sequence[str]) -> str:
    return COLOURS[names.index(name) % len(COLOURS)]


def _dash(name: str, names: Sequence[str]) -> str:
    return ' stroke-dasharray="5 3"' if names.index(name) >= len(COLOURS) else ""


def _legend_entry(name: str, names: Sequence[str], y: int) -> str:
    line = f'<line x1="{MARGIN}" x2="{MARGIN + 24}" y1="{y + 6}" y2="{y + 6}" stroke="{_colour(name, names)}" stroke-width="2.5"{_dash(name, names)}/>'
    return f'{line}<text x="{MARGIN + 30}" y="{y + 10}">{escape(name)}</text>'
