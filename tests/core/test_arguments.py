"""Whatever is handed over from Python, a wrong value is one line of ours that names the argument."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas
from nas.errors import InputError, NasError

SOUND: dict[str, Any] = {"space": "synthetic:3", "eps": 0.01, "trials": 1, "optimizer": "random"}
NONSENSE = (None, "", "\0", b"x", True, -1, 2.5, math.nan, math.inf, 10**400, 3 + 1j, [None], {"a": 1}, ("a", 1), {1}, object(), int)

TAKEN: dict[str, tuple[Any, ...]] = {
    "space": (), "eps": (2.5,), "space_options": (None,), "workdir": (None, ""), "name": (None,), "new": (True,), "workers": (), "progress": (None,),
    "on_trial": (None, int), "callbacks": ("",), "log": (), "optimizer": (), "trials": (), "seed": (), "minimize": (None,), "where": (), "delta": (None,),
    "keep_dominated": (True,),
}  # fmt: skip
"""Argument of `nas.search` -> what of the nonsense is none there."""

NAMED_OTHERWISE = {"space": "space", "space_options": "option", "where": "bound", "log": "log", "minimize": "metric"}


@pytest.mark.parametrize("argument", TAKEN)
def test_a_search_refuses_every_wrong_value_of_an_argument_in_one_line(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in NONSENSE:
        if any(value is taken for taken in TAKEN[argument]):
            continue
        with pytest.raises(NasError) as caught:
            nas.search(**{**SOUND, argument: value})
        assert argument in str(caught.value) or NAMED_OTHERWISE[argument] in str(caught.value), value
        assert len(str(caught.value)) < 300
    assert list(tmp_path.iterdir()) == []


def test_the_arguments_of_the_table_are_those_of_a_search() -> None:
    import inspect
    from dataclasses import fields

    from nas.job import SearchOptions

    own = set(inspect.signature(nas.search).parameters) - {"options"}
    assert set(TAKEN) == own | {field.name for field in fields(SearchOptions)}


def test_a_wrong_optimizer_is_found_out_before_anything_is_calibrated(home: Path, tmp_path: Path) -> None:
    from tests.core.test_executor import TOY

    with pytest.raises(InputError, match="did you mean 'eps_gp'"):
        nas.search(TOY, 0.1, optimizer="eps_gb", workdir=tmp_path)
    with pytest.raises(InputError, match=r"optimizer must be a name .*OPTIMIZERS.add\('mine', MyOptimizer\)"):
        nas.search(TOY, 0.1, optimizer=int)
    assert not home.exists()
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_and_paths_are_as_good_as_pythons(tmp_path: Path) -> None:
    result = nas.search("synthetic:3", np.float32(0.25), trials=np.int64(1), seed=np.int32(2), optimizer="random", workdir=tmp_path)
    again = nas.search("synthetic:3", 0.25, trials=1, seed=2, optimizer="random", workdir=str(tmp_path))
    assert result.run == again.run


@pytest.mark.parametrize("name", ["..", "/tmp/x", "a/../b", "."])
def test_a_name_that_leads_out_of_the_workdir_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name must be the name of a folder"):
        nas.search(**SOUND, name=name, workdir=tmp_path)
