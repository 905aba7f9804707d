"""The arena's engine: regret, quantiles, early ends, the table, and the plot."""

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nas.compare import Row, compare, quantile, render
from nas.errors import ContractError, InputError
from nas.optimizers.local import LocalSearch
from nas.optimizers.optuna_samplers import OptunaOptimizer
from nas.optimizers.random_search import RandomSearch
from nas.problem import Bound, CostTable, Problem
from nas.progress import Quiet
from nas.protocols import Task
from nas.regret_plot import check_plot, plot
from nas.space import Candidate, SearchSpace
from nas.spaces.synthetic import make_synthetic
from nas.spaces.table import TableEvaluator
from nas.table import Table
from nas.trial import Measurement, Trial

COSTS = CostTable({"params": np.array([[10.0, 6.0, 2.0], [10.0, 5.0, 1.0]])}, {"params": 5.0})
DIVERGENCE = np.array([0.0, 0.1, 0.3, 0.1, 0.3, 0.9, 0.2, 0.4, 1.0])
"""At eps 0.3 the candidates (0, 2) with 16, (1, 1) with 16, and (2, 0) with 17 params are feasible; the teacher has 25."""


def toy_task(divergence: np.ndarray = DIVERGENCE) -> Task:
    return Task(SearchSpace.of_sizes("toy", (3, 3)), COSTS, TableEvaluator(Table((3, 3), divergence, COSTS)))


class Fixed:
    """Proposes candidates in a given order, whatever it is told."""

    order: Sequence[Candidate] = ()

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        del problem, seed

    def propose(self, trials: Sequence[Trial], pending: Sequence[Candidate] = (), n: int = 1) -> list[Candidate]:
        del pending, n
        return list(self.order[len(trials) : len(trials) + 1])


def fixed(*order: Candidate) -> type[Fixed]:
    return type("InOrder", (Fixed,), {"order": order})


def test_a_forbidden_teacher_that_costs_less_than_the_optimum_is_no_optimum_found() -> None:
    costs = CostTable({"params": np.array([[10.0, 5.0, 8.0]]), "macs": np.array([[10.0, 12.0, 9.0]])})
    task = Task(SearchSpace.of_sizes("one", (3,)), costs, TableEvaluator(Table((3,), np.array([0.0, 0.1, 0.2]), costs)))
    half, most = (Bound.parse(text, costs) for text in ("params<=50%", "params<=80%"))
    with pytest.raises(InputError, match=r"its params is 10, the bound is params<=5, and the optimum within the bounds has macs 12, the teacher 10; relax"):
        compare(task, [0.3], {"random": RandomSearch}, seeds=1, trials=2, objective="macs", bounds=[half])
    assert compare(task, [0.3], {"random": RandomSearch}, seeds=1, trials=2, objective="macs", bounds=[most])[0].regrets[0, 0] == 1


def test_regret_follows_its_definition() -> None:
    factory = fixed((2, 2), (1, 0), (2, 0), (0, 2))
    row = compare(toy_task(), [0.3], {"x": factory}, seeds=1, trials=6)[0]
    # teacher 25, optimum 16: infeasible, then 21, 17, 16
    np.testing.assert_allclose(row.regrets[0], np.array([1, 1, 5 / 9, 1 / 9, 0, 0, 0]))
    assert row.evals_to_1pct.tolist() == [4]
    assert row.exact_share == 1


def test_a_run_that_stops_early_keeps_its_last_regret() -> None:
    row = compare(toy_task(), [0.3], {"x": fixed((2, 0))}, seeds=2, trials=5)[0]
    np.testing.assert_allclose(row.regrets, np.tile([1, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9], (2, 1)))
    assert row.exact_share == 0
    assert row.evals_to_1pct.tolist() == [math.inf, math.inf]


def test_where_the_teacher_is_optimal_regret_is_zero_from_the_start() -> None:
    row = compare(toy_task(), [0.05], {"x": RandomSearch}, seeds=2, trials=3)[0]
    assert row.regrets.max() == 0
    assert row.to_json()["evals_to_1pct"] == {"median": 0.0, "q25": 0.0, "q75": 0.0, "share": 1.0}


def test_a_failed_measurement_is_charged_and_never_wins() -> None:
    broken = DIVERGENCE.copy()
    broken[[2, 4]] = np.inf  # (0, 2) and (1, 1), the cheapest
    row = compare(toy_task(broken), [0.3], {"x": fixed((0, 2), (2, 0))}, seeds=1, trials=3)[0]
    np.testing.assert_allclose(row.regrets[0], np.array([1, 1, 0, 0]))


def test_negative_divergences_are_feasible_at_eps_zero() -> None:
    better = DIVERGENCE.copy()
    better[8] = -0.1
    row = compare(toy_task(better), [0.0], {"x": fixed((2, 2))}, seeds=1, trials=2)[0]
    np.testing.assert_allclose(row.regrets[0], np.array([1, 0, 0]))


def test_json_has_exactly_the_documented_keys() -> None:
    rows = compare(toy_task(), [0.3, 0.1], {"random": RandomSearch, "local": LocalSearch}, seeds=3, trials=10)
    found = json.loads(json.dumps([row.to_json() for row in rows]))
    assert [(row["eps"], row["optimizer"]) for row in found] == [(0.3, "random"), (0.3, "local"), (0.1, "random"), (0.1, "local")]
    for row in found:
        assert set(row) == {"optimizer", "eps", "evals_to_1pct", "regret", "exact_share", "propose_cpu_s"}
        assert set(row["evals_to_1pct"]) == {"median", "q25", "q75", "share"}
        assert set(row["regret"]) == {"10", "20", "50"}
        assert row["regret"]["10"] == 0  # 9 candidates
        assert row["regret"]["20"] is None  # only 10 measurements were allowed
        assert row["propose_cpu_s"] >= 0


@pytest.mark.parametrize(
    ("values", "median"),
    [([1, 2, 3], 2), ([1, 2, math.inf, math.inf], 2), ([1, math.inf, math.inf], None), ([math.inf], None)],
)
def test_a_median_is_null_when_under_half_get_there(values: list[float], median: float | None) -> None:
    assert quantile(np.array(values, dtype=float), 0.5) == median


def test_seeds_are_independent_and_repeatable() -> None:
    task = make_synthetic(0, stages=5).prepare(Quiet())
    first, second = (compare(task, [0.003], {"random": RandomSearch}, seeds=4, trials=30)[0].regrets for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len({tuple(run) for run in first.tolist()}) > 1


def test_processes_give_the_same_rows() -> None:
    task = make_synthetic(0, stages=4).prepare(Quiet())
    alone, several = (compare(task, [0.003], {"random": RandomSearch, "local": LocalSearch}, seeds=2, trials=8, jobs=jobs) for jobs in (1, 2))
    for one, other in zip(alone, several, strict=True):
        np.testing.assert_array_equal(one.regrets, other.regrets)


def test_bounds_hold_for_the_optimum_and_for_every_proposal() -> None:
    costs = CostTable({**COSTS.by_choice, "macs": np.array([[1.0, 1.0, 9.0], [1.0, 1.0, 9.0]])}, COSTS.fixed)
    task = Task(SearchSpace.of_sizes("toy", (3, 3)), costs, TableEvaluator(Table((3, 3), DIVERGENCE, costs)))
    row = compare(task, [0.3], {"x": fixed((1, 1))}, seeds=1, trials=1, bounds=(Bound("macs", 2.0),))[0]
    np.testing.assert_allclose(row.regrets[0], np.array([1, 0]))
    with pytest.raises(ContractError, match=r"proposed \(0, 2\): its macs is 10, the bound is macs<=2; problem\.allowed"):
        compare(task, [0.3], {"x": fixed((0, 2), (1, 1))}, seeds=1, trials=2, bounds=(Bound("macs", 2.0),))


@pytest.mark.parametrize(("order", "complaint"), [([(1, 0), (1, 0)], "again"), ([(3, 0)], "choices 0..2, got 3")])
def test_an_optimizer_that_breaks_its_contract_is_stopped(order: list[Candidate], complaint: str) -> None:
    with pytest.raises((ContractError, InputError), match=complaint):
        compare(toy_task(), [0.3], {"x": fixed(*order)}, seeds=1, trials=3)


class Measures:
    """An evaluator that does not know its optimum."""

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        del eps
        return [Measurement(0.0) for _ in candidates]


def test_a_task_whose_optimum_is_unknown_is_refused() -> None:
    task = Task(SearchSpace.of_sizes("deep", (3, 3)), COSTS, Measures())
    with pytest.raises(InputError, match=r"optimum of 'deep' is not known.*nas tabulate"):
        compare(task, [0.3], {"random": RandomSearch})


def test_bounds_that_leave_nothing_feasible_are_refused() -> None:
    with pytest.raises(InputError, match="no candidate of 'toy' satisfies the bounds"):
        compare(toy_task(), [0.05], {"random": RandomSearch}, bounds=(Bound("params", 10.0),))


@pytest.mark.parametrize("counts", [(0, 5, 1), (1, 0, 1), (1, 5, 0)])
def test_counts_must_be_positive(counts: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        compare(toy_task(), [0.3], {"random": RandomSearch}, counts[0], counts[1], jobs=counts[2])


def test_duplicates_are_counted_and_shown() -> None:
    rows = compare(toy_task(), [0.05, 0.3], {"optuna:random": OptunaOptimizer}, seeds=2, trials=8)
    assert rows[1].duplicates > 0
    console = Console(record=True, width=200)
    console.print(render(rows))
    text = console.export_text()
    assert "repeats" in text
    assert "optuna:random" in text


def test_the_plot_is_well_formed_and_has_a_line_for_each_row(tmp_path: Path) -> None:
    rows = [Row(name, eps, np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.2]]), 0.1) for eps in (0.1, 0.2) for name in ("a<b", "c")]
    plot(rows, tmp_path / "regret.svg")
    root = ElementTree.fromstring((tmp_path / "regret.svg").read_text(encoding="utf-8"))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert tags.count("polyline") == 4
    assert tags.count("polygon") == 4


def test_no_label_of_the_plot_is_cut_off_at_the_left(tmp_path: Path) -> None:
    plot([Row("a", 0.1, np.array([[1.0, 0.0]]), 0.1)], tmp_path / "regret.svg")
    root = ElementTree.fromstring((tmp_path / "regret.svg").read_text(encoding="utf-8"))
    labels = [element for element in root.iter() if element.get("text-anchor") == "end"]
    assert len(labels) == 4
    for label in labels:  # a digit is 7 pixels wide, '<' and '=' are 9
        assert float(label.get("x", 0)) >= 7 * len(label.text or "") + 2


def test_a_plot_under_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.svg"):
        plot([Row("a", 0.1, np.ones((1, 2)), 0.1)], tmp_path / "regret.png")


@pytest.mark.parametrize(
    ("name", "reason"), [("plot.png", "must end in .svg"), ("absent/plot.svg", "its folder does not exist"), ("folder.svg", "it is a folder")]
)
def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(InputError, match=reason):
        check_plot(tmp_path / name)
