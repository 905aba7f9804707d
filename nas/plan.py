"""What a search would do and take, before it starts: costs in reach, whether the bounds can hold, work, time, memory, disk."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas import arguments
from nas.bounds import check_together, least_cost
from nas.errors import InputError
from nas.home import nas_home
from nas.job import SearchOptions, asked_costs, default_objective
from nas.names import check_is_space
from nas.problem import Bound, CostTable
from nas.protocols import CanForecast, Space


def plan(source: Space, asked: SearchOptions, workers: int = 1) -> dict[str, Any]:
    """The plan of a search as JSON values.

    Returns:
        `costs`: metric -> least, teacher, most, bound (None without one); `satisfiable` and, where it is False, `why`;
        `least_objective`: what the bounds leave of the objective at best; `n_candidates`; `trials`; `forecast` (None for
        spaces that cannot tell) with its `total_s` for so many workers; `notes` on what was not counted; `disk_free_mb` where blocks are kept.
    """
    check_is_space(source, "a plan needs a space, got")
    arguments.instance("asked", asked, SearchOptions, "nas.job.SearchOptions((0.005,)) is one")
    workers = arguments.whole("workers", workers, 1)
    costs = asked_costs(source, source.costs(), asked)
    objective = default_objective(costs, asked.minimize)
    found, why = _bounds(asked, costs)
    limits = {bound.metric: min(b.limit for b in found if b.metric == bound.metric) for bound in found}
    teacher = costs.of(source.space.teacher)
    forecast = source.forecast() if isinstance(source, CanForecast) else None
    planned = None
    if forecast is not None:
        planned = {**asdict(forecast), "total_s": (forecast.calibrate_s + forecast.measure_s * (asked.trials + len(asked.eps))) / workers}
    return {
        "space": source.space.name,
        "eps": list(asked.eps),
        "objective": objective,
        "costs": {
            metric: {"least": costs.reach(metric)[0], "teacher": teacher[metric], "most": costs.reach(metric)[1], "bound": limits.get(metric)}
            for metric in costs.metrics
        },
        "satisfiable": why is None,
        "why": why,
        "least_objective": None if why else least_cost(costs, objective, found),
        "n_candidates": source.space.n_candidates,
        "trials": asked.trials,
        "workers": workers,
        "forecast": planned,
        "notes": list(costs.notes),
        "disk_free_mb": shutil.disk_usage(_existing(nas_home())).free / 1e6,
    }


def _bounds(asked: SearchOptions, costs: CostTable) -> tuple[tuple[Bound, ...], str | None]:
    """The bounds and, where they cannot hold, why; what is no bound at all is an error."""
    found = tuple(Bound.stated(text, costs) for text in asked.where)
    try:
        for text in asked.where:
            Bound.parse(text, costs)
        check_together(found, costs)
    except InputError as error:
        return found, str(error)
    return found, None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
