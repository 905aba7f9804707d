"""What costs and names say of blocks before any trial."""

import numpy as np

from nas.optimizers.hints import LEAST_SAVING, Hints
from nas.problem import CostTable, Problem
from nas.space import SearchSpace

SPACE = SearchSpace.of_sizes("toy", (3, 2))
PARAMS = np.array([[100.0, 50.0, 0.0], [10.0, 10.0, np.nan]])


def hints(**more: np.ndarray) -> Hints:
    return Hints.of(Problem(SPACE, CostTable({"params": PARAMS, **more}, {}), (0.01,)))


def test_blocks_of_one_name_are_of_one_kind() -> None:
    assert hints().kinds.tolist() == [[0, 1, 2], [0, 1, 0]]


def test_size_and_saving_are_traits_of_present_surrogates_alone() -> None:
    size, saving = hints().traits
    assert (size[:, 0] == 0).all()
    assert (saving[:, 0] == 0).all()
    assert size[1, 2] == saving[1, 2] == 0
    assert size[0, 1] == size[0, 2]
    assert np.isclose(size[0, 1] - size[1, 1], np.log(10))
    assert np.isclose(saving[0, 2] - saving[1, 1], -np.log(LEAST_SAVING))


def test_multiply_adds_give_the_resolution() -> None:
    _, resolution, _ = hints(macs=PARAMS * np.array([[1.0], [64.0]])).traits
    assert np.isclose(resolution[1, 1] - resolution[0, 1], np.log(64))
