"""Table files as spaces: the format, its errors, the look-up and the optimum."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import InputError
from nas.problem import Bound, Problem
from nas.progress import Quiet
from nas.protocols import Task
from nas.space import SearchSpace
from nas.spaces.table import TableEvaluator, enumerated_optimum, make_table
from nas.table import parse_table, read_table, write_table

NAN = float("nan")


def arrays(**changes: Any) -> dict[str, Any]:
    """A valid table of 2 x 3 candidates; None removes an array."""
    valid: dict[str, Any] = {
        "sizes": np.array([2, 3]),
        "divergence": np.array([0.0, 0.1, 0.3, 0.2, 0.25, -0.1]),
        "cost_params": np.array([[10, 5, NAN], [20, 12, 4]]),
        "cost_macs": np.array([[3.0, 1.0, 7.0], [3.0, 2.0, 1.0]]),
        "fixed_params": np.array(2.0),
        "calibration_error": np.array([[NAN, 0.5, NAN], [0.0, NAN, 0.2]]),
        "stderr": np.full(6, 0.01),
    }
    return {name: value for name, value in {**valid, **changes}.items() if value is not None}


def task(path: Path, **changes: Any) -> Task:
    np.savez(path / "toy.npz", **arrays(**changes))
    return make_table(str(path / "toy.npz")).prepare(Quiet())


def test_the_last_stage_runs_fastest(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert made.space.name == "toy"
    assert made.space.sizes == (2, 3)
    measured = made.evaluator.measure([(0, 1), (1, 0), (1, 2)])
    assert [m.divergence for m in measured] == [0.1, 0.2, -0.1]
    assert measured[0].stderr == 0.01


def test_costs_and_calibration_errors_are_taken_over(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert made.costs.of((1, 2)) == {"params": 11.0, "macs": 2.0}
    np.testing.assert_array_equal(made.calibration_errors, np.array([[0, 0.5, NAN], [0, NAN, 0.2]]))


def test_only_sizes_divergence_and_one_cost_are_needed(tmp_path: Path) -> None:
    made = task(tmp_path, cost_params=None, fixed_params=None, calibration_error=None, stderr=None)
    assert made.costs.metrics == ["macs"]
    assert made.calibration_errors is None
    assert made.evaluator.measure([(0, 1)])[0].stderr == 0.0


def test_names_are_read_where_they_are_and_padding_may_hold_any(tmp_path: Path) -> None:
    both = {"stage_names": np.array(["low", "high"]), "choice_names": np.array([["teacher", "x", "x"], ["teacher", "x", "y"]])}
    assert task(tmp_path, **both).space.decode((1, 2)) == {"low": "x", "high": "y"}
    assert task(tmp_path, stage_names=both["stage_names"]).space.decode((1, 2)) == {"low": "c1", "high": "c2"}
    assert task(tmp_path, choice_names=both["choice_names"]).space.decode((1, 2)) == {"s0": "x", "s1": "y"}
    assert task(tmp_path).space == SearchSpace.of_sizes("toy", (2, 3))


def test_unknown_arrays_are_ignored(tmp_path: Path) -> None:
    assert task(tmp_path, notes=np.array(["anything"]), seeds=np.zeros((7, 7))).space.n_candidates == 6


def test_an_infinite_divergence_is_a_failed_measurement(tmp_path: Path) -> None:
    made = task(tmp_path, divergence=np.array([0.0, np.inf, -np.inf, 0.2, 0.25, -0.1]))
    for measured in made.evaluator.measure([(0, 1), (0, 2)]):
        assert measured.divergence is None
        assert "inf" in measured.reason


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sizes": None}, "'sizes' is missing"),
        ({"sizes": np.array([2.0, 3.0])}, "one integer a stage"),
        ({"sizes": np.array([[2, 3]])}, "one integer a stage"),
        ({"sizes": np.array([], dtype=int)}, "one integer a stage"),
        ({"sizes": np.array([6, 0])}, "at least 1 everywhere, got 0 for stage 1"),
        ({"sizes": np.array([6, -1])}, "at least 1 everywhere, got -1"),
        ({"divergence": None}, "'divergence' of shape .6,. is missing"),
        ({"divergence": np.zeros(5)}, "shape .6,., got shape .5,."),
        ({"divergence": np.zeros((2, 3))}, "shape .6,., got shape .2, 3."),
        ({"divergence": np.array([0, 0, NAN, 0, 0, 0])}, "NaN at entry 2"),
        ({"divergence": np.array(["a"] * 6)}, "real numbers"),
        ({"divergence": np.zeros(6, dtype=complex)}, "real numbers"),
        ({"cost_params": None, "cost_macs": None}, "at least one 'cost_<metric>'"),
        ({"cost_params": np.ones((2, 2))}, "'cost_params' must hold real numbers of shape"),
        ({"cost_params": np.array([[10, -5, NAN], [20, 12, 4]])}, "'cost_params' must be finite and not negative"),
        ({"cost_params": np.array([[10, NAN, NAN], [20, 12, 4]])}, "'cost_params' must be finite and not negative"),
        ({"cost_params": np.array([[10, np.inf, NAN], [20, 12, 4]])}, "'cost_params' must be finite and not negative"),
        ({"fixed_params": np.array(-1.0)}, "'fixed_params' must be finite"),
        ({"fixed_params": np.array(NAN)}, "'fixed_params' must be finite"),
        ({"fixed_params": np.array([1.0, 2.0])}, "'fixed_params' must hold"),
        ({"calibration_error": np.array([[0, -1, NAN], [0, 1, 1]])}, "'calibration_error' must be finite and not negative"),
        ({"calibration_error": np.zeros((3, 2))}, "'calibration_error' must hold"),
        ({"stderr": np.full(6, NAN)}, "'stderr' must be finite"),
        ({"stderr": np.full(5, 0.1)}, "'stderr' must hold"),
        ({"sizes": np.array([6, 0])}, "for stage 1 .counted from 0."),
        ({"cost_params": np.array([[10, -5, NAN], [20, 12, 4]])}, "got -5 for stage 0, choice 1 .counted from 0."),
        ({"calibration_error": np.array([[0, 1, NAN], [0, 1, -3]])}, "got -3 for stage 1, choice 2 .counted from 0."),
        ({"stderr": np.array([0, 0, 0, -1.0, 0, 0])}, "got -1 for entry 3 .counted from 0."),
        ({"cost_macs": None, "fixed_macs": np.array(1.0)}, "'fixed_macs' has no 'cost_macs' beside it"),
        ({"cost_": np.ones((2, 3))}, "'cost_' names no metric"),
        ({"expected_loss": np.zeros((3, 2))}, "'expected_loss' must hold"),
        ({"expected_loss": np.array([[0, -1, NAN], [0, 1, 1]])}, "'expected_loss' must be finite and not negative, or NaN where it is unknown"),
        ({"stage_names": np.array(["a"])}, r"'stage_names' must hold texts of shape \(2,\), got shape \(1,\)"),
        ({"stage_names": np.array([1, 2])}, r"'stage_names' must hold texts of shape \(2,\), got shape \(2,\) of int64"),
        ({"stage_names": np.array(["a", ""])}, "'stage_names' must be printable and not empty, .* got '' at 1"),
        ({"stage_names": np.array(["a", "a"])}, "'stage_names' must differ, got 'a' twice"),
        ({"choice_names": np.array([["teacher", "x"]] * 2)}, r"'choice_names' must hold texts of shape \(2, 3\), got shape \(2, 2\)"),
        ({"choice_names": np.array([["teacher", "", ""], ["teacher", "x", "y"]])}, "'choice_names' of stage 's0' .* got '' at 1"),
        ({"choice_names": np.array([["teacher", "x", ""], ["teacher", "x", "x"]])}, "'choice_names' of stage 's1' must differ, got 'x' twice"),
        ({"choice_names": np.array([["teacher", "x", ""], ["y", "x", "z"]])}, "'choice_names' of stage 's1' must begin with 'teacher', got 'y'"),
        ({"stage_names": np.array(["a", "b\x1b[2J"])}, "must be printable"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        task(tmp_path, **changes)
    assert "toy.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_may_hold_anything(tmp_path: Path) -> None:
    made = task(tmp_path, cost_params=np.array([[10, 5, -3], [20, 12, 4]]), calibration_error=np.array([[9, 0.5, -7], [9, 0.1, 0.2]]))
    assert np.isnan(made.costs.by_choice["params"][0, 2])
    assert made.costs.reach("params") == (11.0, 32.0)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.npz"):
        make_table(str(tmp_path / "bad.npz"))


def test_a_single_array_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"must be an \.npz file"):
        make_table(str(tmp_path / "one.npy"))


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table file"):
        make_table(str(tmp_path / "none.npz"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **arrays(sizes=np.array([2, 3], dtype=object)))
    with pytest.raises(InputError, match="plain arrays"):
        make_table(str(tmp_path / "p.npz"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    table = parse_table(arrays())
    write_table(tmp_path / "again.npz", table)
    again = read_table(tmp_path / "again.npz")
    assert again.sizes == table.sizes
    np.testing.assert_array_equal(again.divergence, table.divergence)
    np.testing.assert_array_equal(again.costs.by_choice["params"], table.costs.by_choice["params"])
    assert again.costs.fixed == {"params": 2.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npz"]


def test_expected_losses_are_read_and_written_padding_and_teacher_left_out(tmp_path: Path) -> None:
    told = np.array([[9.0, 0.5, -7.0], [9.0, NAN, 0.2]])
    made = task(tmp_path, expected_loss=told).expected_losses
    np.testing.assert_array_equal(made, [[0.0, 0.5, NAN], [0.0, NAN, 0.2]])
    table = parse_table(arrays(expected_loss=told))
    write_table(tmp_path / "again.npz", table)
    np.testing.assert_array_equal(read_table(tmp_path / "again.npz").expected_losses, made)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **arrays(fixed_params=np.array(3.0)))
    prints = [make_table(str(tmp_path / name)).fingerprint() for name in ("a.npz", "a.npz", "b.npz")]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_what_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = parse_table({"sizes": np.array([3, 1, 4]), "divergence": rng.normal(size=12), "cost_params": rng.random((3, 4)), "cost_macs": rng.random((3, 4))})
    made = TableEvaluator(table)
    bounds = (Bound("macs", 1.8),)

    problem = Problem(SearchSpace.of_sizes("t", table.sizes), table.costs, (0.3,), "params", bounds)
    feasible = [
        candidate
        for i, candidate in enumerate(itertools.product(range(3), range(1), range(4)))
        if table.divergence[i] <= 0.3 and problem.costs.of(candidate)["macs"] <= 1.8
    ]
    expected = min(feasible, key=lambda c: problem.costs.of(c)["params"], default=None)
    assert made.optimum(problem, 0.3) == expected
    assert enumerated_optimum(problem, table.divergence, 0.3, chunk=2) == expected
    assert made.optimum(problem, -99.0) is None
