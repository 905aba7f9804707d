"""Why the winner is what it is: its neighbours, what binds, what other bounds would give, what each stage trades, what to build next.

Divergences are measured where the run measured them, else predicted by a model fitted to its trials (medians with 90 % intervals).
Symbols: `a` the winner, `s`, `t` stages, `L(s)` the divergence of the teacher with the winner's choice at `s` alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from nas.amounts import amount
from nas.errors import InputError
from nas.findings import Findings, Found
from nas.new_blocks import NewBlock, new_blocks
from nas.problem import Problem
from nas.report.forecast import Estimate, Forecast
from nas.report.interactions import Interaction, interactions
from nas.space import Candidate
from nas.trial import Trial

STEP = 0.1
"""How much smaller and larger eps, and how much larger bounds, are asked about."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The winner with one other choice; `saves` cost (negative: costs more), `allowed` by bounds on known costs, `rejected` by held-out samples."""

    stage: str
    before: str
    after: str
    cost: float
    saves: float
    divergence: Estimate | None
    feasible: bool
    allowed: bool
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class Bounded:
    """A bound with where the winner stands; it binds if some cheaper neighbour is kept out by it alone (`keeps_out` of them, L also on held-out samples).

    Of a known cost that binds, `opens_at` is the least limit that lets one of these in, which `saves` so much of the objective.
    """

    bound: str
    value: float
    limit: float
    keeps_out: int
    opens_at: float | None = None
    saves: float | None = None

    @property
    def binds(self) -> bool:
        """Whether it alone keeps out something cheaper."""
        return self.keeps_out > 0


@dataclass(frozen=True, slots=True)
class OtherEps:
    """The cost of the cheapest feasible candidate at another eps: 5 %, 50 %, 95 % quantiles; None where none is expected."""

    eps: float
    low: float | None
    middle: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class OtherBound:
    """The cost of the cheapest feasible candidate with a larger limit on a known cost, as in `OtherEps`."""

    metric: str
    limit: float
    low: float | None
    middle: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Price:
    """A stage's rate of exchange: the best swap to something cheaper (cost saved per unit of L added) and to something dearer (L relieved per cost)."""

    stage: str
    cheaper: str | None
    saved_per_divergence: float | None
    dearer: str | None
    divergence_per_cost: float | None


@dataclass(frozen=True)
class Additivity:
    """How far single swaps explain L: rank correlation of their sums with measured L, and what pairs of the winner's swaps add beyond their sum."""

    n_trials: int
    n_singles_measured: int
    n_singles: int
    rank_correlation: float | None
    pairs: tuple[Interaction, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All of it for one eps; `by_level` is stage -> its block's calibration error by noise level, `notes` say what could not be said."""

    eps: float
    feasible: bool
    objective: str
    candidate: dict[str, str]
    cost: float
    teacher_cost: float
    divergence: float | None
    stderr: float
    neighbours: tuple[Neighbour, ...] = ()
    bounds: tuple[Bounded, ...] = ()
    other_eps: tuple[OtherEps, ...] = ()
    other_bounds: tuple[OtherBound, ...] = ()
    prices: tuple[Price, ...] = ()
    additivity: Additivity | None = None
    new_blocks: tuple[NewBlock, ...] = ()
    by_level: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The JSON of `nas explain`."""
        found = asdict(self)
        for row, bound in zip(found["bounds"], self.bounds, strict=True):
            row["binds"] = bound.binds
        for row, block in zip(found["new_blocks"], self.new_blocks, strict=True):
            row["unknown"] = block.unknown
        return found


def explain(findings: Findings, forecast: Forecast | None) -> list[Explanation]:
    """One explanation for each eps that has any measured candidate.

    Raises:
        InputError: the run holds too little to explain anything.
    """
    if findings.problem is None or forecast is None:
        raise InputError(f"run '{findings.path}' cannot be explained: {' '.join(findings.missing) or 'its costs are not recorded'}")
    winners = [winner for winner in findings.winners if winner.trial is not None and winner.trial.divergence is not None]
    if not winners:
        way_out = f"its search is over. {' '.join(findings.missing)}".strip() if findings.done else "let its search go on"
        raise InputError(f"run '{findings.path}' has no measured candidate to explain{'' if findings.done else ' yet'}; {way_out}")
    return [_explain(findings, winner, forecast) for winner in winners]


def _explain(findings: Findings, winner: Found, forecast: Forecast) -> Explanation:
    trial, problem = winner.trial, forecast.problem
    assert trial is not None
    neighbours = _neighbours(problem, trial, winner, forecast)
    candidate = problem.space.decode(trial.candidate)
    other = _other_eps(forecast, winner, trial.costs[problem.objective])
    return Explanation(
        eps=winner.eps,
        feasible=winner.feasible,
        objective=problem.objective,
        candidate=candidate,
        cost=trial.costs[problem.objective],
        teacher_cost=findings.teacher[problem.objective],
        divergence=trial.divergence,
        stderr=trial.stderr,
        neighbours=tuple(neighbours),
        bounds=tuple(_bounds(problem, trial, winner, forecast)),
        other_eps=other,
        other_bounds=_other_bounds(forecast, winner),
        prices=tuple(_prices(problem, trial, neighbours, forecast)),
        additivity=_additivity(problem, trial, forecast),
        new_blocks=tuple(new_blocks(problem, trial, forecast, _worth(other))),
        by_level={stage: dict(findings.by_level[f"{stage}/{choice}"]) for stage, choice in candidate.items() if f"{stage}/{choice}" in findings.by_level},
        notes=(*findings.missing, *_doubts(winner, forecast)),
    )


def _doubts(winner: Found, forecast: Forecast) -> list[str]:
    out = []
    if not winner.feasible:
        out.append("No measured candidate is within eps: the least divergent one is explained.")
    if forecast.model is None:
        out.append("Too few trials to fit a model (or no eps above 0): only measured divergences are known.")
    return out


def _neighbours(problem: Problem, trial: Trial, winner: Found, forecast: Forecast) -> list[Neighbour]:
    """Every candidate that differs from the winner at one stage, cheapest first."""
    a, cost, refused = trial.candidate, trial.costs[problem.objective], dict(winner.rejected)
    swaps = [(s, k) for s, size in enumerate(problem.space.sizes) for k in range(size) if k != a[s]]
    candidates = [_with(a, s, k) for s, k in swaps]
    rows = []
    for (s, k), candidate, estimate, allowed in zip(swaps, candidates, forecast.of(candidates), _allowed(problem, candidates), strict=True):
        stage = problem.space.stages[s]
        total = problem.costs.of(candidate)[problem.objective]
        rejected = candidate in refused
        feasible = estimate is not None and estimate.value <= winner.eps and not rejected
        rows.append(Neighbour(stage.name, stage.choices[a[s]].name, stage.choices[k].name, total, cost - total, estimate, feasible, allowed, rejected))
    return sorted(rows, key=lambda row: (row.cost, row.stage))


def _bounds(problem: Problem, trial: Trial, winner: Found, forecast: Forecast) -> list[Bounded]:
    """L and every bound on a known cost, and how many cheaper neighbours each keeps out alone."""
    a, eps, refused = trial.candidate, winner.eps, dict(winner.rejected)
    candidates = [_with(a, s, k) for s, size in enumerate(problem.space.sizes) for k in range(size) if k != a[s]]
    costs = [problem.costs.of(candidate) for candidate in candidates]
    cost, objective = trial.costs[problem.objective], problem.objective
    cheaper = [(c, own) for c, own in zip(candidates, costs, strict=True) if own[objective] < cost]
    alone: dict[str, list[dict[str, float]]] = {}
    for (candidate, own), estimate in zip(cheaper, forecast.of([c for c, _ in cheaper]), strict=True):
        broken = [b.metric for b in problem.bounds if own[b.metric] > b.limit * (1 + 1e-12)]
        if candidate in refused or (estimate is not None and estimate.value > eps):
            broken.append("L")
        if len(broken) == 1:
            alone.setdefault(broken[0], []).append(own)
    rows = [Bounded("L <= eps", trial.divergence or 0.0, eps, len(alone.get("L", ())))]
    for b in problem.bounds:
        nearest = min(alone.get(b.metric, ()), key=lambda own: (own[b.metric], own[objective]), default=None)
        opens = (nearest[b.metric], cost - nearest[objective]) if nearest else (None, None)
        rows.append(Bounded(f"{b.metric} <= {amount(b.limit)}", trial.costs[b.metric], b.limit, len(alone.get(b.metric, ())), *opens))
    return rows


def _other_eps(forecast: Forecast, winner: Found, cost: float) -> tuple[OtherEps, ...]:
    """The cheapest feasible cost below, at and above eps; at a smaller eps nothing is cheaper than a feasible winner at this one."""
    if winner.eps <= 0 or forecast.model is None:
        return ()
    held_out = forecast.corrected(dict(winner.rejected))
    rows = []
    for other in (winner.eps * (1 - STEP), winner.eps, winner.eps * (1 + STEP)):
        found = held_out.cost_at(other)
        assert found is not None
        floor = cost if winner.feasible and other < winner.eps else -math.inf
        low, middle, high = (max(value, floor) if math.isfinite(value) else None for value in found)
        rows.append(OtherEps(other, low, middle, high))
    return tuple(rows)


def _other_bounds(forecast: Forecast, winner: Found) -> tuple[OtherBound, ...]:
    """The cheapest feasible cost with each bound on a known cost relaxed in turn."""
    if winner.eps <= 0 or forecast.model is None:
        return ()
    problem, rows = forecast.problem, []
    for bound in problem.bounds:
        if winner.feasible and bound.metric == problem.objective:
            continue
        relaxed = replace(bound, limit=bound.limit * (1 + STEP))
        found = forecast.under(tuple(relaxed if b is bound else b for b in problem.bounds)).corrected(dict(winner.rejected)).cost_at(winner.eps)
        if found is not None:
            rows.append(OtherBound(bound.metric, relaxed.limit, *(value if math.isfinite(value) else None for value in found)))
    return tuple(rows)


def _prices(problem: Problem, trial: Trial, neighbours: Sequence[Neighbour], forecast: Forecast) -> list[Price]:
    """For each stage the best exchanges among its neighbours; predictions are compared with the prediction for the winner itself."""
    base = {"measured": trial.divergence or 0.0, "predicted": forecast.predicted(trial.candidate) or 0.0}
    rows = []
    for stage in problem.space.stages:
        own = [
            (n, n.divergence.value - base[n.divergence.source])
            for n in neighbours
            if n.stage == stage.name and n.divergence is not None and n.saves != 0 and not n.rejected
        ]
        down = [(n.saves / added if added > 0 else math.inf, n.after) for n, added in own if n.saves > 0]
        up = [(-added / -n.saves, n.after) for n, added in own if n.saves < 0 and added < 0]
        best_down, best_up = max(down, default=None), max(up, default=None)
        rows.append(
            Price(
                stage.name,
                best_down[1] if best_down else None, best_down[0] if best_down and math.isfinite(best_down[0]) else None,
                best_up[1] if best_up else None, best_up[0] if best_up else None,
            )
        )  # fmt: skip
    return rows


def _additivity(problem: Problem, trial: Trial, forecast: Forecast) -> Additivity:
    singles = {(s, k): _with(problem.space.teacher, s, k) for s, size in enumerate(problem.space.sizes) for k in range(1, size)}
    alone = dict(zip(singles, forecast.of(list(singles.values())), strict=True))
    measured = sum(estimate is not None and estimate.source == "measured" for estimate in alone.values())
    several = [t for t in forecast.trials if sum(k > 0 for k in t.candidate) > 1]
    values = {swap: math.nan if estimate is None else estimate.value for swap, estimate in alone.items()}
    sums = [sum(values[s, k] for s, k in enumerate(t.candidate) if k) for t in several]
    usable = [(total, t.divergence) for total, t in zip(sums, several, strict=True) if math.isfinite(total)]
    rank = float(spearmanr(*zip(*usable, strict=True)).statistic) if len(usable) > 2 else None
    rank = None if rank is None or not math.isfinite(rank) else rank
    return Additivity(len(usable), measured, len(singles), rank, interactions(problem, trial.candidate, forecast))


def _worth(other: Sequence[OtherEps]) -> float | None:
    """What the objective gains per unit of eps around the winner; None where that is unknown."""
    if not other or other[0].middle is None or other[2].middle is None or other[2].eps <= other[0].eps:
        return None
    return (other[0].middle - other[2].middle) / (other[2].eps - other[0].eps)


def _with(candidate: Candidate, s: int, k: int) -> Candidate:
    return (*candidate[:s], k, *candidate[s + 1 :])


def _allowed(problem: Problem, candidates: Sequence[Candidate]) -> list[bool]:
    return [bool(v) for v in problem.allowed(np.array(candidates))] if candidates else []
