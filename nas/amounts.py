"""Numbers and words as people read them: counts with SI suffixes, what columns and block names mean."""

METRICS = {
    "params": "parameters",
    "macs": "MACs",
    "macs_with_attention": "MACs with attention",
}

LEGEND = (
    ("L", "divergence from the teacher: mean squared difference of the outputs, ± its standard error; 0 is the teacher itself"),
    ("eps", "the largest L that is allowed; a candidate is feasible if L <= eps"),
    ("held-out L", "the same on samples that the search never saw; a winner may exceed eps there by a fifth"),
    ("calibration error", "what a block's outputs differ from the teacher block's, relative to their variance, after calibration (0: the teacher's own block)"),
    ("MACs", "multiply-adds of convolutions and linear layers; 'with attention' adds the attention products"),
)


def amount(value: float) -> str:
    """A count with its SI suffix.

    >>> amount(1234567), amount(12)
    ('1.235 M', '12')
    """
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {suffix}"
    return f"{value:.4g}"
