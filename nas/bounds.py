"""Whether several bounds on known costs can hold together: a choice a stage under linear constraints, solved exactly by branch and bound (HiGHS)."""

from collections.abc import Sequence

import numpy as np

from nas.amounts import at_least
from nas.errors import InputError
from nas.problem import Bound, CostTable, Problem

_SLACK = 1e-6  # the solver's own tolerance, relative to the teacher's cost: nothing that can hold is refused


def check_together(bounds: Sequence[Bound], costs: CostTable) -> None:
    """Raises unless some candidate satisfies all bounds; rules of the space are not looked at.

    Raises:
        InputError: names the first bound that cannot hold with those before it, and the least value it can have then.
    """
    for count in range(2, len(bounds) + 1):
        bound, others = bounds[count - 1], bounds[: count - 1]
        least = least_cost(costs, bound.metric, others)
        if least is None or least > bound.limit * (1 + _SLACK):
            before = ", ".join(f"{other.metric}<={other.limit:g}" for other in others)
            teacher = costs.of((0,) * len(costs.by_choice[bound.metric]))[bound.metric]
            found = "none is left" if least is None else f"{at_least(least, teacher)}; give at least that, or relax the others"
            raise InputError(f"bound '{bound.metric}<={bound.limit:g}' cannot hold together with {before}: the least {bound.metric} is then {found}")


def least_cost(costs: CostTable, metric: str, bounds: Sequence[Bound] = ()) -> float | None:
    """The least total of a metric over all candidates within the bounds; None when there is no such candidate."""
    found = cheapest(costs, metric, bounds)
    return None if found is None else float(costs.totals([found], metric)[0])


def why_nothing(problem: Problem) -> str:
    """Why a search that came to its end measured nothing, and what to do; the teacher is known and not measured."""
    teacher = problem.space.teacher
    least = least_cost(problem.costs, problem.objective, problem.bounds)
    relax = ", ".join(f"{bound.metric}<={bound.limit:.8g}" for bound in problem.bounds)
    if not problem.broken(teacher) and least is not None and least >= problem.costs.of(teacher)[problem.objective] * (1 - 1e-12):
        within = " within the bounds" if relax else ""
        return f"no candidate{within} is cheaper in {problem.objective} than the teacher: keep it" + (f", or relax {relax}" if relax else "")
    return "the optimizer proposed no candidate: all that it knows of are forbidden by rules or bounds" + (f"; relax {relax}" if relax else "")


def ways_out(eps: Sequence[float], bounded: bool, stopped: str) -> str:
    """What to do where no candidate is within any eps, nor within the bounds if there are any, by why the search stopped.

    >>> ways_out([0.01], True, "trials")
    'give more --trials, or search with a larger --eps or weaker --where'
    """
    if eps and max(eps) == 0:
        return "at eps 0 only a network passes that answers exactly as its teacher does; give an eps above 0"
    relax = "search with a larger --eps" + " or weaker --where" * bounded
    if stopped == "interrupted":
        return f"let its search go on, or {relax}"
    if stopped == "trials":
        return f"give more --trials, or {relax}"
    return f"none is likely to be, however many --trials: {'' if bounded else 'keep the teacher, or '}{relax}"


def cheapest(costs: CostTable, metric: str, bounds: Sequence[Bound] = ()) -> tuple[int, ...] | None:
    """The candidate with the least total of a metric within the bounds; None when there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    table = costs.by_choice[costs.check_metric(metric)]
    used = ~np.isnan(table)
    stage = np.nonzero(used)[0]
    one_each = LinearConstraint((stage == np.arange(len(table))[:, None]).astype(float), 1, 1)
    limits = [_limit(costs, bound, used) for bound in bounds]
    scale = np.nanmax(np.abs(table)) or 1.0
    solved = milp(table[used] / scale, constraints=[one_each, *limits], integrality=np.ones(len(stage)), bounds=Bounds(0, 1))
    if solved.x is None:
        return None
    picked = np.zeros(table.shape)
    picked[used] = solved.x
    return tuple(picked.argmax(axis=1).tolist())


def _limit(costs: CostTable, bound: Bound, used: np.ndarray) -> "object":
    from scipy.optimize import LinearConstraint

    row = costs.by_choice[bound.metric][used]
    scale = np.abs(row).max() or 1.0
    room = (bound.limit - costs.fixed.get(bound.metric, 0.0)) / scale
    return LinearConstraint(row[None] / scale, -np.inf, room * (1 + 1e-9))
