"""Whatever is handed over from Python, a wrong value is one line of ours that names the argument."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nas
from nas.arguments import options
from nas.batches import collect, split
from nas.blocks.calibration import CalibrationSettings
from nas.blocks.reductions.low_rank import LowRank
from nas.compare import compare
from nas.crew import Crew
from nas.errors import InputError, NasError
from nas.evaluators.divergence import Settings
from nas.findings import read_run
from nas.job import SearchOptions
from nas.names import resolve_space
from nas.optimizers.random_search import RandomSearch
from nas.plan import plan
from nas.problem import Bound, CostTable, Problem
from nas.progress import Quiet
from nas.report import write_report
from nas.space import SearchSpace
from nas.spaces.model import model_space
from nas.spaces.synthetic import make_synthetic
from nas.tabulate import tabulate

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


@pytest.mark.parametrize("value", [math.nan, math.inf, [1], object()])
def test_an_option_of_a_space_is_what_its_configuration_can_hold(value: object) -> None:
    with pytest.raises(InputError, match=r"space_options: 'x' must be a text or a finite number, which run\.toml can hold, got .*; or give workdir=None"):
        options("space_options", {"x": value}, written=True)
    assert options("space_options", {"x": value}, written=False) == {"x": value}


def test_the_arguments_of_the_table_are_those_of_a_search() -> None:
    import inspect
    from dataclasses import fields

    from nas.job import SearchOptions

    own = set(inspect.signature(nas.search).parameters) - {"options"}
    assert set(TAKEN) == own | {field.name for field in fields(SearchOptions)}


def model_of_two_layers(**changed: Any) -> object:
    data = split(collect([torch.randn(8, 4)] * 4))
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    given = {"name": "m", "model": layers, "stages": {"a": "0", "b": "2"}, "data": data, "recipes": [LowRank(0.5)]}
    return model_space(**{**given, "reuse": False, **changed})


SPACE = SearchSpace.of_sizes("demo", [2, 3])
COSTS = CostTable({"params": np.ones((2, 3))})
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "compare": (
        lambda **given: compare(**{"task": make_synthetic(3).prepare(Quiet()), **given}),
        {"task": None, "eps": [0.01], "optimizers": {"r": RandomSearch}, "seeds": 1, "trials": 1, "jobs": 1, "objective": "params", "bounds": ()},
    ),
    "tabulate": (lambda path: tabulate(make_synthetic(3).prepare(Quiet()), path, Quiet()), {"path": None}),
    "plan": (plan, {"source": make_synthetic(3), "asked": SearchOptions((0.1,)), "workers": 1}),
    "read_run": (read_run, {"path": "nowhere"}),
    "write_report": (write_report, {"run": "nowhere", "to": "x.html"}),
    "resolve_space": (resolve_space, {"text": "synthetic:3"}),
    "collect": (collect, {"batches": [torch.zeros(2, 3)], "inputs": ["x"], "target": None, "limit": None}),
    "split": (split, {"samples": collect([torch.zeros(8, 3)]), "fit": 0.5, "measure": 0.25, "seed": 0}),
    "model_space": (
        model_of_two_layers,
        dict.fromkeys(("name", "model", "stages", "data", "recipes", "divergence", "constants", "rules", "costs", "calibration", "evaluation", "home")),
    ),
    "make_synthetic": (
        lambda **given: make_synthetic(**{**given, "choices": given.get("choices", 3)}),
        {"seed": 0, "stages": 2, "choices": 2, "compounding": 0.1, "interaction": 0.1, "interaction_spread": 0.1, "noise": 0.1, "tails": 3, "offset": 0.0},
    ),
    "of_sizes": (lambda sizes: SearchSpace.of_sizes("demo", sizes), {"sizes": [2, 3]}),
    "check": (SPACE.check, {"candidate": (0, 0)}),
    "encode": (SPACE.encode, {"names": {}}),
    "parse": (SPACE.parse, {"text": "teacher"}),
    "problem": (Problem, {"space": SPACE, "costs": COSTS, "eps": (0.1,), "objective": "params"}),
    "bound": (Bound.parse, {"text": "params<=50%", "costs": COSTS}),
    "calibration": (CalibrationSettings, dict.fromkeys(("max_steps", "batch_size", "lr", "check_every", "patience", "tolerance", "heldout", "seed"), 1)),
    "evaluation": (Settings, dict.fromkeys(("chunk", "min_chunks", "reuse_mb", "resident_mb"), 1)),
    "low_rank": (LowRank, {"fraction": 0.5}),
    "crew": (Crew, {"workers": 1, "executor": "local", "address": None, "timeout_s": 1.0, "threads": 1}),
}
"""What docs and examples call from Python, with sound arguments."""


@pytest.mark.parametrize("name", CALLS)
def test_no_wrong_argument_of_a_documented_function_ends_in_an_error_of_another_kind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, sound = CALLS[name]
    refused: dict[str, list[str]] = {argument: [] for argument in sound}
    for argument in sound:
        for value in NONSENSE:
            given = {argument: value} if name in ("model_space", "make_synthetic", "calibration", "evaluation") else {**sound, argument: value}
            if name == "compare" and argument != "task":
                given.pop("task")
            try:
                call(**given)
            except NasError as error:
                refused[argument].append(str(error))
    assert min(map(len, refused.values())) > 5
    assert all(len(line) < 300 for lines in refused.values() for line in lines)


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


@pytest.mark.parametrize("name", ["..", "/tmp/x", "a/../b", ".", "a/b"])
def test_a_name_that_leads_out_of_the_workdir_is_refused(name: str, tmp_path: Path) -> None:
    slash = "; it may have no '/': the folder that holds it is the workdir" if "/" in name else ""
    with pytest.raises(InputError, match=f"name must be the name of a folder such as 'first', got '{name}'{slash}$"):
        nas.search(**SOUND, name=name, workdir=tmp_path)
