"""The card beside an exported model: what it is, how it was found, how far it differs from its teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nas
from nas.amounts import METRICS, amount
from nas.files import write_whole
from nas.problem import Problem
from nas.study import Winner

NAME = "README.md"


def card(problem: Problem, winner: Winner, config: Mapping[str, Mapping[str, Any]], loading: str = "") -> str:
    """The card of a winner as Markdown, with a model hub's front matter; `loading` are the Python lines that load it."""
    trial = winner.trial
    assert trial is not None
    teacher, chosen = problem.costs.of(problem.space.teacher), problem.space.decode(trial.candidate)
    rows = [f"| {METRICS.get(m, m)} | {amount(teacher[m])} | {amount(cost)} | {_share(cost, teacher[m])} |" for m, cost in trial.costs.items()]
    heldout = "not measured" if winner.heldout is None or winner.heldout.divergence is None else f"{winner.heldout.divergence:.3g}"
    divergence = "unknown" if trial.divergence is None else f"{trial.divergence:.3g} ± {trial.stderr:.1g} on {trial.n_samples} samples"
    title = f"{problem.space.name}: the smallest network found within eps {winner.eps:g} of its teacher"
    story = "stages of a trained network were replaced by cheaper blocks that were calibrated alone to imitate them."
    rows += [f"| L, divergence from the teacher | 0 | {divergence} | bound {winner.eps:g} |", f"| L on held-out samples | 0 | {heldout} | |"]
    return _text(title, story, rows, chosen, config, loading)


def cascade_card(result: Mapping[str, Any], config: Mapping[str, Mapping[str, Any]], loading: str = "") -> str:
    """The card of what `nas cascade` found; `result` is its JSON, `config` that of the run it went on from."""
    eps, before = result["eps"], "unknown" if result["divergence_before"] is None else f"{result['divergence_before']:.3g}"
    title = f"{result['space']}: a network within eps {eps:g} of its teacher, its blocks recalibrated on their real inputs"
    story = (
        "stages of a trained network were replaced by cheaper blocks that were calibrated alone to imitate them, then fitted again in order, each on what "
        "the blocks before it really hand on (`nas cascade`)."
    )
    rows = [f"| {METRICS.get(m, m)} | {amount(cost)} | {amount(result[m])} | {_share(result[m], cost)} |" for m, cost in result["teacher"].items()]
    rows += [
        f"| L, divergence from the teacher | 0 | {result['divergence']:.3g} ± {result['stderr']:.1g} on {result['n_samples']} samples | bound {eps:g} |",
        f"| L before recalibration | 0 | {before} | |",
        f"| L on held-out samples | 0 | {result['heldout_divergence']:.3g} | |",
    ]
    return _text(title, story, rows, result["candidate"], {**config, "cascade": result["spent"]}, loading)


def _text(title: str, story: str, rows: Sequence[str], chosen: Mapping[str, str], config: Mapping[str, Mapping[str, Any]], loading: str) -> str:
    how = ["## Loading", "", "```python", *loading.splitlines(), "```", ""] if loading else []
    lines = [
        "---", "library_name: stage-nas", "tags: [neural-architecture-search, compression]", "---", "", f"# {title}", "",
        (f"Found by stage-nas {nas.__version__}: {story} "
        "The network as a whole was not trained after that. It inherits its teacher's uses, limits, biases and licence."), "",
        "| | teacher | this model | |", "|---|---|---|---|", *rows, "",
        "| stage | block |", "|---|---|", *(f"| {stage} | {choice} |" for stage, choice in chosen.items()), "",
        *how, "## Provenance", "", "| | |", "|---|---|",
        *(f"| {section}.{key} | `{value}` |" for section, values in config.items() for key, value in values.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def write_card(folder: Path, problem: Problem, winner: Winner, config: Mapping[str, Mapping[str, Any]], loading: str = "") -> None:
    """Writes the card into an exported model's folder; see `card`."""
    write_whole(folder / NAME, card(problem, winner, config, loading).encode())


def _share(cost: float, teacher: float) -> str:
    return f"{100 * cost / teacher:.1f} %" if teacher else "-"
