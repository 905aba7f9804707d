"""Numbers and words as people read them: counts with SI suffixes, what columns and block names mean."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

METRICS = {
    "params": "parameters",
    "macs": "MACs",
    "macs_with_attention": "MACs with attention",
}

SQUARED = "mean squared difference of the outputs"
"""What L is where nothing else was asked for: Eq. (11) of [TOC-SR]."""

_LEGEND = (
    ("eps", "the largest L that is allowed; a candidate is feasible if L <= eps"),
    ("held-out L", "the same on samples that the search never saw; a winner may exceed eps there by a fifth"),
    (
        "calibration error",
        "what a block's outputs differ from the teacher block's, relative to their variance, after calibration (0: the teacher's own); its effect on L varies",
    ),
    ("expected L", "what a block alone was expected to cost before the search, to second order around the teacher; large ones can be ten times off"),
    ("MACs", "multiply-adds of convolutions and linear layers; 'with attention' adds the attention products"),
)


def worth_showing(metrics: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that a table of such rows needs for people: MACs with attention only where something has any.

    >>> worth_showing(["params", "macs", "macs_with_attention"], [{"params": 9, "macs": 5, "macs_with_attention": 5}])
    ['params', 'macs']
    """
    named = list(metrics)
    if not {"macs", "macs_with_attention"} <= set(named) or any(row.get("macs_with_attention") != row.get("macs") for row in rows):
        return named
    return [metric for metric in named if metric != "macs_with_attention"]


def legend(divergence: str = "") -> dict[str, str]:
    """What the words of results mean; `divergence` says what L is."""
    return {"L": f"divergence from the teacher{': ' if divergence else ''}{divergence}, ± its standard error; 0 is the teacher itself", **dict(_LEGEND)}


_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

AMOUNT = r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKMGT%]?)"
"""Pattern of a number as people write it, such as 130M or 75%: the number and its unit."""


def scaled(number: str, unit: str, whole: float) -> float:
    """What the two parts of an `AMOUNT` mean; percentages are of `whole`.

    >>> scaled("130", "M", 0), scaled("75", "%", 200)
    (130000000.0, 150.0)
    """
    return float(number) * {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "%": whole / 100}[unit]


def at_least(value: float, whole: float) -> str:
    """An amount and its share of the whole, neither less than it really is, so that each can be given as a bound.

    >>> at_least(2101164, 8309000), at_least(105, 0)
    ("2.102M (25.3 % of the teacher's)", '105')
    """
    scale, suffix = next(((scale, suffix) for scale, suffix in _SI if abs(value) >= scale), (1.0, ""))
    digits = 3 - math.floor(math.log10(abs(value) / scale)) if value else 0
    shown = f"{_ceil(value / scale, digits):.12g}{suffix}"
    return f"{shown} ({_ceil(100 * value / whole, 1):g} % of the teacher's)" if whole > 0 else shown


def _ceil(value: float, digits: int) -> float:
    return math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits


def exact(value: float) -> str:
    """The number so that it can be given again: all digits that it has, and no more than it needs.

    >>> exact(0.005), exact(1.0), exact(0.1 + 0.2)
    ('0.005', '1', '0.30000000000000004')
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def rounded(value: float | None, digits: int) -> str:
    """A number with so many digits; a dash where it is unknown.

    >>> rounded(0.012345, 3), rounded(None, 3)
    ('0.0123', '-')
    """
    return "-" if value is None else f"{value:.{digits}g}"


def amount(value: float) -> str:
    """A count with its SI suffix.

    >>> amount(1234567), amount(12)
    ('1.235 M', '12')
    """
    for scale, suffix in _SI:
        if abs(value) >= scale:
            return f"{value / scale:.4g} {suffix}"
    return f"{value:.4g}"
