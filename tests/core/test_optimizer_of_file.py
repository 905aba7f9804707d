"""Optimizers of a user's own file: compared and searched with by `path/to/file.py:Name`, and what they do wrong."""

import json
from pathlib import Path

import pytest

from tests.core.test_cli import nas

FILE = """
import numpy as np

class Random:
    def __init__(self, problem, seed=0):
        self.problem, self.seed = problem, seed

    def propose(self, trials, pending=(), n=1):
        rng = np.random.default_rng([self.seed, len(trials)])
        known = {t.candidate for t in trials} | {tuple(c) for c in pending}
        while (drawn := tuple(rng.integers(0, self.problem.space.sizes).tolist())) in known:
            pass
        return [drawn]

class Raises(Random):
    def propose(self, trials, pending=(), n=1):
        return [trials[0].absent]

class NoSeed:
    def __init__(self, problem):
        pass

def nothing(problem, seed=0):
    return 3
"""


WRONG = {
    "3": "must propose a list of candidates, empty when it is done, got 3",
    "{'s0': 1}": r"must propose a list of candidates, empty when it is done, got {'s0': 1}",
    "'abc'": "proposed 'a'; a candidate is a tuple of whole numbers, one a stage",
    "[(0.5,) * 7]": "proposed (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5); a candidate is a tuple of whole numbers",
    "[(9,) * 7]": "proposed (9, 9, 9, 9, 9, 9, 9): stage 's0' has choices 0..3, got 9",
    "[(1, 1)]": "proposed (1, 1): a candidate of 'synthetic-3' has 7 stages, got 2",
    "[(1,) * 7]": "proposed (1, 1, 1, 1, 1, 1, 1) again",
}


@pytest.mark.parametrize("verb", ["compare", "search"])
@pytest.mark.parametrize("proposed", WRONG)
def test_whatever_an_optimizer_proposes_wrongly_is_one_line_that_names_it(proposed: str, verb: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    body = f"    def propose(self, trials, pending=(), n=1):\n        return {proposed}\n"
    file.write_text(f"class Wrong:\n    def __init__(self, problem, seed=0):\n        pass\n\n{body}")
    options = ("--optimizers", "--seeds", "1") if verb == "compare" else ("--optimizer", "--workdir", str(tmp_path))
    done = nas(verb, "--space", "synthetic:3", "--eps", "0.005", "--trials", "3", "-q", options[0], f"{file}:Wrong", *options[1:])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"error: optimizer Wrong {WRONG[proposed]}" in done.stderr


@pytest.mark.parametrize("verb", ["compare", "search"])
def test_an_optimizer_that_ignores_the_bounds_is_stopped_in_one_line(verb: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    body = "    def propose(self, trials, pending=(), n=1):\n        return [(0,) * 6 + (1,)]\n"
    file.write_text(f"class Wrong:\n    def __init__(self, problem, seed=0):\n        pass\n\n{body}")
    options = ("--optimizers", "--seeds", "1") if verb == "compare" else ("--optimizer", "--workdir", str(tmp_path))
    done = nas(verb, "--space", "synthetic:3", "--eps", "1", "--where", "params<=50%", "--trials", "3", "-q", options[0], f"{file}:Wrong", *options[1:])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "error: optimizer Wrong proposed (0, 0, 0, 0, 0, 0, 1): its params is " in done.stderr


def test_a_teacher_that_breaks_a_bound_is_within_eps_but_no_winner(tmp_path: Path) -> None:
    file = tmp_path / "cautious.py"
    body = "    def propose(self, trials, pending=(), n=1):\n        return [] if trials else [(0,) * 7]\n"
    file.write_text(f"class Cautious:\n    def __init__(self, problem, seed=0):\n        pass\n\n{body}")
    asked = ("search", "--space", "synthetic:3", "--eps", "1", "--where", "params<=50%", "--workdir", str(tmp_path), "-q")
    done = nas(*asked, "--optimizer", f"{file}:Cautious")
    assert done.returncode == 3
    assert "no measured candidate is within eps and the bounds" in done.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "anneal.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_an_optimizer_of_a_file_is_compared_by_its_path_and_name(file: Path, jobs: str) -> None:
    asked = ("compare", "--space", "synthetic:3", "--eps", "0.005", "--seeds", "2", "--trials", "3", "--quiet", "--json", "--jobs", jobs)
    done = nas(*asked, "--optimizers", f"{file}:Random,random")
    assert done.returncode == 0, done.stderr
    assert [row["optimizer"] for row in json.loads(done.stdout)] == [f"{file}:Random", "random"]


def test_a_search_with_an_optimizer_of_a_file_goes_on_until_the_file_is_edited(file: Path, tmp_path: Path) -> None:
    def run(trials: int) -> str:
        asked = ("search", "--space", "synthetic:3", "--eps", "0.02", "--workdir", str(tmp_path / "runs"), "--json", "--quiet")
        done = nas(*asked, "--optimizer", f"{file}:Random", "--trials", str(trials))
        assert done.returncode in (0, 3), done.stderr
        result = json.loads(done.stdout)
        assert result["n_trials"] == trials
        return str(result["run"])

    first = run(2)
    assert run(4) == first
    file.write_text(FILE.replace("[self.seed, len(trials)]", "[self.seed, 7, len(trials)]"))
    assert run(2) != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":Raises", "optimizer Raises: IndexError: list index out of range ({file}:17)"),
        (":NoSeed", "must take (problem, seed=0): got an unexpected keyword argument 'seed'"),
        (":nothing", "gives a int, which has no method 'propose(trials, pending=(), n=1)'"),
        (":Annealing", "has no class or function 'Annealing'; it has: Random, Raises, NoSeed, nothing"),
        ("", "needs the name of a class or function after it: {file}:NAME; it has: Random"),
        ("x:Random", "unknown optimizer"),
    ],
)
def test_what_an_optimizer_of_a_file_does_wrong_is_one_line_with_exit_code_2(file: Path, tmp_path: Path, name: str, message: str) -> None:
    done = nas("search", "--space", "synthetic:3", "--eps", "0.02", "--workdir", str(tmp_path / "runs"), "--optimizer", f"{file}{name}")
    assert done.returncode == 2
    assert "".join(message.format(file=file).split()) in "".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = nas("compare", "--eps", "0.1", "--optimizers", f"{tmp_path}/absent.py:Random")
    assert done.returncode == 2
    assert "give path/to/file.py:Name" in " ".join(done.stderr.split())
