"""Numbers and words as people read them: counts with SI suffixes, what columns and block names mean."""

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
    ("MACs", "multiply-adds of convolutions and linear layers; 'with attention' adds the attention products"),
)


def legend(divergence: str = "") -> dict[str, str]:
    """What the words of results mean; `divergence` says what L is."""
    return {"L": f"divergence from the teacher{': ' if divergence else ''}{divergence}, ± its standard error; 0 is the teacher itself", **dict(_LEGEND)}


AMOUNT = r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKMGT%]?)"
"""Pattern of a number as people write it, such as 130M or 75%: the number and its unit."""


def scaled(number: str, unit: str, whole: float) -> float:
    """What the two parts of an `AMOUNT` mean; percentages are of `whole`.

    >>> scaled("130", "M", 0), scaled("75", "%", 200)
    (130000000.0, 150.0)
    """
    return float(number) * {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "%": whole / 100}[unit]


def amount(value: float) -> str:
    """A count with its SI suffix.

    >>> amount(1234567), amount(12)
    ('1.235 M', '12')
    """
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {suffix}"
    return f"{value:.4g}"
