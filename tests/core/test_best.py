"""One model from the winners of a grid."""

import json
from pathlib import Path

import pytest

from nas.best import Target, best
from nas.errors import InputError, NothingFeasible
from tests.core.test_cli import nas, search_table, table

__all__ = ["table"]

TEACHER = {"params": 860e6, "macs": 400e9}
TABLE_S6 = {0.001: 173e6, 0.003: 161e6, 0.005: 146e6, 0.007: 130e6}


def summary() -> dict[str, object]:
    """A grid with the sizes of Table S6 of [TOC-SR]."""
    return {
        "objective": "params",
        "teacher": TEACHER,
        "winners": [{"eps": eps, "feasible": True, "params": params, "macs": 2 * params} for eps, params in TABLE_S6.items()],
    }


@pytest.mark.parametrize(("target", "eps"), [("params=130M", 0.007), ("params=150M", 0.005), ("params=20%", 0.001), ("macs=0.32G", 0.003), ("params=1", 0.007)])
def test_the_winner_closest_to_the_target_is_taken(target: str, eps: float) -> None:
    found = best(summary(), Target.parse(target, TEACHER))
    assert found["eps"] == eps
    assert found["difference"] == found[found["target"]["metric"]] - found["target"]["value"]


def test_without_a_target_the_cheapest_and_infeasible_ones_never() -> None:
    grid = summary()
    assert best(grid, None)["eps"] == 0.007
    grid["winners"][3]["feasible"] = False  # type: ignore[index]
    assert best(grid, None)["eps"] == 0.005
    with pytest.raises(NothingFeasible):
        best({**grid, "winners": []}, None)


@pytest.mark.parametrize(
    ("stopped", "bounded", "way_out"),
    [
        ("trials", False, "give more --trials, or search with a larger --eps"),
        ("proof", True, "none is likely to be, however many --trials: search with a larger --eps or weaker --where"),
        ("exhausted", False, "keep the teacher, or search with a larger --eps"),
        ("interrupted", False, "let its search go on, or search with a larger --eps"),
    ],
)
def test_where_nothing_is_feasible_the_ways_out_are_those_that_are_left(stopped: str, bounded: bool, way_out: str) -> None:
    infeasible = {"teacher": TEACHER, "winners": [{"eps": 0.1, "feasible": False}], "n_trials": 9, "stopped": stopped}
    with pytest.raises(NothingFeasible, match=f"no feasible winner; .*{way_out}$"):
        best(infeasible, None, bounded=bounded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("130M", "must read METRIC=NUMBER"),
        ("param=130M", "did you mean 'params'"),
        ("params=1.2.3", "not a number"),
        ("params=-5", "must read"),
        ("params=0", "above 0"),
    ],
)
def test_a_target_that_cannot_be_read_says_how(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target.parse(text, TEACHER)


def test_the_command_names_the_ways_out_of_a_run_without_a_winner(table: Path) -> None:
    run = search_table(table, "--eps", "0.0001", "--where", "params<=50%")["run"]
    none = nas("best", run)
    assert none.returncode == 3
    assert none.stderr == ("error: the run has no feasible winner; none is likely to be, however many --trials: search with a larger --eps or weaker --where\n")


def test_the_command_on_a_run(table: Path) -> None:
    run = search_table(table, "--eps", "0.003", "--eps", "0.012", "--eps", "0.5")
    sizes = {winner["eps"]: winner["params"] for winner in run["winners"]}
    found = json.loads(nas("best", run["run"], "--target", f"params={sizes[0.012] + 1}", "--json").stdout)
    assert (found["eps"], found["difference"]) == (0.012, -1)
    shown = nas("best", run["run"], "--target", "params=99%")
    assert (shown.returncode, "below params=99%" in shown.stdout) == (0, True), shown
    assert nas("best", run["run"], "--target", "size=1").returncode == 2
    assert nas("best", str(table.parent)).returncode == 2
