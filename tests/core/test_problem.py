import math

import numpy as np
import pytest

from nas.errors import InputError
from nas.problem import Bound, CostTable, Problem
from nas.space import SearchSpace


@pytest.fixture
def costs() -> CostTable:
    return CostTable({"params": np.array([[10.0, 4.0, np.nan], [20.0, 5.0, 1.0]]), "macs": np.array([[3.0, 2.0, np.nan], [3.0, 3.0, 3.0]])}, {"params": 100.0})


def test_totals_are_sums_of_table_entries_plus_the_fixed_part(costs: CostTable) -> None:
    assert costs.totals([[0, 0], [1, 2]]).tolist() == [130.0, 105.0]
    assert costs.of((1, 2)) == {"params": 105.0, "macs": 5.0}
    assert costs.reach("params") == (105.0, 130.0)


@pytest.mark.parametrize(("text", "limit"), [("params<=50%", None), ("params<=120", 120.0), ("params <= 0.11k", 110.0), ("macs<=100%", 6.0)])
def test_bounds_are_numbers_with_units_or_percentages_of_the_teacher(costs: CostTable, text: str, limit: float | None) -> None:
    if limit is None:
        with pytest.raises(InputError, match="cannot hold: the least params of any candidate is 105"):
            Bound.parse(text, costs)
    else:
        assert Bound.parse(text, costs).limit == pytest.approx(limit)


@pytest.mark.parametrize("text", ["params", "params>=3", "params<=x", "params<=-1", "params<=1..2", "flops<=3"])
def test_a_malformed_bound_is_one_clear_error(costs: CostTable, text: str) -> None:
    with pytest.raises(InputError, match=r"bound|unknown metric"):
        Bound.parse(text, costs)


def test_allowed_applies_bounds_and_rules(costs: CostTable) -> None:
    space = SearchSpace("demo", SearchSpace.of_sizes("demo", [2, 3]).stages, rules=(lambda c: c != (1, 1),))
    problem = Problem(space, costs, (0.1,), bounds=(Bound("params", 115.0),))
    assert problem.allowed([[0, 0], [1, 1], [1, 2], [0, 1]]).tolist() == [False, False, True, True]


@pytest.mark.parametrize("eps", [-1.0, math.nan, math.inf])
def test_an_impossible_eps_is_refused(costs: CostTable, eps: float) -> None:
    with pytest.raises(InputError, match="eps must be a finite number"):
        Problem(SearchSpace.of_sizes("demo", [2, 3]), costs, (eps,))
