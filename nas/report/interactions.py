"""How much the swaps of a winner work against one another: what two of them add to L beyond the sum of what each adds alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from nas.problem import Problem
from nas.report.forecast import Estimate, Forecast
from nas.space import Candidate

Z90 = 1.645
"""Standard errors on either side of a 90 % interval."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """`L(s, t) - L(s) - L(t)` for two replaced stages with a 90 % interval: above 0 they compound, below 0 they make up for one another.

    The interval takes the errors of the three as independent. `known` if it leaves 0 out and at least one of the two was measured alone.
    """

    first: str
    second: str
    excess: float
    source: str
    low: float
    high: float
    known: bool


def interactions(problem: Problem, a: Candidate, forecast: Forecast) -> tuple[Interaction, ...]:
    """One for each pair of replaced stages of candidate `a` whose divergences are known or predicted, strongest first."""
    replaced = [s for s, k in enumerate(a) if k]
    pairs = list(combinations(replaced, 2))
    single = dict(zip(replaced, forecast.of([_only(a, s) for s in replaced]), strict=True))
    found = []
    for (s, t), joint in zip(pairs, forecast.of([_only(a, s, t) for s, t in pairs]), strict=True):
        first, second = single[s], single[t]
        if joint is not None and first is not None and second is not None:
            found.append(_interaction(problem.space.stages[s].name, problem.space.stages[t].name, joint, first, second))
    return tuple(sorted(found, key=lambda pair: -abs(pair.excess)))


def _interaction(s: str, t: str, joint: Estimate, first: Estimate, second: Estimate) -> Interaction:
    excess = joint.value - first.value - second.value
    (joint_down, joint_up), (first_down, first_up), (second_down, second_up) = _errors(joint), _errors(first), _errors(second)
    low, high = excess - math.hypot(joint_down, first_up, second_up), excess + math.hypot(joint_up, first_down, second_down)
    sources = {joint.source, first.source, second.source}
    known = (low > 0 or high < 0) and "measured" in (first.source, second.source)
    return Interaction(s, t, excess, "measured" if sources == {"measured"} else "predicted", low, high, known)


def _errors(estimate: Estimate) -> tuple[float, float]:
    """How far the 90 % interval reaches below and above the value."""
    z = Z90 if estimate.source == "measured" else 1.0
    return z * (estimate.value - estimate.low), z * (estimate.high - estimate.value)


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the heat map: the excess in percent of eps, and its colour from -3 (makes up) to 3 (compounds)."""

    percent: float
    heat: int
    source: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The lower triangle of the matrix of pairs, stages in the network's order; a cell is None where nothing is known (`n_known` of `n_pairs` are)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    n_known: int
    n_pairs: int


def heat_map(pairs: Sequence[Interaction], eps: float) -> HeatMap | None:
    """The pairs as a matrix; None without pairs or at an eps of 0."""
    if not pairs or eps <= 0:
        return None
    known = {frozenset((pair.first, pair.second)): pair for pair in pairs if pair.known}
    stages = _in_order(pairs)
    largest = max((abs(pair.excess) for pair in known.values()), default=1.0)

    def cell(row: str, column: str) -> Cell | None:
        pair = known.get(frozenset((row, column)))
        return None if pair is None else Cell(100 * pair.excess / eps, round(3 * pair.excess / largest), pair.source)

    rows = tuple((row, tuple(cell(row, column) for column in stages[:r])) for r, row in enumerate(stages) if r)
    return HeatMap(stages[:-1], rows, len(known), len(pairs))


def _in_order(pairs: Sequence[Interaction]) -> tuple[str, ...]:
    """Each pair names the earlier stage first, so a stage comes after as many others as name it second."""
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    return tuple(sorted(names, key=lambda name: sum(pair.second == name for pair in pairs)))


def _only(candidate: Candidate, *stages: int) -> Candidate:
    """The teacher with the candidate's choices at these stages."""
    return tuple(k if s in stages else 0 for s, k in enumerate(candidate))
