"""Charts as SVG that needs no script: axes, marks, lines, error bars. `report.js` adds hovering, focus and zoom to the same elements."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 44

_SYMBOLS = {
    "star": "M0-8 2.4-2.6 8-2.5 3.6 1.2 5 7 0 3.6-5 7-3.6 1.2-8-2.5-2.4-2.6Z",
    "diamond": "M0-6 5 0 0 6-5 0Z",
    "square": "M-5-5H5V5H-5Z",
    "cross": "M-4-4 4 4M-4 4 4-4",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, in which range; `log` ones take positive values only."""

    label: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, label: str, values: Iterable[float], *, log: bool = False) -> "Axis":
        """The axis that shows all values with a margin."""
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = (math.log10(v) if log else v for v in (min(usable), max(usable)))
        margin = 0.05 * (high - low) or (0.3 if log else 0.05 * abs(high) or 1.0)
        low, high = low - margin, high + margin
        return cls(label, 10**low if log else low, 10**high if log else high, log)

    def scaled(self, value: float) -> float:
        """The value on the axis' own scale; what a logarithm cannot show lies at the low end."""
        if not self.log:
            return value
        return math.log10(max(value, self.low))

    def ticks(self, count: int = 5) -> list[float]:
        """Round values on the axis' own scale."""
        low, high = self.scaled(self.low), self.scaled(self.high)
        if not self.log:
            return _round_values(low, high, count)
        if high - low < 0.8:
            return [math.log10(v) for v in _round_values(10**low, 10**high, count)]
        decades = range(math.floor(low), math.ceil(high) + 1)
        steps = (0.0,) if high - low > 2.5 else (0.0, math.log10(2), math.log10(5))
        inside = [k + step for k in decades for step in steps if low <= k + step <= high]
        return inside[:: math.ceil(len(inside) / (count + 2))]


@dataclass(frozen=True, slots=True)
class Mark:
    """One point with what a pointer over it says; a `shape` other than "dot" is one of the symbols."""

    x: float
    y: float
    tip: str
    kind: str = ""
    shape: str = "dot"
    bar: tuple[float, float] | None = None
    vertical: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points; `label` stands in the legend."""

    points: Sequence[tuple[float, float]]
    kind: str
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart: lines under marks, in that order; `text` says in words what there is to see."""

    title: str
    text: str
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    legend: Sequence[tuple[str, str]] = field(default=())

    def svg(self) -> Markup:
        """The drawing."""
        data = " ".join(f'data-{n}="{a.scaled(a.low):.6g} {a.scaled(a.high):.6g} {int(a.log)}"' for n, a in (("x", self.x), ("y", self.y)))
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.text)}" {data}>',
            f'<g class="axes">{self._axes()}</g>',
            f'<svg class="plot" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}">',
            f'<rect class="back" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>',
            *(self._line(line) for line in self.lines),
            *(self._bar(mark) for mark in self.marks if mark.bar),
            *(self._mark(mark) for mark in self.marks),
            "</svg>",
            f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.x.label)}</text>',
            f'<text class="name" transform="translate(13,{(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(self.y.label)}</text>',
            "</svg>",
        ]
        return Markup("".join(parts))  # all texts are escaped above

    def _axes(self) -> str:
        out = []
        for tick in self.x.ticks():
            x = LEFT + self._x(tick)
            label = f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick_label(tick, self.x.log)}</text>'
            out.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>{label}')
        for tick in self.y.ticks():
            y = TOP + self._y(tick)
            out.append(
                f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick_label(tick, self.y.log)}</text>'
            )
        return "".join(out)

    def _line(self, line: Line) -> str:
        at = [(self.x.scaled(x), self.y.scaled(y)) for x, y in line.points]
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in at)
        data = " ".join(f"{x:.5g},{y:.5g}" for x, y in at)
        return f'<polyline class="line {line.kind}" points="{path}" data-points="{data}"/>' if at else ""

    def _bar(self, mark: Mark) -> str:
        assert mark.bar is not None
        axis = self.y if mark.vertical else self.x
        low, high = (axis.scaled(value) for value in mark.bar)
        ends = [(self.x.scaled(mark.x), v) if mark.vertical else (v, self.y.scaled(mark.y)) for v in (low, high)]
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in ends)
        return f'<polyline class="bar {mark.kind}" points="{path}" data-points="{" ".join(f"{x:.5g},{y:.5g}" for x, y in ends)}"/>'

    def _mark(self, mark: Mark) -> str:
        x, y = self.x.scaled(mark.x), self.y.scaled(mark.y)
        shape = '<circle r="3.6"' if mark.shape == "dot" else f'<path d="{_SYMBOLS[mark.shape]}"'
        tip = str(escape(mark.tip)).replace("\n", "&#10;")
        at = f"translate({self._x(x):.1f},{self._y(y):.1f})"
        return f'{shape} class="mark {mark.kind}" transform="{at}" data-x="{x:.5g}" data-y="{y:.5g}" data-tip="{tip}"/>'

    def _x(self, scaled: float) -> float:
        low, high = self.x.scaled(self.x.low), self.x.scaled(self.x.high)
        return (WIDTH - LEFT - RIGHT) * (scaled - low) / (high - low)

    def _y(self, scaled: float) -> float:
        low, high = self.y.scaled(self.y.low), self.y.scaled(self.y.high)
        return (HEIGHT - TOP - BOTTOM) * (1 - (scaled - low) / (high - low))


def tick_label(scaled: float, log: bool) -> str:
    """The value at a tick, short.

    >>> tick_label(-3.0, True), tick_label(2.5e6, False)
    ('0.001', '2.5M')
    """
    value = 10**scaled if log else scaled
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def _round_values(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in the range."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= raw)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
