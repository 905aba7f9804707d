"""What follows a search: loggers, Optuna's dashboard, tables, notebooks, the shown configuration."""

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

import nas
from nas.dashboard import mirror
from nas.errors import InputError
from nas.findings import read_run
from nas.job import SearchResult
from nas.loggers import LOGGERS, ScalarLogger
from nas.study import Study
from tests.core.test_cli import nas as command


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    workdir = tmp_path_factory.mktemp("runs")
    return nas.search("synthetic:3", (0.005, 0.02), workdir=workdir, name="demo", trials=8, optimizer="random", where=("macs<=90%",))


class Listed:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int]] = []
        self.closed = False

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.rows.append((dict(scalars), step))

    def close(self) -> None:
        self.closed = True


def test_a_logger_gets_calibration_errors_and_every_trial_once() -> None:
    sink = Listed()
    found = nas.search("synthetic:3", 0.02, workdir=None, trials=4, optimizer="random", callbacks=[ScalarLogger(sink)])
    assert sink.closed
    assert sum("calibration_error/s0" in row for row, _ in sink.rows) == 3
    logged = [(row["divergence/measured"], step) for row, step in sink.rows if "cost/params" in row]
    assert logged == [(trial.divergence, trial.number) for trial in found.study.trials]


def test_calibration_is_logged_by_step_and_drawn_in_the_report(home: Path, tmp_path: Path) -> None:
    sink = Listed()
    toy = f"{Path(__file__).parent / 'toy_space.py'}:make_space"
    found = nas.search(toy, 0.3, workdir=tmp_path, name="run", trials=4, callbacks=[ScalarLogger(sink)])
    curves = found.study.record.fact("curves")
    logged = [(name, step) for row, step in sink.rows for name in row if name.startswith("calibration/")]
    assert logged == [(f"calibration/{name}", step) for name, curve in curves.items() for step, _ in curve]
    assert len(curves) == len(found.study.record.fact("blocks")) > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Calibration of the blocks" in page
    assert all(f'data-tip="{name}&#10;' in page for name in curves)


def test_a_logger_is_closed_when_the_search_fails() -> None:
    sink = Listed()

    def fail(study: Study) -> None:
        if study.trials:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nas.search("synthetic:3", 0.02, workdir=None, trials=4, optimizer="random", on_trial=fail, callbacks=[ScalarLogger(sink)])
    assert sink.closed


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    nas.search("synthetic:3", 0.02, workdir=tmp_path, name="run", trials=2, optimizer="random", log=["tensorboard"])
    assert list((tmp_path / "run" / "logs").glob("events*"))


def test_other_loggers_call_their_packages_or_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listed()
    run = SimpleNamespace(log=lambda row: sink.log(row, int(row["step"])), finish=sink.close)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    nas.search("synthetic:3", 0.02, workdir=tmp_path, name="run", trials=2, optimizer="random", log=["wandb"])
    assert sink.closed
    assert sink.rows[-1][1] == 1
    sink.closed = False
    nas.search("synthetic:3", 0.02, workdir=tmp_path, name="run", trials=3, optimizer="random", log=["wandb"])  # the trials before are logged again
    assert [step for _, step in sink.rows[-3:]] == [0, 1, 2]
    logged: list[tuple[list[str], int]] = []

    def log(row: Mapping[str, float], step: int) -> None:
        logged.append((list(row), step))

    mlflow = SimpleNamespace(start_run=lambda **_: None, log_metrics=log, end_run=lambda: log({}, -1))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    nas.search("synthetic:3", 0.02, workdir=tmp_path, name="other", trials=2, optimizer="random", log=["mlflow"])
    assert logged[-1] == ([], -1)
    assert not any(" " in name for names, _ in logged for name in names)

    def refuse(**_: object) -> None:
        raise RuntimeError("no server there")

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(start_run=refuse))
    with pytest.raises(InputError, match="logging to mlflow could not start: no server there"):
        nas.search("synthetic:3", 0.02, workdir=tmp_path, name="third", trials=1, optimizer="random", log=["mlflow"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="pip install mlflow"):
        LOGGERS.get("mlflow")(tmp_path)


def test_optuna_sees_the_same_trials_as_feasible(result: SearchResult) -> None:
    assert result.run is not None
    findings = read_run(result.run)
    storage = optuna.storages.InMemoryStorage()
    for _ in range(2):  # the second time nothing is added
        studies = mirror(findings, storage)
    for study, eps in zip(studies, (0.005, 0.02), strict=True):
        assert len(study.trials) == len(findings.trials)
        for ours, theirs in zip(findings.trials, study.trials, strict=True):
            assert findings.problem is not None
            feasible = ours.divergence is not None and ours.divergence <= eps and bool(findings.problem.allowed([ours.candidate])[0])
            assert all(value <= 0 for value in theirs.constraints.values()) == feasible
            assert all(value <= 0 for value in theirs.system_attrs["constraints"]) == feasible  # what optuna-dashboard reads
            assert theirs.value == ours.costs["params"]


def test_eps_that_differ_in_late_digits_and_bounds_on_one_cost_are_kept_apart(tmp_path: Path) -> None:
    sink, eps = Listed(), (2.5, 2.500000001)
    nas.search("synthetic:3", eps, workdir=tmp_path, name="run", trials=3, optimizer="random", where=("macs<=60%", "macs<=90%"), callbacks=[ScalarLogger(sink)])
    assert {f"incumbent_params/eps {value}" for value in eps} <= {name for row, _ in sink.rows for name in row}
    findings = read_run(tmp_path / "run")
    studies = mirror(findings, optuna.storages.InMemoryStorage())
    assert [study.study_name for study in studies] == [f"{findings.space} eps {value}" for value in eps]
    problem, trial = findings.problem, findings.trials[0]
    assert problem is not None
    assert studies[1].trials[0].constraints["macs"] == trial.costs["macs"] - 0.6 * problem.costs.of(problem.space.teacher)["macs"]


def test_optuna_dashboard_serves_the_constraints(result: SearchResult) -> None:
    serializer = pytest.importorskip("optuna_dashboard._serializer")
    assert result.run is not None
    study = mirror(read_run(result.run), optuna.storages.InMemoryStorage())[0]
    shown = serializer.serialize_frozen_trial(study._study_id, study.trials[0], {})
    assert len(shown["constraints"]) == 2


def test_trials_become_a_table(result: SearchResult) -> None:
    pytest.importorskip("pandas")
    frame = result.trials_frame()
    assert list(frame["divergence"]) == [t.divergence for t in result.study.trials]
    assert set(frame["stage.s0"]) <= {"teacher", "c1", "c2", "c3"}


def test_a_notebook_shows_winners_and_every_trial(result: SearchResult) -> None:
    text = result._repr_html_()
    assert text.count('class="mark trial') == 8
    assert "eps 0.02" in text
    assert "eps 0.005" in str(result)


def test_config_show_prints_what_config_takes(tmp_path: Path) -> None:
    file = tmp_path / "nas.toml"
    file.write_text("[search]\ntrials = 7\neps = [0.5]\nkeep-dominated = true\n")
    shown = command("config", "show", str(file)).stdout
    values = tomllib.loads(shown)["search"]
    wanted = {"space": "tocsr_unet", "eps": [0.5], "optimizer": "eps_gp", "trials": 7, "seed": 0, "keep-dominated": True, "workdir": "runs"}
    assert wanted == {name: values[name] for name in wanted}
    file.write_text(shown)
    assert command("config", "show", str(file)).stdout == shown
    assert command("config", "show", "--verb", "serch").returncode == 2
    assert "did you mean 'search'" in command("config", "show", "--verb", "serch").stderr


def test_config_show_of_a_run_is_what_it_was_made_with(result: SearchResult) -> None:
    assert tomllib.loads(command("config", "show", str(result.run)).stdout)["search"]["where"] == ["macs<=90%"]


def test_the_dashboard_of_nothing_is_refused(tmp_path: Path) -> None:
    assert command("dashboard", str(tmp_path)).returncode == 2
