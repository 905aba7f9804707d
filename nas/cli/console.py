"""Where the command line writes: results on stdout, all else on stderr; progress bars and the live view of a search."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from nas.amounts import amount

if TYPE_CHECKING:
    from nas.study import Study

T = TypeVar("T")

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def complain(line: str) -> None:
    """One line about what is wrong."""
    err.print(Text.assemble(("error: ", "bold red"), line))


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
    sys.stdout.flush()


class Terminal:
    """Progress for people: notes and bars on stderr; plain lines where stderr is not a terminal; `quiet` silences all."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def note(self, text: str) -> None:
        """One line worth keeping."""
        if not self._quiet:
            err.print(text, markup=False)

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
    """The live view of a search: the incumbent of each eps, trials, ETA. Plain lines at each improvement when not on a terminal."""

    def __init__(self, n_trials: int, quiet: bool = False) -> None:
        self._n_trials = n_trials
        self._quiet = quiet
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
        if err.is_terminal:
            self._draw(study, len(trials))
            return
        for eps in study.problem.eps:
            best = study.incumbent(eps, trials)
            if best is not None and self._best.get(eps) != best.number:
                self._best[eps] = best.number
                costs = ", ".join(f"{name} {amount(value)}" for name, value in best.costs.items())
                err.print(f"trial {len(trials)}/{self._n_trials}: eps {eps:g}: {costs}, L {best.divergence:.3g} ± {best.stderr:.1g}", markup=False)

    def _draw(self, study: "Study", n_trials: int) -> None:
        """The live view; it starts with the first trial, since calibration before it has bars of its own."""
        if not self._bars.tasks:
            self._bars.add_task("trials", total=self._n_trials, completed=n_trials)
            self._live.start()
        self._bars.update(self._bars.tasks[0].id, completed=n_trials)
        self._live.update(Group(incumbents(study), self._bars))


def incumbents(study: "Study") -> Table:
    """One row an eps: the cheapest feasible trial so far."""
    teacher = study.problem.costs.of(study.problem.space.teacher)
    objective = study.problem.objective
    table = Table("eps", *teacher, "smaller", "L", box=None, header_style="bold", pad_edge=False)
    trials = study.trials
    for eps in study.problem.eps:
        best = study.incumbent(eps, trials)
        if best is None:
            table.add_row(f"{eps:g}", *("-" for _ in teacher), "-", "nothing feasible yet")
        else:
            costs = (amount(best.costs[name]) for name in teacher)
            ratio = teacher[objective] / max(best.costs[objective], 1e-12)
            table.add_row(f"{eps:g}", *costs, f"{ratio:.2f}x", f"{best.divergence:.3g} ± {best.stderr:.1g}")
    return table
