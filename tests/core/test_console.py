import io
from pathlib import Path

import pytest
from rich.console import Console

import nas
from nas.blocks.calibration import CalibrationSettings
from nas.cli import console
from nas.cli.results import stages_table
from nas.data import Splits
from nas.graph import StageGraph
from nas.space import Stage
from nas.spaces import NetworkSpace


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cold_search_shows_bars_then_incumbents(
    graph: StageGraph, stages: tuple[Stage, ...], splits: Splits, home: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=terminal, width=120))
    space = NetworkSpace("toy", graph, stages, splits, calibration=CalibrationSettings(max_steps=20, check_every=20), home=home)
    with console.SearchView(6) as view:
        nas.search(space, 10.0, workdir=None, trials=6, optimizer="random", progress=console.Terminal(), on_trial=view.update)
    text = written.getvalue()
    assert text.index("teacher features") < text.index("calibrating blocks") < text.index("macs")
    assert ("smaller" in text) == terminal
    assert ("trial 1/6: eps 10: params" in text) == (not terminal)


def test_quiet_writes_nothing(graph: StageGraph, stages: tuple[Stage, ...], splits: Splits, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=True))
    space = NetworkSpace("toy", graph, stages[:1], splits, calibration=CalibrationSettings(max_steps=20, check_every=20), home=home)
    with console.SearchView(2, quiet=True) as view:
        nas.search(space, 10.0, workdir=None, trials=2, optimizer="random", progress=console.Terminal(quiet=True), on_trial=view.update)
    assert written.getvalue() == ""


@pytest.mark.parametrize("to", [console.out, console.err])
@pytest.mark.parametrize("name", ["conv[k=3]", "half[/]", "a:b:c"])
def test_names_are_shown_as_they_are_whatever_they_hold(name: str, to: Console) -> None:
    costs = {"params": 1, "calibration_error": None}
    table = {"stages": [{"name": f"blocks.{name}", "choices": [{"name": "teacher", **costs}, {"name": name, **costs}]}]}
    with to.capture() as captured:
        to.print(stages_table({"eps": 0.1, "candidate": {f"blocks.{name}": name}}, table, "params"))
        to.print(f"replaced: {name}")
    assert captured.get().count(name) == 3
