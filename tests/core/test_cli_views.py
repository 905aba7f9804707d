"""What the verbs that show, compare and export print, for people and as JSON, on small runs."""

import json
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nas as toolkit
from nas.blocks.store import BlockStore
from nas.cli import dashboard
from nas.crew import _gpus, _on_cuda
from nas.errors import InputError
from nas.executor import CalibrateBlock, Measure, Origin, ReceiveBlocks, Workplace
from nas.findings import read_run
from nas.frames import trials_frame
from nas.loggers import LOGGERS
from nas.regret_plot import plot
from nas.run_directory import RunDirectory
from nas.space import SearchSpace
from nas.summary import summarize
from nas.trial import Trial
from tests.core.test_cli import nas
from tests.core.test_executor import TOY

NOTHING_CHEAPER = """
import numpy as np

from nas.problem import CostTable
from nas.space import SearchSpace
from nas.protocols import Task
from nas.trial import Measurement


class Known:
    def measure(self, candidates, eps=()):
        return [Measurement(0.01) for _ in candidates]


class Space:
    space = SearchSpace.of_sizes("bounded", (2, 2))

    def costs(self):
        return CostTable({"params": np.array([[9.0, 5.0], [9.0, 5.0]]), "macs": np.array([[100.0, 150.0], [100.0, 150.0]])})

    def fingerprint(self):
        return {}

    def prepare(self, progress):
        return Task(self.space, self.costs(), Known())


def make_space():
    return Space()
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a landscape, with two eps and a bound."""
    workdir = tmp_path_factory.mktemp("runs")
    toolkit.search("synthetic:3", (0.005, 0.02), workdir=workdir, name="demo", trials=10, where=("macs<=90%",), optimizer="additive")
    return workdir / "demo"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a network, its blocks and measured values beside it in `home`."""
    folder = tmp_path_factory.mktemp("network")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_HOME", str(folder / "home"))
        toolkit.search(TOY, (0.05, 0.5), workdir=folder, name="demo", trials=6, optimizer="random")
    return folder / "demo"


def shown(*arguments: str) -> str:
    done = nas(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_macs_with_attention_are_left_out_for_people_where_nothing_has_any(network: Path, home: Path) -> None:
    shutil.copytree(network.parent / "home", home)
    shown_to_people = [
        shown("show", str(network)),
        shown("best", str(network)),
        shown("spaces", "show", TOY),
        shown("calibrate", "--space", TOY, "--quiet"),
        shown("plan", "--space", TOY),
        shown("measure", "--space", TOY, "--candidate", "a=half", "--quiet"),
        Path(shown("report", str(network)).strip().removeprefix("report in ")).read_text(),
        (network / "winner-eps0.5" / "README.md").read_text(),
    ]
    for text in shown_to_people:
        assert "attention" not in text.partition("multiply-adds of convolutions")[0]
    assert json.loads(shown("show", str(network), "--json"))["teacher"]["macs_with_attention"] > 0


def test_explain_tells_people_of_neighbours_stages_and_interactions(searched: Path) -> None:
    text = shown("explain", str(searched))
    assert "adds to L: what L falls by if the stage gets the teacher's block back" in " ".join(text.split())
    assert text.count("replaced: ") == 2
    assert "macs <= " in text
    assert "with 10 % " in text
    assert "cheaper networks one swap away, least divergent first" in text
    assert "stage by stage: what its block adds to L" in text
    assert re.search(r"~[\d.e-]+ \([\d.e-]+ to [\d.e-]+\)", text.split("stage by stage")[1])
    only = shown("explain", str(searched), "--eps", "0.02")
    assert "eps 0.02: params" in only
    assert only.count("replaced: ") == 1


def test_explain_calls_no_candidate_a_winner_where_nothing_is_feasible(tmp_path: Path) -> None:
    toolkit.search("synthetic:3", 0.0002, workdir=tmp_path, name="none", trials=4, where=("params<=40%",), optimizer="random")
    text = " ".join(shown("explain", str(tmp_path / "none")).split())
    assert "not feasible: it breaks L <= eps (the least divergent candidate has" in text
    assert "with the swaps of the least divergent candidate but that one" in text
    assert "winner" not in text


def test_explain_as_json_has_a_row_an_eps_and_refuses_another_eps(searched: Path) -> None:
    assert [row["eps"] for row in json.loads(shown("explain", str(searched), "--json"))] == [0.005, 0.02]
    refused = nas("explain", str(searched), "--eps", "0.3")
    assert refused.returncode == 2
    assert "it has: 0.005, 0.02" in refused.stderr


def test_a_search_whose_bounds_leave_nothing_cheaper_than_the_teacher_says_so(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(NOTHING_CHEAPER)
    done = nas("search", "--space", str(tmp_path / "space.py"), "--eps", "0.1", "--where", "macs<=200", "--workdir", str(tmp_path), "--name", "run")
    reason = "no candidate within the bounds is cheaper in params than the teacher: keep it, or relax macs<=200"
    assert done.returncode == 3
    assert f"nothing to measure: {reason}" in " ".join(done.stderr.split())
    assert "least divergent" not in done.stderr
    refused = nas("explain", str(tmp_path / "run"))
    assert refused.returncode == 2
    assert f"no measured candidate to explain; its search is over. Nothing was measured: {reason}." in " ".join(refused.stderr.split())
    none = nas("best", str(tmp_path / "run"))
    assert (none.returncode, "its search found nothing to measure" in none.stderr) == (3, True)
    assert "nothing was measured" in Path(shown("report", str(tmp_path / "run")).strip().removeprefix("report in ")).read_text()


def test_explain_of_a_network_shows_the_interactions_of_replaced_stages(network: Path) -> None:
    assert "interactions: what two swaps add" in " ".join(shown("explain", str(network), "--eps", "0.5").split())


def test_optimizers_are_compared_as_a_table_json_and_plot(tmp_path: Path) -> None:
    asked = ("compare", "--space", "synthetic:3", "--eps", "0.005", "--optimizers", "random, threshold", "--seeds", "2", "--trials", "4", "--quiet")
    text = shown(*asked, "--plot", str(tmp_path / "regret.svg"))
    assert "random" in text
    assert "threshold" in text
    assert text.lstrip().startswith("synthetic-3: measurements until")
    drawn = (tmp_path / "regret.svg").read_text()
    assert drawn.startswith("<svg")
    assert ">synthetic-3, eps 0.005</text>" in drawn
    assert {row["optimizer"] for row in json.loads(shown(*asked, "--where", "macs<=95%", "--json"))} == {"random", "threshold"}
    nobody = nas("compare", "--eps", "0.1", "--optimizers", " , ")
    assert nobody.returncode == 2
    assert "names none" in nobody.stderr


def test_optimizers_are_not_compared_on_a_network_and_nothing_is_calibrated_to_find_out(home: Path) -> None:
    refused = nas("compare", "--space", TOY, "--eps", "0.1", "--optimizers", "random")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: the optimum of 'toy' is not known; compare on a benchmark space")
    assert "nas tabulate" in refused.stderr
    assert not home.exists()


@pytest.mark.parametrize(
    "arguments",
    [("search", "--eps", "0.5", "--trials", "2"), ("calibrate",), ("measure", "--candidate", "a=half"), ("plan",)],
    ids=lambda arguments: arguments[0],
)
def test_quiet_says_nothing_but_the_result(arguments: tuple[str, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    monkeypatch.chdir(tmp_path)
    done = nas(*arguments, "--space", TOY, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_winner_whose_folder_went_away_is_said_to_be_missing(network: Path, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    shutil.copytree(network, run)
    there = json.loads(shown("best", str(run), "--json"))
    assert "missing" not in there
    shutil.rmtree(there["path"])
    winners = json.loads(shown("show", str(run), "--json"))["winners"]
    assert [(w["path"], w["missing"]) for w in winners if w["eps"] == there["eps"]] == [(None, there["path"])]
    best = json.loads(shown("best", str(run), "--json"))
    assert (best["path"], best["missing"]) == (None, there["path"])
    assert f"{there['path']} is missing; the same `nas search` saves it again" in shown("best", str(run))
    page = Path(shown("report", str(run)).strip().removeprefix("report in ")).read_text()
    assert f"<code>{there['path']}</code> is missing" in page


@pytest.mark.parametrize(
    ("space", "to", "said"),
    [
        (TOY, "x.txt", "'x.txt' must end in .npz"),
        (TOY, "none/x.npz", "there is no folder 'none'"),
        (TOY, ".", "must end in .npz"),
        ("tocsr_unet", "x.npz", "at most 1,000,000 can be tabulated"),
    ],
)
def test_what_cannot_be_tabulated_is_said_before_anything_is_calibrated(
    space: str, to: str, said: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = nas("tabulate", "--space", space, "--to", to)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert said in refused.stderr
    assert not (home / "blocks").exists()


def test_a_space_whose_teacher_costs_nothing_is_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", sizes=np.array([2]), divergence=np.zeros(2), cost_params=np.zeros((1, 2)))
    assert "c1" in shown("spaces", "show", f"table:{tmp_path / 't.npz'}")


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("config", "show"), ("search", "--eps", "1", "--workdir"), ("tabulate", "--to")],
)
def test_a_path_that_the_system_refuses_is_one_line(arguments: tuple[str, ...]) -> None:
    done = nas(*arguments, "x" * 300 + ".npz")
    assert done.returncode == 2
    assert re.fullmatch(r"error: cannot use '.*x{300}.*': File name too long; give another path\n", done.stderr)


def test_a_table_is_written_and_searched(tmp_path: Path) -> None:
    table = tmp_path / "t.npz"
    assert "candidates in" in shown("tabulate", "--space", "synthetic:3", "--to", str(table), "--quiet")
    result = json.loads(shown("search", "--space", f"table:{table}", "--eps", "0.02", "--trials", "5", "--workdir", str(tmp_path), "--json", "--quiet"))
    assert result["n_trials"] <= 5
    assert nas("tabulate", "--space", "synthetic:3", "--to", str(table)).returncode == 2


def test_a_space_is_shown_with_every_block(home: Path) -> None:
    assert " candidates\n" in shown("spaces", "show", "synthetic:3")
    table = json.loads(shown("spaces", "show", TOY, "--json"))
    assert [choice["name"] for choice in table["stages"][0]["choices"]] == ["teacher", "half", "tiny"]
    assert "also: --space path/to/file.py:function" in nas("spaces").stderr
    assert "also: path/to/file.py:Name" in nas("optimizers").stderr


def test_blocks_are_calibrated_and_candidates_measured_for_people(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HOME", str(network.parent / "home"))
    monkeypatch.delenv("NAS_MAX_DISK", raising=False)
    text = shown("calibrate", "--space", TOY, "--max-disk", "1G", "--quiet")
    monkeypatch.delenv("NAS_MAX_DISK", raising=False)
    assert "calibration error" in text
    assert "tiny" in text
    assert [s["name"] for s in json.loads(shown("calibrate", "--space", TOY, "--json", "--quiet"))["stages"]] == ["a", "b", "c"]
    assert "the teacher, nothing replaced" in shown("measure", "--space", TOY, "--candidate", "teacher", "--quiet")
    assert "held-out L" in shown("measure", "--space", TOY, "--candidate", "a=half,c=tiny", "--quiet")
    assert nas("calibrate", "--space", TOY, "--max-disk", "much").returncode == 2


def test_winners_and_other_candidates_are_exported(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HOME", str(network.parent / "home"))
    several = nas("export", str(network), "--to", str(tmp_path / "x"))
    assert several.returncode == 2
    assert "choose one with --eps" in several.stderr
    assert "no winner for eps 0.3" in nas("export", str(network), "--eps", "0.3", "--to", str(tmp_path / "x")).stderr
    shown("export", str(network), "--eps", "0.5", "--to", str(tmp_path / "winner"))
    shown("export", str(network), "--candidate", "a=half", "--trust", "--to", str(tmp_path / "half"))
    assert (tmp_path / "winner" / "manifest.json").is_file()
    assert json.loads((tmp_path / "half" / "architecture.json").read_text())
    card = (tmp_path / "half" / "README.md").read_text()
    assert "a network that was named" in card
    assert "| a | half |" in card
    assert "load_graph" in card
    shown("export", str(network), "--candidate", "teacher", "--trust", "--to", str(tmp_path / "teacher"))
    assert "the teacher, nothing replaced" in (tmp_path / "teacher" / "README.md").read_text()
    again = nas("export", str(network), "--eps", "0.5", "--to", str(tmp_path / "winner"))
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_space_without_models_exports_none(searched: Path, tmp_path: Path) -> None:
    done = nas("export", str(searched), "--candidate", "teacher", "--to", str(tmp_path / "x"))
    assert done.returncode == 2
    assert "has no models to export" in done.stderr
    assert "saved no winner: its space has no models to export" in nas("export", str(searched), "--to", str(tmp_path / "x")).stderr


def test_cite_names_what_a_run_used(searched: Path) -> None:
    keys = [row["key"] for row in json.loads(shown("cite", str(searched), "--json"))]
    assert shown("cite", str(searched)).count("\n@") + 1 == len(keys)
    assert len(shown("cite")) > 0


def test_the_cache_is_shown_verified_and_pruned_for_people(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(network.parent / "home", home)
    monkeypatch.setenv("NAS_HOME", str(home))
    assert "half" in shown("cache", "list")
    assert "6 blocks, 0 damaged" in shown("cache", "verify")
    block = next((home / "blocks").rglob("block.safetensors"))
    block.write_bytes(block.read_bytes()[:-1])
    damaged = nas("cache", "verify")
    assert damaged.returncode == 2
    assert "6 blocks, 1 damaged" in damaged.stdout
    assert "1 folders of blocks" in shown("cache", "prune", "--dry-run")
    assert "removed" in shown("cache", "prune", "--all")
    assert list(BlockStore(home / "blocks").keys()) == []


def test_a_search_on_which_nothing_could_be_measured_says_why(tmp_path: Path) -> None:
    file = tmp_path / "t.npz"
    divergence = np.full(4, np.inf)
    divergence[0] = 0.0
    np.savez(file, sizes=np.array([2, 2]), divergence=divergence, cost_params=np.array([[2.0, 1.0], [2.0, 1.0]]))
    done = nas("search", "--space", f"table:{file}", "--eps", "0.1", "--optimizer", "random", "--workdir", str(tmp_path), "--name", "run")
    assert done.returncode == 3
    assert "trials failed, mostly because of" in done.stderr
    assert "trials" in shown("show", str(tmp_path / "run"))


def test_the_dashboard_follows_a_run_and_refuses_a_port_that_is_taken(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna_dashboard")
    run = tmp_path / "run"
    shutil.copytree(searched, run)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = nas("dashboard", str(run), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "give another --port" in done.stderr
    import optuna

    from nas.dashboard import mirror

    storage = optuna.storages.InMemoryStorage()
    mirror(read_run(run), storage)
    before = len(storage.get_all_trials(0))
    with RunDirectory(run).record() as record:
        known = [trial.candidate for trial in record.trials()]
        free = next((*known[0][:-1], k) for k in range(2) if (*known[0][:-1], k) not in known)
        record.add(Trial(before, free, {"params": 1.0, "macs": 1.0}, 0.5, 0.1, 1))
    monkeypatch.setattr(dashboard, "REFRESH_S", 0.01)
    over = threading.Event()
    follower = threading.Thread(target=dashboard._follow, args=(run, storage, over))
    follower.start()
    until = time.monotonic() + 60
    while len(storage.get_all_trials(0)) == before and time.monotonic() < until:
        time.sleep(0.01)
    over.set()
    follower.join()
    assert len(storage.get_all_trials(0)) == before + 1


def test_a_workers_tasks_are_what_one_process_does(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Workplace(Origin(TOY))
    assert CalibrateBlock("a", "half")(here) == {}
    assert ("a", "half") not in here.space.missing_blocks()  # type: ignore[attr-defined]
    monkeypatch.setenv("NAS_HOME", str(tmp_path / "elsewhere"))
    apart = Workplace(Origin(TOY, apart=True))
    packed = {key: block for stage in "abc" for choice in ("half", "tiny") for key, block in CalibrateBlock(stage, choice)(apart).items()}
    assert len(packed) == 6
    monkeypatch.setenv("NAS_HOME", str(tmp_path / "third"))
    third = Workplace(Origin(TOY, apart=True))
    ReceiveBlocks(packed)(third)
    assert third.space.missing_blocks() == []  # type: ignore[attr-defined]
    measured, values = Measure((1, 1, 1), (0.05,))(third)
    assert values is not None
    assert measured.divergence == pytest.approx(values.mean(), abs=4 * measured.stderr)
    beside, _ = Measure((1, 2, 1), (0.05,), complete={(1, 1, 1): values})(third)
    heldout, _ = Measure((1, 1, 1), heldout=True)(third)
    assert beside.divergence is not None
    assert heldout.divergence is not None


def test_a_workers_space_that_comes_out_differently_is_refused() -> None:
    with pytest.raises(InputError, match="comes out differently"):
        Workplace(Origin("synthetic:3", fingerprint={"teacher": "other"}))


def test_a_search_that_stopped_by_itself_says_that_a_smaller_delta_looks_further(tmp_path: Path) -> None:
    asked = ("search", "--space", "synthetic:3", "--eps", "0.02", "--workdir", str(tmp_path), "--quiet")
    hint = "nothing better is likely to be left; a smaller --delta (0.01 where none was given) looks further, as a run of its own"
    assert hint in " ".join(shown(*asked).split())
    few, more = (json.loads(shown(*asked, *delta, "--json")) for delta in ((), ("--delta", "0.0001")))
    assert more["n_trials"] > few["n_trials"]
    assert hint in " ".join(shown("show", few["run"]).split())
    assert "--delta" not in shown(*asked, "--trials", "3")
    assert "--delta" not in shown(*asked, "--optimizer", "threshold")  # which knows no delta


def test_an_unfinished_run_is_shown_with_its_incumbents(searched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(searched, run)
    with RunDirectory(run).record() as record:
        record._db.execute("DELETE FROM facts WHERE name = 'result'")
    summary: dict[str, Any] = json.loads(shown("show", str(run), "--json"))
    assert summary["stopped"] == "interrupted"
    assert summary["space"] == json.loads(shown("show", str(searched), "--json"))["space"]
    assert len(summary["winners"]) == 2
    text = shown("show", str(run))
    assert "teacher and winners" in text
    assert re.search(r"\ngo on with: nas search --space synthetic:3 --eps 0.005 .* --trials 10 --workdir \S+ --name run\n", text)


@pytest.mark.parametrize(("where", "feasible", "choice"), [((), True, "c2"), (("params<=30%",), True, "c2"), (("params<=30%", "macs<=20%"), False, "teacher")])
def test_an_unfinished_runs_incumbent_has_the_least_of_what_is_minimised_within_the_bounds(
    tmp_path: Path, where: tuple[str, ...], feasible: bool, choice: str
) -> None:
    file = tmp_path / "t.npz"
    costs = {"cost_macs": np.array([[10.0, 1.0, 5.0, 1.0]]), "cost_params": np.array([[10.0, 8.0, 2.0, 2.0]])}  # macs first, params minimised
    np.savez(file, sizes=np.array([4]), divergence=np.array([0.0, 0.002, 0.003, np.inf]), **costs)
    toolkit.search(f"table:{file}", 0.01, workdir=tmp_path, name="run", trials=1, optimizer="random", where=where)
    run = RunDirectory(tmp_path / "run")
    with run.record() as record:
        record._db.execute("DELETE FROM facts WHERE name = 'result'")
        record._db.execute("DELETE FROM trials")
        for number, divergence in enumerate((0.0, 0.002, 0.003)):
            measured = {name.removeprefix("cost_"): float(values[0, number]) for name, values in costs.items()}
            record.add(Trial(number, (number,), measured, divergence))
        (winner,) = summarize(run, record)["winners"]
    assert (winner["feasible"], winner["candidate"]) == (feasible, {"s0": choice})


def test_best_and_the_ratios_are_of_what_was_minimised_also_in_runs_that_do_not_record_it(tmp_path: Path) -> None:
    file = tmp_path / "t.npz"
    costs = {"cost_params": np.array([[10.0, 9.0, 5.0]]), "cost_macs": np.array([[12.0, 3.0, 6.0]])}  # params first, macs minimised
    np.savez(file, sizes=np.array([3]), divergence=np.array([0.0, 0.02, 0.01]), **costs)
    asked = ("search", "--space", f"table:{file}", "--eps", "0.01", "--eps", "0.02", "--minimize", "macs", "--workdir", str(tmp_path), "--name", "run")
    text = shown(*asked)
    assert ("smaller in MACs" in text, "4.00x" in text, "2.00x" in text) == (True, True, True)
    assert "  MACs   of teacher's" in text
    run = str(tmp_path / "run")
    with RunDirectory(tmp_path / "run").record() as record:
        result = record.fact("result")
        assert result.pop("objective") == "macs"
        record.set_fact("result", result)
    assert json.loads(shown("best", run, "--json"))["candidate"] == {"s0": "c1"}
    assert "smaller in MACs" in shown("show", run)
    assert json.loads(shown("show", run, "--json"))["objective"] == "macs"


def test_a_run_is_shown_and_reported_where_a_candidate_could_not_be_verified(searched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(searched, run)
    with RunDirectory(run).record() as record:
        result = record.fact("result")
        refused = next(trial for trial in record.trials() if trial.divergence is not None and any(trial.candidate))
        names = read_run(searched).problem
        assert names is not None
        row = {"candidate": names.space.decode(refused.candidate), "divergence": refused.divergence, "heldout_divergence": None}
        record.set_fact("result", {**result, "winners": [{**winner, "rejected": [row]} for winner in result["winners"]]})
    assert "its held-out L could not be measured" in shown("show", str(run))
    assert "held-out L could not be measured" in Path(shown("report", str(run)).strip().removeprefix("report in ")).read_text()


def test_the_best_of_a_run_says_where_it_is_and_that_an_unfinished_one_is_not_verified(searched: Path, network: Path, tmp_path: Path) -> None:
    assert "saved in" in shown("best", str(network))
    run = tmp_path / "run"
    shutil.copytree(searched, run)
    with RunDirectory(run).record() as record:
        record._db.execute("DELETE FROM facts WHERE name = 'result'")
    done = nas("best", str(run))
    assert done.returncode == 0
    assert "the search is not done" in done.stderr


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read configuration"), ("[search", "is not TOML"), ("search = 3", "must be a table [search]")])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "nas.toml"
    if content is not None:
        path.write_text(content)
    done = nas("search", "--config", str(path), "--eps", "0.1")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[serch]\ntrials = 2", "[serch] is the table of no verb that takes --config; did you mean 'search'?"),
        ("[search]\n[sarch]\ntrials = 2", "[sarch] is the table of no verb that takes --config; did you mean 'search'?"),
        ("eps = [0.1]", "'eps' stands in no table; write it below [search]"),
        ('[search]\neps = "x"', "[search] eps = ['x']: "),
        ('[search]\neps = [0.1]\nworkers = "a"', "[search] workers = 'a': "),
        ("[search]\nzebra = 1", "[search] has no option 'zebra'; known: address, data,"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named_with_its_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "nas.toml"
    path.write_text(content)
    done = nas("search", "--config", str(path), "--quiet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"configuration {path}: {message}" in done.stderr


def test_a_configuration_may_serve_several_verbs_and_give_one_eps_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "nas.toml"
    path.write_text("[search]\neps = 0.1\n[plan]\ntrials = 3\n[finetune]\nsteps = 5\n")
    assert json.loads(shown("config", "show", str(path), "--json"))["search"]["eps"] == [0.1]
    assert nas("search", "--config", str(path), "--eps", "x").stderr.startswith("error: nas search: invalid value for '--eps'")


def test_a_configuration_that_is_not_there_is_told_with_the_ways_out(tmp_path: Path) -> None:
    assert "give a TOML file with a table [search], a run directory such as runs/NAME" in nas("config", "show", str(tmp_path / "none")).stderr


def test_packages_that_are_not_installed_are_named_with_the_way_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'stage-nas\[pandas\]'"):
        trials_frame(SearchSpace.of_sizes("demo", (2,)), [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'stage-nas\[tensorboard\]'"):
        LOGGERS.get("tensorboard")(tmp_path)


def test_a_plot_whose_folder_went_away_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write the plot .* give another --plot"):
        plot([], tmp_path / "gone" / "p.svg")


def test_on_cuda_every_worker_gets_one_of_the_gpus_there_are() -> None:
    assert _gpus({"device": "cpu"}) == 0
    assert _gpus({"device": "cuda"}) == torch.cuda.device_count()
    assert [_on_cuda({"device": device}) for device in ("cuda:1", "cpu")] == [True, False]
