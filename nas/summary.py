"""What a run came to, as `nas search --json` prints it; of an unfinished run, what is known so far."""

from pathlib import Path
from typing import Any, get_args

from nas.amounts import exact
from nas.cascades import cascades
from nas.clock import in_parts
from nas.errors import DamagedFile, InputError
from nas.files import MANIFEST, damage
from nas.findings import Findings, objective_of, recorded_problem
from nas.record import Record
from nas.run_directory import RunDirectory, search_command
from nas.study import Stopped
from nas.trial import Trial


def summarize(directory: RunDirectory, record: Record) -> dict[str, Any]:
    """The result as `nas search` printed it, with paths where the directory is now and what `nas cascade` made of it; incumbents, unverified, if unfinished.

    The path of a winner whose folder went away is None; `missing` then says where it was.
    """
    summary = _searched(directory, record)
    for winner in summary["winners"]:
        if winner["path"] and not Path(winner["path"]).is_dir():
            winner["path"], winner["missing"] = None, winner["path"]
    summary["objective"] = objective_of(directory.config()["search"], list(summary["teacher"]))
    return {**summary, "cascades": cascades(directory.path, summary["teacher"]), "run": str(directory.path)}


def _searched(directory: RunDirectory, record: Record) -> dict[str, Any]:
    summary: dict[str, Any] | None = record.fact("result")
    if summary is None:
        summary = _unfinished(directory, record)
    elif not _agrees(summary, record.fact("table")):
        raise DamagedFile(f"run '{directory.path}': the result in its record does not fit its table of stages; `nas doctor {directory.path}` says more")
    for winner in summary["winners"]:
        winner["path"] = str(directory.path / Path(winner["path"]).name) if winner["path"] else None
    return summary


def _agrees(summary: dict[str, Any], table: dict[str, Any] | None) -> bool:
    """Whether a result names stages, choices and costs of the table it came with; the run may be somebody else's."""
    metrics = set(summary["teacher"])
    choices = {stage["name"]: {choice["name"]: choice for choice in stage["choices"]} for stage in table["stages"]} if table else {}
    rows = [*(choice for stage in choices.values() for choice in stage.values()), *(winner for winner in summary["winners"] if winner["candidate"])]
    fitting = all(
        not winner["candidate"] or (set(winner["candidate"]) == set(choices) and all(c in choices[s] for s, c in winner["candidate"].items()))
        for winner in summary["winners"]
    )
    return (
        fitting
        and bool(metrics)
        and summary["stopped"] in get_args(Stopped)
        and all(choices.values())
        and all(isinstance(row.get(metric), int | float) for row in rows for metric in metrics)
    )


def _unfinished(directory: RunDirectory, record: Record) -> dict[str, Any]:
    config, trials, table = directory.config(), record.trials(), record.fact("table")
    names = [(stage["name"], [c["name"] for c in stage["choices"]]) for stage in table["stages"]] if table else []
    teacher = {m: v + sum(stage["choices"][0][m] for stage in table["stages"]) for m, v in table["fixed"].items()} if table else {}
    rows = {trial.number: trial_row(trial, names) for trial in trials}
    winners = []
    for best in Findings(directory.path, config, tuple(trials), recorded_problem(config, {"table": table}, [])).winners:
        row = rows[best.trial.number] if best.trial else {"candidate": None, "costs": {}, "divergence": None, "stderr": None, "n_samples": 0}
        kept = {key: row[key] for key in ("candidate", "divergence", "stderr", "n_samples")}
        winners.append({"eps": best.eps, "feasible": best.feasible, **kept, **row["costs"], "heldout_divergence": None, "path": None})
    alone = config["search"].get("workers", 1) == 1
    seconds = in_parts(record.fact("seconds", {}), sum(t.seconds for t in trials), record.fact("seconds_proposing", 0.0), alone=alone)
    return {
        "space": (table or {}).get("space", config["space"]["name"]), "teacher": teacher, "winners": winners, "n_trials": len(trials),
        "n_measured": sum(not t.attrs.get("cached") for t in trials), "seconds": seconds, "stopped": "interrupted",
    }  # fmt: skip


def trial_row(trial: Trial, names: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """A trial as `nas show --json` prints it; `names` are the stages with their choices."""
    if len(names) != len(trial.candidate) or any(not 0 <= k < len(choices) for (_, choices), k in zip(names, trial.candidate, strict=True)):
        raise DamagedFile(f"trial {trial.number} of the record does not fit the run's table of stages; `nas doctor` of that run says more")
    return {
        "number": trial.number,
        "candidate": {stage: choices[k] for (stage, choices), k in zip(names, trial.candidate, strict=True)},
        "costs": dict(trial.costs), "divergence": trial.divergence, "stderr": trial.stderr, "n_samples": trial.n_samples,
        "state": trial.state, "reason": trial.reason,
    }  # fmt: skip


def winner_folder(directory: RunDirectory, eps: float | None) -> Path:
    """The folder of a run's saved winner; which one, when there are several."""
    with directory.record(read_only=True) as record:
        found = _searched(directory, record)
        winners = {winner["eps"]: winner["path"] for winner in found["winners"] if winner["path"]}
        trials = record.fact("trials_asked")
    if not winners and found["stopped"] == "interrupted":
        raise InputError(f"run '{directory.path}' has no saved winner; let its search finish, or name a --candidate")
    if not winners and any(winner["feasible"] for winner in found["winners"]):
        raise InputError(f"run '{directory.path}' saved no winner: its space has no models to export")
    if not winners:
        raise InputError(f"run '{directory.path}' has no winner: nothing it measured is feasible; name a --candidate to export one all the same")
    if eps is None and len(winners) > 1:
        raise InputError(f"run '{directory.path}' has several winners; choose one with --eps: {', '.join(map(exact, winners))}")
    if eps is not None and eps not in winners:
        raise InputError(f"run '{directory.path}' has no winner for eps {exact(eps)}; it has: {', '.join(map(exact, winners))}")
    folder = Path(winners[eps if eps is not None else next(iter(winners))])
    if not folder.is_dir():
        raise DamagedFile(f"the winner's folder {folder} is missing; this saves it again: {search_command(directory.path, directory.config(), trials)}")
    return folder


def check_winner(folder: Path) -> None:
    """Raises unless every file is what the folder's manifest vouches for."""
    wrong = damage(folder) if (folder / MANIFEST).exists() else [f"{folder} has no {MANIFEST} that vouches for it"]
    if wrong:
        raise DamagedFile(f"{wrong[0]}; `nas doctor {folder.parent} --repair` moves it aside, the same `nas search` saves it again")
