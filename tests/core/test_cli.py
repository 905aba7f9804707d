"""The command line: its frozen options, its errors, and the main job on a table."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.main import get_command

from nas.cli.app import app, main
from nas.files import write_manifest
from nas.record import Record
from nas.run_directory import RunDirectory

OPTIONS = {
    "search": "address config data delta device eps executor json keep-dominated library log minimize name new numerics optimizer quiet"
    " seed space teacher threads timeout trials verbose where workdir workers",
    "measure": "candidate config data device json library numerics quiet space teacher threads",
    "calibrate": "address config data device executor json library max-disk quiet space teacher threads timeout workers",
    "plan": "batch config data device eps json library measure-latency minimize quiet space teacher threads trials where workers",
    "show": "json run",
    "best": "json run target",
    "cascade": "eps json new quiet run threads trials trust",
    "report": "json run to",
    "dashboard": "host port run",
    "explain": "eps json run",
    "cite": "json run",
    "doctor": "json repair run",
    "export": "candidate eps json run to trust push-to-hub public",
    "compare": "config eps jobs json minimize optimizers plot quiet seeds space trials where",
    "tabulate": "config data device json library quiet space teacher threads to",
    "optimizers": "json",
    "version": "json",
}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def nas(*arguments: str) -> Done:
    """The command as `main` runs it, in this process: what it prints and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    before, threads = sys.argv, torch.get_num_threads()
    sys.argv = ["nas", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return Done(int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = before
        torch.set_num_threads(threads)  # a command takes all cores unless it is told; the tests after it share them with others


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """4 x 4 x 4 candidates; divergence is the sum of squared choices over 1000."""
    axes = np.indices((4, 4, 4)).reshape(3, -1)
    cost = np.array([[40.0, 20.0, 10.0, 5.0], [80.0, 30.0, 20.0, 1.0], [60.0, 50.0, 20.0, 10.0]])
    path = tmp_path / "demo.npz"
    np.savez(path, sizes=np.array([4, 4, 4]), divergence=np.square(axes).sum(0) / 1000, cost_params=cost, fixed_params=np.array(7.0))
    return path


def search_table(table: Path, *more: str) -> dict[str, Any]:
    done = nas("search", "--space", f"table:{table}", "--workdir", str(table.parent / "runs"), "--json", "--quiet", *more)
    assert done.returncode in (0, 3), done.stderr  # 3: nothing feasible within few trials
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_options_of_every_verb_are_what_they_were() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for verb, wanted in OPTIONS.items():
        names = {(parameter.opts[0].removeprefix("--") if parameter.opts[0].startswith("-") else parameter.name) for parameter in verbs[verb].params}
        assert names == set(wanted.split()), verb
    assert set(verbs) == {*OPTIONS, "blocks", "cache", "config", "spaces", "tocsr"}


def test_help_and_lists_import_neither_torch_nor_numpy() -> None:
    for arguments in (["--help"], ["search", "--help"], ["spaces"], ["optimizers"], ["--version"]):
        heavy = "bool({'torch', 'numpy'} & set(sys.modules))"
        code = f"import sys\nfrom nas.cli.app import app\ntry: app({arguments!r})\nexcept SystemExit: pass\nsys.exit({heavy})"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0, arguments


def test_a_search_finds_the_optimum_of_a_table_for_each_eps(table: Path) -> None:
    result = search_table(table, "--eps", "0.003", "--eps", "0.012", "--eps", "0.5")
    divergence = np.load(table)["divergence"].reshape(4, 4, 4)
    cost = np.load(table)["cost_params"]
    totals = 7 + cost[0][:, None, None] + cost[1][None, :, None] + cost[2][None, None, :]
    for winner in result["winners"]:
        assert winner["feasible"]
        assert winner["params"] == totals[divergence <= winner["eps"]].min()
        assert winner["divergence"] <= winner["eps"]
    assert [w["eps"] for w in result["winners"]] == [0.003, 0.012, 0.5]
    assert result["teacher"] == {"params": 187}
    assert result["n_trials"] < 63


def test_the_same_command_again_prints_the_same_result_and_measures_nothing(table: Path) -> None:
    first = search_table(table, "--eps", "0.003", "--trials", "6")
    again = search_table(table, "--eps", "0.003", "--trials", "6")
    assert again["winners"] == first["winners"]
    assert again["n_trials"] == first["n_trials"]
    assert again["run"] == first["run"]


def test_more_trials_go_on_with_the_same_record(table: Path) -> None:
    few = search_table(table, "--eps", "0.003", "--trials", "3", "--optimizer", "random")
    more = search_table(table, "--eps", "0.003", "--trials", "9", "--optimizer", "random")
    shown = json.loads(nas("show", more["run"], "--json").stdout)
    whole = search_table(table, "--eps", "0.003", "--trials", "9", "--optimizer", "random", "--new")
    assert more["run"] == few["run"]
    assert shown["trials"] == json.loads(nas("show", whole["run"], "--json").stdout)["trials"]


def test_show_works_on_a_run_that_was_moved(table: Path) -> None:
    result = search_table(table, "--eps", "0.003")
    moved = table.parent / "elsewhere"
    Path(result["run"]).rename(moved)
    shown = json.loads(nas("show", str(moved), "--json").stdout)
    assert shown["winners"] == result["winners"]
    assert shown["run"] == str(moved)
    assert {"number", "candidate", "costs", "divergence", "stderr", "n_samples", "state", "reason"} == set(shown["trials"][0])
    assert "stage by stage" in nas("show", str(moved)).stdout


def test_nothing_feasible_is_exit_code_3_with_the_least_divergent_candidate(table: Path) -> None:
    done = nas("search", "--space", f"table:{table}", "--eps", "0", "--workdir", str(table.parent), "--json", "--trials", "5", "--optimizer", "random")
    assert done.returncode == 3
    winner = json.loads(done.stdout)["winners"][0]
    assert not winner["feasible"]
    assert winner["heldout_divergence"] is None
    assert winner["divergence"] > 0
    assert "nothing feasible" in done.stderr
    assert "at eps 0 only a network passes that answers exactly as its teacher does" in done.stderr


def test_a_bound_on_a_known_cost_holds_and_an_impossible_one_is_refused(table: Path) -> None:
    winner = search_table(table, "--eps", "0.5", "--where", "params<=50%", "--minimize", "params")["winners"][0]
    assert winner["params"] <= 187 / 2
    done = nas("search", "--space", f"table:{table}", "--eps", "0.5", "--where", "params<=1%", "--workdir", str(table.parent))
    assert done.returncode == 2
    assert "the least params of any candidate is 23" in done.stderr


def test_dominated_choices_are_named_and_kept_on_request(tmp_path: Path) -> None:
    errors = np.array([[0, 0.1, 0.5]] * 2)
    divergence = np.array([errors[0, i] + errors[1, j] for i in range(3) for j in range(3)]) / 100
    path = tmp_path / "dominated.npz"
    np.savez(path, sizes=np.array([3, 3]), divergence=divergence, cost_params=np.array([[10.0, 5, 6]] * 2), calibration_error=errors)
    command = ("search", "--space", f"table:{path}", "--eps", "0.0015", "--workdir", str(tmp_path))
    done = nas(*command)
    assert done.returncode == 0
    assert "left for last (dearer and worse than another block): s0: c2; s1: c2" in done.stderr
    assert "left for last" not in nas(*command, "--keep-dominated").stderr


def test_a_configuration_file_stands_under_the_command_line(table: Path) -> None:
    config = table.parent / "nas.toml"
    config.write_text('[search]\ntrials = 2\noptimizer = "random"\neps = [0.5]\n')
    assert search_table(table, "--config", str(config))["n_trials"] == 2
    assert search_table(table, "--config", str(config), "--trials", "3")["n_trials"] == 3
    config.write_text("[search]\ntrails = 2\n")
    done = nas("search", "--config", str(config), "--eps", "1")
    assert done.returncode == 2
    assert "no option 'trails'; did you mean 'trials'" in done.stderr


def test_a_second_search_on_a_run_in_use_is_refused(table: Path) -> None:
    result = search_table(table, "--eps", "0.003")
    with RunDirectory(Path(result["run"])).lock():
        done = nas("search", "--space", f"table:{table}", "--eps", "0.003", "--workdir", str(table.parent / "runs"))
    assert done.returncode == 2
    assert "is in use by pid" in done.stderr


def test_export_to_a_place_that_cannot_be_written_is_one_clear_line(table: Path) -> None:
    run = Path(search_table(table, "--eps", "0.003")["run"])
    (run / "winner").mkdir()
    write_manifest(run / "winner")
    (table.parent / "file").write_text("")
    with Record(run / "study.db") as record:
        result = record.fact("result")
        result["winners"][0]["path"] = "winner"
        record.set_fact("result", result)
    done = nas("export", str(run), "--to", str(table.parent / "file" / "x"))
    assert done.returncode == 2
    assert "cannot write to" in done.stderr
    assert nas("export", str(run), "--to", str(table.parent / "made" / "x")).returncode == 0


def test_export_runs_no_file_that_a_run_names_unless_it_is_trusted(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    run = RunDirectory(tmp_path / "run")
    run.create({"space": {"name": f"{tmp_path}/evil.py:make_space"}, "search": {"eps": [0.1]}})
    run.record()
    done = nas("export", str(run.path), "--to", str(tmp_path / "x"), "--candidate", "teacher")
    assert done.returncode == 2
    assert "give --trust to run that file" in done.stderr
    assert not canary.exists()


def test_a_damaged_winner_is_not_exported(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}})
    winner = {"eps": 0.1, "feasible": True, "candidate": {}, "divergence": 0.0, "stderr": 0.0, "n_samples": 1, "heldout_divergence": None, "path": "winner"}
    seconds = {"calibrate": 0.0, "measure": 0.0, "propose": 0.0, "total": 0.0}
    with run.record() as record:
        record.set_fact("table", {"stages": [], "fixed": {"params": 1}})
        record.set_fact(
            "result",
            {"space": "demo", "teacher": {"params": 1}, "winners": [winner], "n_trials": 0, "n_measured": 0, "seconds": seconds, "stopped": "proof", "run": ""},
        )
    (run.path / "winner").mkdir()
    (run.path / "winner/weights").write_bytes(b"0123")
    write_manifest(run.path / "winner")
    assert nas("export", str(run.path), "--to", str(tmp_path / "good")).returncode == 0
    (run.path / "winner/weights").write_bytes(b"0124")
    done = nas("export", str(run.path), "--to", str(tmp_path / "bad"))
    assert done.returncode == 2
    assert "weights is damaged" in done.stderr
    assert not (tmp_path / "bad").exists()
    (run.path / "winner/manifest.json").unlink()
    assert "no manifest.json that vouches for it; `nas doctor" in nas("export", str(run.path), "--to", str(tmp_path / "bad")).stderr
    shutil.rmtree(run.path / "winner")
    done = nas("export", str(run.path), "--to", str(tmp_path / "bad"))
    assert done.returncode == 2
    assert f"{run.path / 'winner'} is missing; this saves it again: nas search --space demo --eps 0.1" in done.stderr
    assert "winner is missing; the same `nas search` saves it again" in nas("show", str(run.path)).stdout


def test_a_hub_name_that_cannot_be_is_told_before_anything_is_exported(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}})
    run.record()
    done = nas("export", str(run.path), "--to", str(tmp_path / "model"), "--push-to-hub", "bad")
    assert (done.returncode, done.stderr) == (2, "error: cannot push to 'bad', which names no account; give USER/NAME\n")
    assert not (tmp_path / "model").exists()


def test_show_of_a_run_that_was_stopped_before_its_first_trial_says_so(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}})
    run.record()
    done = nas("show", str(run.path))
    assert done.returncode == 0
    assert "no trial yet" in done.stdout
    assert f"go on with: nas search --space demo --eps 0.1 --workdir {tmp_path} --name run" in done.stdout
    assert json.loads(nas("show", str(run.path), "--json").stdout)["trials"] == []


def test_a_run_that_was_stopped_while_its_blocks_were_calibrated_tells_how_many_trials_were_asked_last(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for trials in (8, 9):
        run.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}, "asked": {"trials": trials}})
        done = nas("show", str(run.path))
        assert f"go on with: nas search --space demo --eps 0.1 --trials {trials} --workdir {tmp_path} --name run" in done.stderr
    run.record()
    run.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}, "asked": {"trials": 70}})
    assert "--trials 9 " in nas("show", str(run.path)).stdout


def test_a_run_without_a_record_is_told_from_no_run_and_from_one_that_lost_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}})
    done = nas("show", str(run.path))
    assert done.returncode == 2
    assert "has made no trial yet (no study.db)" in done.stderr
    assert f"go on with: nas search --space demo --eps 0.1 --workdir {tmp_path} --name run" in done.stderr
    assert nas("explain", str(run.path)).stderr == done.stderr
    assert nas("report", str(run.path)).returncode == 0
    assert "has made no trial yet" in nas("show", str(run.path)).stderr
    (run.path / "winner").mkdir()
    assert "has lost its record (no study.db)" in nas("show", str(run.path)).stderr
    (run.path / "run.toml").unlink()
    assert "is not a run directory" in nas("show", str(run.path)).stderr


def test_what_is_cited_and_configured_is_known_of_a_run_without_a_record_or_without_its_configuration(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    config = {"space": {"name": "demo"}, "search": {"eps": [0.1], "optimizer": "evolution"}}
    run.create(config)
    for _ in range(2):
        assert "regevo" in nas("cite", str(run.path)).stdout
        assert json.loads(nas("config", "show", str(run.path), "--json").stdout) == config
        with run.record() as record:
            record.set_fact("config", config)
        (run.path / "run.toml").unlink(missing_ok=True)
    assert "the record's copy is shown" in nas("config", "show", str(run.path)).stderr
    (run.path / "study.db").write_bytes(b"nothing")
    for arguments in (("cite",), ("config", "show")):
        lost = nas(*arguments, str(run.path))
        assert (lost.returncode, lost.stdout, lost.stderr.count("\n")) == (2, "", 1)
        assert "has no copy of it" in lost.stderr


@pytest.mark.parametrize("verb", ["show", "explain", "report", "doctor", "cite", "best"])
def test_a_misspelt_run_gets_a_hint(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("small-1a2b", "large-3c4d"):
        RunDirectory(Path("runs") / name).create({"space": {"name": "demo"}, "search": {"eps": [0.1]}})
    for given, said in (
        ("runs/smal-1a2b", "; did you mean 'runs/small-1a2b'?"),
        ("large-3c4d", "; did you mean 'runs/large-3c4d'?"),
        ("runs", "; it holds 2 runs, the latest is 'runs/large-3c4d'"),
        ("runs/zebra", "; give a folder that `nas search` made, such as runs/NAME"),
    ):
        done = nas(verb, given)
        assert (done.returncode, done.stderr) == (2, f"error: '{given}' is not a run directory (no run.toml, no study.db){said}\n")


def test_a_closed_pipe_is_no_error(table: Path) -> None:
    run = search_table(table, "--eps", "0.003")["run"]
    command = f"{sys.executable} -c 'from nas.cli.app import main; main()' show {run} --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("{")


BAD = [
    ("search", "--eps", "-1"),
    ("search", "--eps", "nan"),
    ("search", "--eps", "inf"),
    ("search", "--eps", "x"),
    ("search",),
    ("search", "--eps", "0.1", "--eps", "0.1"),
    ("search", "--eps", "0.1", "--trials", "0"),
    ("search", "--eps", "0.1", "--trials", "-3"),
    ("search", "--eps", "0.1", "--optimizer", "eps_gb"),
    ("search", "--eps", "0.1", "--space", "tocsr_unett"),
    ("search", "--eps", "0.1", "--space", "nowhere.py"),
    ("search", "--eps", "0.1", "--space", "table:nowhere.npz"),
    ("search", "--eps", "0.1", "--space", "table"),
    ("search", "--eps", "0.1", "--delta", "2"),
    ("search", "--eps", "0.1", "--workdir", "/proc/nowhere"),
    ("search", "--eps", "0.1", "--threads", "0"),
    ("search", "--eps", "0.1", "--nonsense"),
    ("search", "--eps", "0.1", "--config", "nowhere.toml"),
    ("search", "--eps", "0.1", "--device", "tpu"),
    ("search", "--eps", "0.1", "--device", "cuda:99"),
    ("search", "--eps", "0.1", "--library", "hugee"),
    ("search", "--eps", "0.1", "--teacher", "no/such/folder"),
    ("search", "--eps", "0.1", "--teacher", "embedded", "--data", "."),
    ("search", "--eps", "0.1", "--minimize", "flops"),
    ("search", "--eps", "0.1", "--where", "macs<=0.1%"),
    ("search", "--eps", "0.1", "--where", "macs=3"),
    ("measure", "--candidate", "down9=R"),
    ("measure", "--candidate", "down0=RRRR"),
    ("measure", "--candidate", "down0"),
    ("show", "nowhere"),
    ("show", "."),
    ("report", "nowhere"),
    ("explain", "nowhere"),
    ("report", "."),
    ("export", "nowhere", "--to", "x"),
    ("spaces", "show", "tocsr_unett"),
    ("spaces", "show", "tocsr_unet", "--scale", "sdxl"),
    ("compare", "--eps", "0.1", "--optimizers", "nothing"),
    ("compare", "--eps", "0.1", "--seeds", "0"),
    ("compare", "--eps", "0.1", "--optimizers", "anneal.py"),
    ("plan", "--space", "synthetic:3", "--batch", "0"),
    ("cascade", "nowhere", "--trials", "0"),
    ("nonsense",),
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments: tuple[str, ...], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    monkeypatch.chdir(tmp_path)
    done = nas(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:") or "Error" in line or "╭" in line]) >= 1
    assert list(tmp_path.iterdir()) == []


def test_every_space_and_optimizer_is_listed_with_a_line_on_it() -> None:
    from nas.names import OPTIMIZERS, SPACES

    for registry in (SPACES, OPTIMIZERS):
        assert all(registry.about(name) for name in registry.names())
    assert "15,625 measured networks" in nas("spaces").stdout
    assert json.loads(nas("spaces", "list", "--json").stdout) == SPACES.names()


def test_measure_prints_a_candidate_beside_the_teacher(table: Path) -> None:
    done = nas("measure", "--space", f"table:{table}", "--candidate", "s0=c1")
    assert "s0=c1" in done.stdout
    assert "1.12x" in done.stdout
    assert "0.001 ± 0" in done.stdout
    assert "L: divergence from the teacher" in done.stderr


def test_measure_takes_several_candidates_in_their_order(table: Path) -> None:
    command = ("measure", "--space", f"table:{table}", "--candidate", "s0=c1", "--candidate", "s1=c2", "--candidate", "teacher")
    assert [row["divergence"] for row in json.loads(nas(*command, "--json").stdout)] == [0.001, 0.004, 0.0]
    shown = nas(*command).stdout
    assert shown.index("s0=c1") < shown.index("s1=c2") < shown.index("the teacher, nothing replaced")


def test_verbose_tells_every_trial_and_quiet_none(table: Path) -> None:
    command = ("search", "--space", f"table:{table}", "--eps", "0.012", "--workdir", str(table.parent), "--trials", "4", "--new")
    assert len([line for line in nas(*command, "-v").stderr.splitlines() if line.startswith("  ")]) == 4
    assert nas(*command, "-v", "-q", "--json").stderr == ""


def test_a_finished_search_names_its_report_and_what_explains_it_unless_asked_to_be_quiet(table: Path) -> None:
    asked = ("search", "--space", f"table:{table}", "--workdir", str(table.parent / "runs"), "--name", "a b", "--eps", "0.05", "--trials", "4")
    run = table.parent / "runs" / "a b"
    assert nas(*asked).stderr.splitlines()[-1] == f"see it: {run}/report.html; why: nas explain '{run}'"
    assert (run / "report.html").is_file()
    for quieter in ("--json", "--quiet"):
        assert "see it" not in nas(*asked, quieter).stderr


def test_no_colour_is_written_when_asked_not_to(table: Path) -> None:
    code = f"from nas.cli.app import main; import sys; sys.argv = ['nas', 'measure', '--space', 'table:{table}', '--candidate', 'nonsense']; main()"
    environment = {**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "\x1b[31m" not in done.stderr
    assert "\x1b[1;31m" not in done.stderr


def test_a_repeated_search_of_a_finished_run_takes_no_time_and_an_interrupted_one_counts(table: Path) -> None:
    first = search_table(table, "--eps", "0.003", "--trials", "4")
    again = search_table(table, "--eps", "0.003", "--trials", "4")
    assert again["seconds"]["total"] == first["seconds"]["total"]
    with Record(Path(first["run"]) / "study.db") as record:
        record.set_fact("seconds", {"calibrate": 5.0, "total": 100.0})
    assert search_table(table, "--eps", "0.003", "--trials", "6")["seconds"]["total"] > 100


def test_the_total_time_of_an_unfinished_run_is_at_least_the_sum_of_its_parts(table: Path) -> None:
    run = Path(search_table(table, "--eps", "0.003", "--trials", "4")["run"])
    for seconds, total in (({"calibrate": 5.0, "total": 100.0}, 100.0), ({"calibrate": 5.0, "total": 6.0}, 8.5), (None, 3.5)):
        with Record(run / "study.db") as record:
            record._db.execute("DELETE FROM facts WHERE name IN ('result', 'seconds')")
            record.set_fact("seconds_proposing", 3.5 - sum(trial.seconds for trial in record.trials()))
            if seconds is not None:
                record.set_fact("seconds", seconds)
        found = json.loads(nas("show", str(run), "--json").stdout)["seconds"]
        assert found["total"] == pytest.approx(total, abs=0.002)


def test_a_mistyped_verb_gets_a_hint() -> None:
    assert "search" in nas("serach").stderr


def test_shell_completion_is_offered() -> None:
    assert "--install-completion" in nas("--help").stdout
