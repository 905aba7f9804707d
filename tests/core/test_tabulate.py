"""Tables of small spaces, written resumably."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.errors import DamagedFile, InputError, RunMismatch
from nas.problem import CostTable
from nas.progress import Quiet
from nas.protocols import Task
from nas.space import Candidate, Choice, SearchSpace, Stage
from nas.spaces.synthetic import make_synthetic
from nas.spaces.table import make_table
from nas.tabulate import tabulate
from nas.trial import Measurement


class Counting:
    """Measures the sum of the choices; fails on (1, 1); breaks down after `most` measurements."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.measured: list[Candidate] = []

    def measure(self, candidates: Sequence[Candidate], eps: Sequence[float] = ()) -> list[Measurement]:
        assert not eps  # all samples, no racing
        if len(self.measured) + len(candidates) > self.most:
            raise KeyboardInterrupt
        self.measured += candidates
        return [Measurement(None, reason="fails") if c == (1, 1) else Measurement(float(sum(c)), 0.5) for c in candidates]


def toy_task(evaluator: Counting, *, costs: float = 1.0, forbidden: Candidate | None = None) -> Task:
    space = SearchSpace("toy", SearchSpace.of_sizes("toy", (3, 4)).stages, (lambda c: c != forbidden,))
    return Task(space, CostTable({"params": costs * np.ones((2, 4))}, {"params": 3.0}), evaluator, np.full((2, 4), 0.1))


def test_a_table_holds_every_measurement(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    tabulate(toy_task(Counting(), forbidden=(2, 0)), path, Quiet(), chunk=5)
    read = make_table(str(path)).prepare(Quiet())
    assert read.evaluator.measure([(2, 3)])[0] == Measurement(5.0, 0.5, n_samples=1)
    assert read.evaluator.measure([(1, 1)])[0].divergence is None  # failed
    assert read.evaluator.measure([(2, 0)])[0].divergence is None  # forbidden
    assert read.costs.of((0, 0)) == {"params": 5.0}
    assert read.calibration_errors is not None
    assert [p.name for p in tmp_path.iterdir()] == ["toy.npz"]


def test_an_interrupted_table_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    first, second = Counting(most=8), Counting()
    with pytest.raises(KeyboardInterrupt):
        tabulate(toy_task(first), path, Quiet(), chunk=4)
    assert not path.exists()
    table = tabulate(toy_task(second), path, Quiet(), chunk=4)
    assert first.measured + second.measured == [tuple(row) for row in toy_task(first).space.enumerate().tolist()]
    assert table.divergence[-1] == 5.0


def named_task(evaluator: Counting, *, last: str = "narrow, 0.5") -> Task:
    """`toy_task` with names of its own."""
    stages = Stage("down.0", tuple(map(Choice, ("teacher", "slim", last)))), Stage("mid", tuple(map(Choice, ("teacher", "x", "y", "z"))))
    return replace(toy_task(evaluator), space=SearchSpace("toy", stages))


def test_a_table_keeps_the_names_of_stages_and_choices(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    tabulate(named_task(Counting()), path, Quiet())
    space = make_table(str(path)).space
    assert space.decode((2, 3)) == {"down.0": "narrow, 0.5", "mid": "z"}
    assert space.parse("down.0=narrow, 0.5,mid=z") == (2, 3)


def test_a_partial_table_is_gone_on_with_without_names_and_not_under_others(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    part = tmp_path / "toy.npz.part"
    with pytest.raises(KeyboardInterrupt):
        tabulate(named_task(Counting(most=8)), path, Quiet(), chunk=4)
    with pytest.raises(RunMismatch, match="another space"):
        tabulate(named_task(Counting(), last="narrow, 0.25"), path, Quiet())
    with np.load(part) as stored:
        older = {name: stored[name] for name in stored.files if not name.endswith("_names")}
    with part.open("wb") as file:
        np.savez(file, **older)
    second = Counting()
    tabulate(named_task(second), path, Quiet())
    assert len(second.measured) == 4
    assert make_table(str(path)).space.stages[0].choices[2].name == "narrow, 0.5"


def test_a_partial_table_of_another_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    with pytest.raises(KeyboardInterrupt):
        tabulate(toy_task(Counting(most=8)), path, Quiet(), chunk=4)
    with pytest.raises(RunMismatch, match=r"toy\.npz\.part.*remove it"):
        tabulate(toy_task(Counting(), costs=2.0), path, Quiet())


def test_a_partial_table_of_another_divergence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    with pytest.raises(KeyboardInterrupt):
        tabulate(toy_task(Counting(most=8)), path, Quiet(), fingerprint={"divergence": "old"}, chunk=4)
    with pytest.raises(RunMismatch, match="another divergence; remove it"):
        tabulate(toy_task(Counting()), path, Quiet(), fingerprint={"divergence": "new"})
    assert tabulate(toy_task(Counting()), path, Quiet(), fingerprint={"divergence": "old"}).divergence[-1] == 5.0
    assert "origin" not in np.load(path)


def test_an_existing_table_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "toy.npz").write_bytes(b"precious")
    with pytest.raises(InputError, match="exists"):
        tabulate(toy_task(Counting()), tmp_path / "toy.npz", Quiet())


def test_a_table_under_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy\.txt' must end in \.npz"):
        tabulate(toy_task(Counting()), tmp_path / "toy.txt", Quiet())
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_found_out_before_measuring(tmp_path: Path) -> None:
    evaluator = Counting()
    with pytest.raises(InputError, match="cannot write table"):
        tabulate(toy_task(evaluator), tmp_path / "none" / "toy.npz", Quiet())
    assert not evaluator.measured


def test_a_damaged_partial_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "toy.npz.part").write_bytes(b"torn")
    with pytest.raises(DamagedFile, match=r"toy\.npz\.part.*remove it"):
        tabulate(toy_task(Counting()), tmp_path / "toy.npz", Quiet())


def test_large_spaces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 1,000,000"):
        tabulate(make_synthetic(0, stages=10).prepare(Quiet()), tmp_path / "big.npz", Quiet())


def test_a_partial_table_of_another_form_or_size_is_refused_and_one_is_saved_after_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    part = tmp_path / "toy.npz.part"
    np.savez(tmp_path / "x.npz", divergence=np.zeros(12), stderr=np.zeros(12))
    (tmp_path / "x.npz").rename(part)
    with pytest.raises(DamagedFile, match="holds no 'sizes' of 12 numbers"):
        tabulate(toy_task(Counting()), path, Quiet())
    np.savez(tmp_path / "x.npz", divergence=np.zeros(12), stderr=np.zeros(12), sizes=np.array([4, 3]))
    (tmp_path / "x.npz").rename(part)
    with pytest.raises(RunMismatch):
        tabulate(toy_task(Counting()), path, Quiet())
    part.unlink()
    assert tabulate(toy_task(Counting()), path, Quiet(), chunk=4, save_every_s=0.0).divergence[-1] == 5.0
