"""Where the command line writes: results on stdout, all else on stderr; progress bars and the live view of a search."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from nas.amounts import amount, legend, worth_showing

if TYPE_CHECKING:
    from nas.loggers import Sink
    from nas.registry import Registry
    from nas.study import Study
    from nas.trial import Trial

T = TypeVar("T")

# what names hold in brackets or between colons is theirs, no style and no picture
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)


def complain(line: str) -> None:
    """One line about what is wrong."""
    err.print(Text.assemble(("error: ", "bold red"), line))


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
    sys.stdout.flush()


def print_names(registry: "Registry[Any]", json: bool) -> None:
    """The names of a registry with a line on each; as JSON a list of names."""
    if json:
        print_json(registry.names())
        return
    table = Table.grid(padding=(0, 3))
    for name in registry.names():
        table.add_row(name, Text(registry.about(name)))
    out.print(table)


def print_legend(*words: str, block_names: str = "", divergence: str = "", quiet: bool = False) -> None:
    """What the words and block names of a table mean, on stderr."""
    if quiet:
        return
    meanings = legend(divergence)
    for word in words:
        err.print(Text(f"{word}: {meanings[word]}", style="dim"))
    if block_names:
        err.print(Text(f"blocks: {block_names}", style="dim"))


class Terminal:
    """Progress for people: notes and bars on stderr; plain lines where stderr is not a terminal; `quiet` silences all. `sinks` get numbers of trainings."""

    def __init__(self, quiet: bool = False, sinks: "Sequence[Sink]" = ()) -> None:
        self._quiet = quiet
        self._sinks = sinks

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Hands numbers on to the sinks."""
        for sink in self._sinks:
            sink.log(values, step)

    def note(self, text: str) -> None:
        """One line worth keeping."""
        if not self._quiet:
            err.print(text)

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items, behind a bar with count and ETA."""
        if self._quiet or not err.is_terminal:
            yield from self._plain(items, what)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        with Bars(*columns, console=err) as bars:
            yield from bars.track(items, description=what)

    def _plain(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items, with a line at the start and at every quarter."""
        quarters = {len(items) * k // 4 for k in range(4)}
        for number, item in enumerate(items):
            if number in quarters:
                self.note(f"{what}: {number}/{len(items)}")
            yield item


class SearchView:
    """The live view of a search: the incumbent of each eps, trials, feasible share, what workers do, ETA.

    Plain lines at each improvement when not on a terminal; `verbose` adds a line for every trial, `quiet` silences all.
    """

    def __init__(self, n_trials: int, quiet: bool = False, verbose: bool = False) -> None:
        self._n_trials = n_trials
        self._quiet = quiet
        self._verbose = verbose and not quiet
        self._told: int | None = None
        self._live = Live(console=err, transient=True, refresh_per_second=4)
        self._bars = Bars(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=err)
        self._best: dict[float, int] = {}

    def __enter__(self) -> "SearchView":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, study: "Study") -> None:
        """Shows the study as it stands."""
        if self._quiet:
            return
        trials = study.trials
        if self._verbose:
            self._tell(study, trials)
        if err.is_terminal:
            self._draw(study, trials)
            return
        teacher = study.problem.costs.of(study.problem.space.teacher)
        for eps in study.problem.eps:
            best = study.incumbent(eps, trials)
            if best is not None and self._best.get(eps) != best.number:
                self._best[eps] = best.number
                costs = ", ".join(f"{name} {amount(best.costs[name])}" for name in worth_showing(best.costs, [teacher, best.costs]))
                err.print(f"trial {len(trials)}/{self._n_trials}: eps {eps:g}: {costs}, L {best.divergence:.3g} ± {best.stderr:.1g}")

    def _tell(self, study: "Study", trials: Sequence["Trial"]) -> None:
        """A line for every trial since the last call; at the start, for none."""
        for trial in trials[len(trials) if self._told is None else self._told :]:
            replaced = [f"{s}={c}" for (s, c), k in zip(study.problem.space.decode(trial.candidate).items(), trial.candidate, strict=True) if k]
            measured = f"failed: {trial.reason}" if trial.divergence is None else f"L {trial.divergence:.3g} ± {trial.stderr:.1g}"
            told = trial.attrs.get("predicted")
            predicted = f" (predicted {told[1]:.2g}, {told[0]:.1g} to {told[2]:.1g})" if told else ""
            cost = amount(trial.costs[study.problem.objective])
            err.print(f"  {trial.number + 1}: {study.problem.objective} {cost}, {measured}{predicted}: {', '.join(replaced) or 'teacher'}")
        self._told = len(trials)

    def _draw(self, study: "Study", trials: Sequence["Trial"]) -> None:
        """The live view; it starts with the first trial, since calibration before it has bars of its own."""
        if not self._bars.tasks:
            self._bars.add_task("trials", total=self._n_trials, completed=len(trials))
            self._live.start()
        self._bars.update(self._bars.tasks[0].id, completed=len(trials))
        state = "; ".join(part for part in (shares(study, trials), study.workers) if part)
        self._live.update(Group(incumbents(study), Text(state, style="dim"), self._bars))


def shares(study: "Study", trials: Sequence["Trial"]) -> str:
    """How many of the trials are feasible at each eps, and how many failed."""
    if not trials:
        return "no trial yet"
    within = {eps: sum(t.divergence is not None and t.divergence <= eps for t in trials) for eps in study.problem.eps}
    parts = [f"{100 * count / len(trials):.0f} % within eps {eps:g}" for eps, count in within.items()]
    failed = sum(t.divergence is None for t in trials)
    return ", ".join(parts + ([f"{failed} failed"] if failed else []))


def incumbents(study: "Study") -> Table:
    """One row an eps: the cheapest feasible trial so far."""
    teacher = study.problem.costs.of(study.problem.space.teacher)
    objective = study.problem.objective
    trials = study.trials
    found = {eps: study.incumbent(eps, trials) for eps in study.problem.eps}
    metrics = worth_showing(teacher, [teacher, *(best.costs for best in found.values() if best)])
    table = Table("eps", *metrics, "smaller", "L", box=None, header_style="bold", pad_edge=False)
    for eps, best in found.items():
        if best is None:
            table.add_row(f"{eps:g}", *("-" for _ in metrics), "-", "nothing feasible yet")
        else:
            costs = (amount(best.costs[name]) for name in metrics)
            ratio = teacher[objective] / max(best.costs[objective], 1e-12)
            table.add_row(f"{eps:g}", *costs, f"{ratio:.2f}x", f"{best.divergence:.3g} ± {best.stderr:.1g}")
    return table
