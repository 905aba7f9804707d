"""The numbers of a report in words and rows: headline, stages, what nearly won, what the search cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.amounts import METRICS, amount, worth_showing
from nas.findings import Findings, Found
from nas.problem import Problem
from nas.report.figures import candidate_words, winning
from nas.report.forecast import Forecast
from nas.trial import Trial

NEAR = 4
"""Rows of each kind in what nearly won."""
STOPPED = {
    "trials": "all trials were used up",
    "proof": "nothing better is likely to be left",
    "exhausted": "every candidate is measured",
    "interrupted": "interrupted",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """One winner beside the teacher; `costs` are (metric, teacher, winner, ratio) in words, `verdict` says how sure it is."""

    eps: float
    title: str
    feasible: bool
    costs: tuple[tuple[str, str, str, str], ...]
    divergence: str
    verdict: str
    path: str | None

    @property
    def missing(self) -> bool:
        """Whether the folder it was saved in went away."""
        return self.path is not None and not Path(self.path).is_dir()


def headline(findings: Findings, winner: Found) -> Headline:
    """The winner of one eps."""
    trial = winner.trial
    if trial is None:
        reason = next((t.reason for t in findings.trials if t.reason), None)
        nothing = "nothing was measured" if findings.done else "nothing measured yet"
        return Headline(winner.eps, f"nothing could be measured: {reason}" if reason else nothing, False, (), "", "", None)
    objective = findings.objective
    rows = []
    for metric in worth_showing(trial.costs, (trial.costs, findings.teacher)):
        cost = trial.costs[metric]
        teacher = findings.teacher.get(metric)
        ratio = f"{teacher / cost:.2f}x fewer" if teacher and cost > 0 else "-"
        rows.append((METRICS.get(metric, metric), amount(teacher) if teacher is not None else "?", amount(cost), ratio))
    teacher = findings.teacher.get(objective, 0.0)
    title = f"{teacher / trial.costs[objective]:.2f}x fewer {METRICS.get(objective, objective)}" if teacher and trial.costs[objective] else "winner"
    if not winner.feasible:
        title = "nothing feasible: the least divergent candidate is shown"
    divergence = "not measured" if trial.divergence is None else f"{trial.divergence:.3g} ± {trial.stderr:.1g}"
    return Headline(winner.eps, title, winner.feasible, tuple(rows), divergence, _verdict(findings, winner), winner.path)


def cascade_headline(findings: Findings, row: Mapping[str, Any]) -> Headline:
    """What `nas cascade` made of a winner."""
    costs = [
        (
            METRICS.get(metric, metric), amount(findings.teacher[metric]), amount(row[metric]),
            f"{findings.teacher[metric] / row[metric]:.2f}x fewer" if row[metric] > 0 else "-",
        )
        for metric in worth_showing(findings.teacher, (findings.teacher, row))
    ]  # fmt: skip
    whole, cost, name = findings.teacher[findings.objective], row[findings.objective], METRICS.get(findings.objective, findings.objective)
    title = f"{whole / cost:.2f}x fewer {name}, recalibrated" if whole and cost else "recalibrated"
    before = "" if row["divergence_before"] is None else f"{row['divergence_before']:.3g} before nas cascade fitted its blocks again; "
    verdict = f"{before}{row['heldout_divergence']:.3g} on samples the search never saw"
    return Headline(row["eps"], title, True, tuple(costs), f"{row['divergence']:.3g} ± {row['stderr']:.1g}", verdict, row["path"])


def _verdict(findings: Findings, winner: Found) -> str:
    words = []
    if winner.heldout is not None:
        words.append(f"{winner.heldout:.3g} on samples the search never saw")
    elif winner.feasible:
        words.append("not verified on held-out samples" if findings.done else "not verified yet")
    if winner.relative is not None:
        words.append(f"{100 * winner.relative:.2g} % of the variance of the teacher's output")
    return "; ".join(words)


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage of a winner: its choice, cost, share of the teacher's, calibration error, the L expected of it, and L of the teacher with this swap alone."""

    stage: str
    choice: str
    cost: str
    share: float
    error: str
    expected: str
    alone: str


def stage_rows(problem: Problem, trial: Trial, forecast: Forecast | None) -> list[StageRow]:
    """One row a stage."""
    teacher, table = problem.space.teacher, problem.costs.by_choice[problem.objective]
    singles = [(*teacher[:s], k, *teacher[s + 1 :]) for s, k in enumerate(trial.candidate)]
    alone = forecast.of(singles) if forecast else [None] * len(singles)
    rows = []
    for s, (stage, k) in enumerate(zip(problem.space.stages, trial.candidate, strict=True)):
        cost, whole = float(table[s, k]), float(table[s, 0])
        error, expected = (
            "-" if told is None or not told[s, k] >= 0 else f"{told[s, k]:.3g}" for told in (problem.calibration_errors, problem.expected_losses)
        )
        effect = "-" if k == 0 or alone[s] is None else str(alone[s])
        rows.append(StageRow(stage.name, stage.choices[k].name, amount(cost), cost / whole if whole else 1.0, error, expected, effect))
    return rows


@dataclass(frozen=True, slots=True)
class LevelTable:
    """Calibration errors by noise level: `rows` are a block, the eps of the winners that it is in, and its error in each of the `ranges`."""

    ranges: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def level_table(findings: Findings) -> LevelTable | None:
    """Every block's errors, those of winners first; None where no noise levels were kept."""
    ranges = tuple(dict.fromkeys(name for errors in findings.by_level.values() for name in errors))
    if not ranges:
        return None
    chosen: dict[str, list[str]] = {}
    for eps, choices in zip(findings.eps, winning(findings), strict=True):
        for stage, choice in choices.items():
            chosen.setdefault(f"{stage}/{choice}", []).append(f"{eps:g}")
    names = sorted(findings.by_level, key=lambda name: name not in chosen)
    rows = [(name, ", ".join(chosen.get(name, ())), tuple(_error(findings.by_level[name].get(one)) for one in ranges)) for name in names]
    return LevelTable(ranges, tuple(rows))


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class NearRow:
    """A trial that nearly won, and why it did not."""

    number: str
    candidate: str
    cost: str
    divergence: str
    why: str


def nearly_won(findings: Findings, winner: Found) -> list[NearRow]:
    """Cheaper candidates that held-out data refused or that are least above eps, and the feasible ones next in cost."""
    best, metric = winner.trial, findings.objective
    if best is None or not winner.feasible:
        return []
    by_candidate = {t.candidate: t for t in findings.trials}
    refused = [(by_candidate[c], heldout) for c, heldout in winner.rejected if c in by_candidate]
    names = {t.candidate for t, _ in refused} | {best.candidate}
    others = [t for t in findings.trials if t.divergence is not None and t.candidate not in names]
    cheaper = sorted((t for t in others if t.costs[metric] < best.costs[metric] and (t.divergence or 0) > winner.eps), key=lambda t: t.divergence or 0.0)
    dearer = sorted((t for t in others if t.costs[metric] >= best.costs[metric] and (t.divergence or 0) <= winner.eps), key=lambda t: t.costs[metric])
    rows = [_near(findings, t, "held-out L could not be measured" if h is None else f"held-out L {h:.3g} is above 1.2 eps") for t, h in refused]
    rows += [_near(findings, t, f"L is {(t.divergence or 0) / winner.eps:.2f} x eps" if winner.eps else "L is above 0") for t in cheaper[:NEAR]]
    return rows + [_near(findings, t, f"{t.costs[metric] / best.costs[metric]:.3f} x the winner's {metric}") for t in dearer[:NEAR]]


def _near(findings: Findings, trial: Trial, why: str) -> NearRow:
    divergence = "-" if trial.divergence is None else f"{trial.divergence:.3g} ± {trial.stderr:.1g}"
    return NearRow(str(trial.number + 1), candidate_words(findings, trial), amount(trial.costs[findings.objective]), divergence, why)


def search_cost(findings: Findings) -> list[tuple[str, str]]:
    """What the search took, all its sessions together."""
    result: Mapping[str, Any] = findings.facts.get("result") or {}
    seconds = {**(findings.facts.get("seconds") or {}), **(result.get("seconds") or {})}
    failed = [t for t in findings.trials if t.divergence is None]
    cached = sum(bool(t.attrs.get("cached")) for t in findings.trials)
    rows = [("trials", f"{len(findings.trials)}" + (f", {len(failed)} failed" if failed else "") + (f", {cached} served by the cache" if cached else ""))]
    if "n_measured" in result:
        rows.append(("measurements no cache served, verification included", str(result["n_measured"])))
    feasible = ", ".join(f"{sum((t.divergence is not None) and t.divergence <= e for t in findings.trials)} within eps {e:g}" for e in findings.eps)
    rows.append(("feasible", feasible or "-"))
    rows += [(f"{name} (all sessions)", duration(float(value))) for name, value in seconds.items()]
    if findings.problem is not None:
        rows.append(("candidates in the space", f"{findings.problem.space.n_candidates:,}"))
    if result.get("stopped"):
        rows.append(("stopped because", STOPPED.get(result["stopped"], str(result["stopped"]))))
    return rows + [("left", text) for text in result.get("statements", ())]


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(3.21), duration(75), duration(7300)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def trial_rows(findings: Findings) -> Sequence[tuple[str, str, str, str, str]]:
    """Every trial: number, candidate, cost, divergence, state."""
    metric = findings.objective
    return [
        (
            str(t.number + 1), candidate_words(findings, t), amount(t.costs[metric]),
            "-" if t.divergence is None else f"{t.divergence:.4g} ± {t.stderr:.1g}", t.state if not t.reason else f"{t.state}: {t.reason}",
        )
        for t in findings.trials
    ]  # fmt: skip
