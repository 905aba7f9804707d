"""The card beside an exported model: what it is, how it was found, how far it differs from its teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nas
from nas.amounts import METRICS, amount, worth_showing
from nas.files import write_whole
from nas.problem import CostTable, Problem
from nas.space import Candidate, SearchSpace
from nas.study import Winner
from nas.trial import Trial

NAME = "README.md"


UNTRAINED = "The network as a whole was not trained after that. It inherits its teacher's uses, limits, biases and licence."
STORY = f"stages of a trained network were replaced by cheaper blocks that were calibrated alone to imitate them. {UNTRAINED}"
AS_IT_WAS = "the teacher of a search, as it was. Its uses, limits, biases and licence are its own."


def card(problem: Problem, winner: Winner, config: Mapping[str, Mapping[str, Any]], loading: str = "") -> str:
    """The card of a winner as Markdown, with a model hub's front matter; `loading` are the Python lines that load it."""
    trial = winner.trial
    assert trial is not None
    chosen = problem.space.decode(trial.candidate)
    heldout = "not measured" if winner.heldout is None or winner.heldout.divergence is None else f"{winner.heldout.divergence:.3g}"
    title = f"{problem.space.name}: the smallest network found within eps {winner.eps:g} of its teacher"
    rows = [
        *_cost_rows(problem.costs.of(problem.space.teacher), trial.costs),
        f"| L, divergence from the teacher | 0 | {_divergence(trial)} | bound {winner.eps:g} |", f"| L on held-out samples | 0 | {heldout} | |",
    ]  # fmt: skip
    return _text(title, STORY, rows, chosen, config, loading)


def candidate_card(
    space: SearchSpace, costs: CostTable, candidate: Candidate, trial: Trial | None, config: Mapping[str, Mapping[str, Any]], loading: str = ""
) -> str:
    """The card of a network of a run's space that was named, the teacher itself included; `trial` is its trial, if the run measured it."""
    replaced = candidate != space.teacher
    title = f"{space.name}: {'a network that was named' if replaced else 'the teacher, nothing replaced'}"
    divergence = ("not measured" if trial is None else _divergence(trial)) if replaced else "0"
    rows = [*_cost_rows(costs.of(space.teacher), costs.of(candidate)), f"| L, divergence from the teacher | 0 | {divergence} | |"]
    return _text(title, STORY if replaced else AS_IT_WAS, rows, space.decode(candidate), config, loading)


def _cost_rows(teacher: Mapping[str, float], chosen: Mapping[str, float]) -> list[str]:
    shown = {metric: chosen[metric] for metric in worth_showing(chosen, (teacher, chosen))}
    return [f"| {METRICS.get(m, m)} | {amount(teacher[m])} | {amount(cost)} | {_share(cost, teacher[m])} |" for m, cost in shown.items()]


def _divergence(trial: Trial) -> str:
    return "unknown" if trial.divergence is None else f"{trial.divergence:.3g} ± {trial.stderr:.1g} on {trial.n_samples} samples"


def cascade_card(result: Mapping[str, Any], config: Mapping[str, Mapping[str, Any]], loading: str = "") -> str:
    """The card of what `nas cascade` found; `result` is its JSON, `config` that of the run it went on from."""
    eps, before = result["eps"], "unknown" if result["divergence_before"] is None else f"{result['divergence_before']:.3g}"
    title = f"{result['space']}: a network within eps {eps:g} of its teacher, its blocks recalibrated on their real inputs"
    story = (
        "stages of a trained network were replaced by cheaper blocks that were calibrated alone to imitate them, then fitted again in order, each on what "
        f"the blocks before it really hand on (`nas cascade`). {UNTRAINED}"
    )
    rows = [
        *_cost_rows(result["teacher"], {metric: result[metric] for metric in result["teacher"]}),
        f"| L, divergence from the teacher | 0 | {result['divergence']:.3g} ± {result['stderr']:.1g} on {result['n_samples']} samples | bound {eps:g} |",
        f"| L before recalibration | 0 | {before} | |",
        f"| L on held-out samples | 0 | {result['heldout_divergence']:.3g} | |",
    ]
    return _text(title, story, rows, result["candidate"], {**config, "cascade": result["spent"]}, loading)


def _text(title: str, story: str, rows: Sequence[str], chosen: Mapping[str, str], config: Mapping[str, Mapping[str, Any]], loading: str) -> str:
    how = ["## Loading", "", "```python", *loading.splitlines(), "```", ""] if loading else []
    lines = [
        "---", "library_name: stage-nas", "tags: [neural-architecture-search, compression]", "---", "", f"# {title}", "",
        f"Written by stage-nas {nas.__version__}: {story}", "",
        "| | teacher | this model | |", "|---|---|---|---|", *rows, "",
        "| stage | block |", "|---|---|", *(f"| {stage} | {choice} |" for stage, choice in chosen.items()), "",
        *how, "## Provenance", "", "| | |", "|---|---|",
        *(f"| {section}.{key} | `{value}` |" for section, values in config.items() for key, value in values.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def write_card(folder: Path, text: str) -> None:
    """Writes a card into an exported model's folder."""
    write_whole(folder / NAME, text.encode())


def _share(cost: float, teacher: float) -> str:
    return f"{100 * cost / teacher:.1f} %" if teacher else "-"
