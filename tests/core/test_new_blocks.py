"""What a better block would be worth: the stage's part of L."""

import pytest

from nas.new_blocks import _part
from nas.report.forecast import Estimate
from nas.trial import Trial


def test_the_part_of_l_is_measured_where_the_neighbour_was_and_unknown_where_the_interval_says_nothing() -> None:
    winner = Trial(1, (1, 1), {"params": 1.0}, 0.01, stderr=0.003)
    measured = _part(winner, Estimate(0.006, 0.002, 0.010, "measured"), None)
    assert measured is not None
    assert (measured.value, measured.high) == pytest.approx((0.004, 0.009))
    predicted = _part(winner, Estimate(0.009, 0.006, 0.02, "predicted"), 0.01)
    assert predicted is not None
    assert (predicted.low, predicted.value, predicted.high) == pytest.approx((0, 0.001, 0.004))
    assert _part(winner, Estimate(0.003, 0.0001, 0.1, "predicted"), 0.01) is None
    assert _part(winner, Estimate(0.03, 0.02, 0.1, "predicted"), 0.01) is None
    assert _part(winner, Estimate(0.009, 0.006, 0.02, "predicted"), None) is None
