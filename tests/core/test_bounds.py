import re

import numpy as np
import pytest

from nas.amounts import at_least
from nas.bounds import cheapest, check_together, least_cost
from nas.errors import InputError
from nas.problem import Bound, CostTable


def random_costs(seed: int) -> CostTable:
    """Five stages of two to four choices, two metrics that pull against each other, large numbers."""
    random = np.random.default_rng(seed)
    params = random.uniform(1e6, 9e6, (5, 4))
    macs = 1e17 / params * random.uniform(0.8, 1.2, (5, 4))
    for s, size in enumerate((2, 3, 4, 4, 2)):
        params[s, size:] = macs[s, size:] = np.nan
    return CostTable({"params": params, "macs": macs}, {"params": 1e6, "macs": 3e9})


def all_candidates(costs: CostTable) -> np.ndarray:
    sizes = (~np.isnan(costs.by_choice["params"])).sum(1)
    return np.indices(tuple(sizes)).reshape(len(sizes), -1).T


@pytest.mark.parametrize("seed", range(5))
def test_the_least_cost_under_a_bound_is_that_of_enumeration(seed: int) -> None:
    costs = random_costs(seed)
    rows = all_candidates(costs)
    params, macs = costs.totals(rows, "params"), costs.totals(rows, "macs")
    for limit in np.quantile(params, [0.0, 0.1, 0.5, 1.0]):
        assert least_cost(costs, "macs", [Bound("params", limit)]) == pytest.approx(macs[params <= limit * (1 + 1e-9)].min(), rel=1e-9)
    assert cheapest(costs, "params") == tuple(rows[params.argmin()])
    assert least_cost(costs, "macs", [Bound("params", params.min() * 0.99)]) is None


def test_bounds_that_cannot_hold_together_are_refused_with_the_nearest_value() -> None:
    costs = random_costs(0)
    rows = all_candidates(costs)
    params, macs = costs.totals(rows, "params"), costs.totals(rows, "macs")
    tight = Bound("params", float(np.quantile(params, 0.05)))
    nearest = macs[params <= tight.limit].min()
    check_together([tight, Bound("macs", nearest)], costs)
    said = at_least(float(nearest), costs.of((0,) * 5)["macs"])
    with pytest.raises(InputError, match=f"'macs<=.*cannot hold together with params<=.*the least macs is then {re.escape(said)}"):
        check_together([tight, Bound("macs", 0.99 * nearest)], costs)


@pytest.mark.parametrize("seed", range(5))
def test_a_bound_that_cannot_hold_is_answered_with_an_amount_and_a_share_that_hold(seed: int) -> None:
    costs = random_costs(seed)
    for metric in costs.metrics:
        with pytest.raises(InputError) as refused:
            Bound.parse(f"{metric}<=1%", costs)
        amount, share = re.fullmatch(r".* is (\S+) \((\S+ %) of the teacher's\); give at least that", str(refused.value)).groups()  # type: ignore[union-attr]
        for given in (amount, share):
            assert Bound.parse(f"{metric}<={given}", costs).limit == pytest.approx(costs.reach(metric)[0], rel=5e-3)
