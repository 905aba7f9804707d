"""The charts of a report: cost against divergence, convergence, measured against predicted divergence, calibration."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

from nas.amounts import amount
from nas.errors import NasError
from nas.findings import Findings
from nas.problem import Problem
from nas.report.charts import Axis, Chart, Line, Mark
from nas.report.forecast import Forecast, references
from nas.space import TEACHER, Candidate
from nas.trial import Trial


def measured_trials(findings: Findings) -> list[Trial]:
    """The trials with a finite divergence."""
    return [t for t in findings.trials if t.divergence is not None and math.isfinite(t.divergence)]


def front(findings: Findings, forecast: Forecast | None) -> Chart | None:
    """All trials, every eps, the winners, the teacher and reference designs; one mark a trial. None while there is no trial."""
    if not findings.trials:
        return None
    metric, measured = findings.objective, measured_trials(findings)
    designs = _reference_marks(findings, forecast)
    later = [row for row in findings.cascades if row["divergence"] > 0]
    positive = [t.divergence for t in measured if t.divergence] + [e for e in findings.eps if e > 0] + [m.x for m in designs]
    positive += [row["divergence"] for row in later]
    x = Axis.over("L, divergence from the teacher", [v for v in positive if v is not None], log=True)
    teacher = findings.teacher.get(metric)
    costs = [t.costs[metric] for t in findings.trials] + [m.y for m in designs] + [row[metric] for row in later] + ([teacher] if teacher else [])
    y = Axis.over(metric, costs, log=min(costs) > 0 and max(costs) > 5 * min(costs))
    bounds = [Line(((eps, y.low), (eps, y.high)), f"bound e{i}") for i, eps in enumerate(findings.eps) if eps > 0]
    marks = [_trial_mark(findings, t, x) for t in findings.trials]
    if teacher:
        marks.append(Mark(x.low * (x.high / x.low) ** 0.02, teacher, f"teacher\n{metric} {amount(teacher)}\nL = 0 (left of the scale)", "teacher", "square"))
    text = f"Cost against divergence. {len(findings.trials)} trials; " + "; ".join(_winner_words(findings, i) for i in range(len(findings.eps)))
    lines = [*bounds, Line(_staircase(measured, metric, x, y), "front")]
    return Chart(
        "Cost against divergence",
        text,
        x,
        y,
        lines,
        [*marks, *designs, *_winner_marks(findings), *_cascade_marks(findings)],
        _front_legend(findings, bool(designs)),
    )


def convergence(findings: Findings) -> Chart | None:
    """The cheapest feasible trial so far, for each eps; None while nothing is feasible."""
    metric, lines, marks = findings.objective, [], []
    for i, eps in enumerate(findings.eps):
        best, points = math.inf, []
        for trial in findings.trials:
            allowed = all(trial.costs[b.metric] <= b.limit * (1 + 1e-12) for b in findings.problem.bounds) if findings.problem else True
            if allowed and trial.divergence is not None and trial.divergence <= eps and trial.costs[metric] < best:
                points += [(trial.number + 1, best)] if math.isfinite(best) else []
                best = trial.costs[metric]
                points.append((trial.number + 1, best))
                marks.append(Mark(trial.number + 1, best, f"{_words(findings, trial)}\ncheapest so far at eps {eps:g}", f"e{i}"))
        if points:
            lines.append(Line([*points, (len(findings.trials), best)], f"path e{i}"))
    if not marks:
        return None
    x = Axis("trial", 0.5, len(findings.trials) + 0.5)
    y = Axis.over(metric, [m.y for m in marks] + ([findings.teacher[metric]] if findings.teacher else []))
    last = {eps: f"eps {eps:g}" for eps in findings.eps}
    return Chart("Convergence", f"Convergence. {metric} of the cheapest feasible trial after each trial.", x, y, lines, marks, _eps_legend(last))


def predicted(findings: Findings) -> Chart | None:
    """Divergence as predicted just before each measurement against what was measured; None where the optimizer predicts nothing."""
    rows = [(t, t.attrs["predicted"]) for t in measured_trials(findings) if isinstance(t.attrs.get("predicted"), list) and (t.divergence or 0) > 0]
    if not rows:
        return None
    values = [v for t, q in rows for v in (t.divergence or 0.0, q[1])]
    x, y = Axis.over("predicted L (median, 90 % interval)", values, log=True), Axis.over("measured L", values, log=True)
    within = sum(q[0] <= (t.divergence or 0.0) <= q[2] for t, q in rows)
    marks = [
        Mark(q[1], t.divergence or 0.0, f"trial {t.number + 1}\npredicted {q[1]:.3g} ({q[0]:.2g} to {q[2]:.2g})\nmeasured {t.divergence:.3g}",
             "hit" if q[0] <= (t.divergence or 0.0) <= q[2] else "miss", bar=(q[0], q[2]))
        for t, q in rows
    ]  # fmt: skip
    text = f"Measured against predicted divergence. {within} of {len(rows)} measurements lie within the 90 % interval stated before them."
    diagonal = Line(((max(x.low, y.low), max(x.low, y.low)), (min(x.high, y.high), min(x.high, y.high))), "diagonal")
    return Chart("Measured against predicted", text, x, y, [diagonal], marks, (("hit", "within the 90 % interval"), ("miss", "outside")))


def _trial_mark(findings: Findings, trial: Trial, x: Axis) -> Mark:
    cost = trial.costs[findings.objective]
    if trial.divergence is None or not math.isfinite(trial.divergence):
        return Mark(x.high, cost, f"{_words(findings, trial)}\nfailed: {trial.reason}", "trial failed", "cross")
    within = [i for i, eps in enumerate(findings.eps) if trial.divergence <= eps]
    return Mark(trial.divergence, cost, _words(findings, trial), f"trial e{min(within, key=lambda i: findings.eps[i])}" if within else "trial over")


def _words(findings: Findings, trial: Trial) -> str:
    metric = findings.objective
    lines = [f"trial {trial.number + 1}", f"{metric} {amount(trial.costs[metric])}"]
    if findings.teacher.get(metric):
        lines[-1] += f" ({100 * trial.costs[metric] / findings.teacher[metric]:.1f} % of the teacher's)"
    if trial.divergence is not None:
        lines.append(f"L {trial.divergence:.3g} ± {trial.stderr:.1g}")
    return "\n".join([*lines, candidate_words(findings, trial)])


def candidate_words(findings: Findings, trial: Trial) -> str:
    """What the trial replaces: `stage=choice, ...`."""
    if findings.problem is None:
        return "choices " + " ".join(map(str, trial.candidate))
    changed = [f"{stage}={choice}" for (stage, choice), k in zip(findings.problem.space.decode(trial.candidate).items(), trial.candidate, strict=True) if k]
    return ", ".join(changed) or "teacher"


def _winner_marks(findings: Findings) -> list[Mark]:
    marks = []
    for i, winner in enumerate(findings.winners):
        t = winner.trial
        if t is not None and winner.feasible and t.divergence is not None:
            bar = (t.divergence - t.stderr, t.divergence + t.stderr)
            marks.append(
                Mark(t.divergence, t.costs[findings.objective], f"winner at eps {winner.eps:g}\n{_words(findings, t)}", f"winner e{i}", "star", bar=bar)
            )
    return marks


def calibration(findings: Findings) -> Chart | None:
    """Every block's held-out error over the steps of its calibration, those of winners in colour; None where no curve was kept."""
    recorded = findings.facts.get("curves") or {}
    curves = {name: [(point[0], point[1]) for point in points if len(point) == 2 and point[1] > 0] for name, points in recorded.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    chosen = {f"{stage}/{choice}": f"e{i}" for i, names in reversed(list(enumerate(winning(findings)))) for stage, choice in names.items()}
    lines, marks = [], []
    for name in sorted(curves, key=lambda name: name in chosen):  # what lies on top comes last
        (_, first), *_, (steps, last) = (curves[name][0], *curves[name])
        lines.append(Line(curves[name], chosen.get(name, "other")))
        marks.append(Mark(steps, last, f"{name}\n{first:.3g} at the start\n{last:.3g} after {steps:g} steps", chosen.get(name, "")))
    x = Axis.over("step of calibration", [x for points in curves.values() for x, _ in points])
    y = Axis.over("error of the block, relative to its output's variance", [y for points in curves.values() for _, y in points], log=True)
    names = {eps: f"in the winner at eps {eps:g}" for eps in findings.eps}
    text = f"Calibration. {len(curves)} blocks: error on samples they were not fitted to, by steps; the last point is after the closed-form finish."
    return Chart("Calibration of the blocks", text, x, y, lines, marks, (*_eps_legend(names), ("over", "in none")))


def winning(findings: Findings) -> list[Mapping[str, str]]:
    """Stage -> choice of each eps' winner."""
    trials = [winner.trial for winner in findings.winners]
    return [findings.problem.space.decode(trial.candidate) if trial and findings.problem else {} for trial in trials]


def _cascade_marks(findings: Findings) -> list[Mark]:
    marks = []
    for row in findings.cascades:
        replaced = ", ".join(f"{stage}={choice}" for stage, choice in row["candidate"].items() if choice != TEACHER) or "teacher"
        tip = f"recalibrated, eps {row['eps']:g}\n{findings.objective} {amount(row[findings.objective])}\nL {row['divergence']:.3g}\n{replaced}"
        kind = f"winner e{findings.eps.index(row['eps'])}" if row["eps"] in findings.eps else "winner"
        if row["divergence"] > 0:
            marks.append(Mark(row["divergence"], row[findings.objective], tip, kind, "square"))
    return marks


def _reference_marks(findings: Findings, forecast: Forecast | None) -> list[Mark]:
    if forecast is None or findings.problem is None:
        return []
    designs = {**references(findings.problem), **_named_designs(findings, findings.problem)}
    marks = []
    for (name, candidate), estimate in zip(designs.items(), forecast.of(list(designs.values())), strict=True):
        if estimate is not None and estimate.value > 0:
            cost = findings.problem.costs.of(candidate)[findings.objective]
            tip = f"{name}\n{findings.objective} {amount(cost)}\nL {estimate}, {estimate.source}"
            marks.append(Mark(estimate.value, cost, tip, f"reference {estimate.source}", "diamond"))
    return marks


def _named_designs(findings: Findings, problem: Problem) -> dict[str, Candidate]:
    """Designs that the space itself names, those whose blocks were calibrated."""
    designs = {}
    for name, choices in (findings.facts.get("references") or {}).items():
        with suppress(NasError):
            designs[name] = problem.space.encode(choices)
    return designs


def _staircase(trials: Sequence[Trial], metric: str, x: Axis, y: Axis) -> list[tuple[float, float]]:
    """The front of the measured trials: no trial is cheaper at as little divergence."""
    best, points = math.inf, []
    for trial in sorted(trials, key=lambda t: (t.divergence or 0.0, t.costs[metric])):
        if trial.costs[metric] < best:
            points += [(trial.divergence or 0.0, min(best, y.high)), (trial.divergence or 0.0, trial.costs[metric])]
            best = trial.costs[metric]
    return [*points, (x.high, best)] if points else []


def _winner_words(findings: Findings, i: int) -> str:
    winner = findings.winners[i]
    if winner.trial is None or not winner.feasible:
        return f"nothing feasible at eps {winner.eps:g}"
    return f"at eps {winner.eps:g} the winner has {findings.objective} {amount(winner.trial.costs[findings.objective])} and L {winner.trial.divergence:.3g}"


def _front_legend(findings: Findings, with_designs: bool) -> tuple[tuple[str, str], ...]:
    out = [*_eps_legend({eps: f"within eps {eps:g}" for eps in findings.eps}), ("over", "above every eps"), ("winner", "star: winner")]
    if findings.cascades:
        out.append(("winner", "square: recalibrated by nas cascade"))
    if with_designs:
        out.append(("reference", "diamond: design without a search (hollow: predicted L)"))
    if any(t.divergence is None for t in findings.trials):
        out.append(("failed", "cross at the right: failed"))
    return tuple(out)


def _eps_legend(names: Mapping[float, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"e{i}", name) for i, name in enumerate(names.values()))
