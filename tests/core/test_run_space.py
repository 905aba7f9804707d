"""The space of a run is made again from the file that its search ran, wherever the command is given."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import nas as toolkit
from nas.errors import InputError
from nas.run_directory import RunDirectory, search_command
from nas.run_space import file_of_space, recorded_file
from tests.core.test_cli import nas

OWN = """
import numpy as np

from nas.problem import CostTable
from nas.protocols import Task
from nas.space import SearchSpace
from nas.trial import Measurement

WHO = "mine"


class Known:
    def measure(self, candidates, eps=()):
        return [Measurement(0.01) for _ in candidates]


class Space:
    space = SearchSpace.of_sizes("own", (2, 2))
    more_costs = ("seconds",)

    def cost(self, metric):
        return np.array([[9.0, 5.0], [9.0, 5.0]]), 0.0

    def costs(self):
        return CostTable({"params": np.array([[9.0, 5.0], [9.0, 5.0]])})

    def fingerprint(self):
        return {"teacher": WHO}

    def prepare(self, progress):
        return Task(self.space, self.costs(), Known(), export=lambda candidate, folder: (folder.mkdir(), (folder / "who").write_text(WHO)))


def make_space():
    return Space()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of a space and a run of it that lies elsewhere; the current folder holds another file of the same name."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "compress.py").write_text(OWN)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "compress.py").write_text(OWN.replace('"mine"', '"another"'))
    monkeypatch.chdir(tmp_path / "own")
    toolkit.search("compress.py:make_space", 0.1, workdir=tmp_path / "own" / "deep" / "er", name="run", trials=2, minimize="seconds")
    monkeypatch.chdir(tmp_path / "other")
    return tmp_path / "own"


def exported(own: Path, *more: str) -> Any:
    return nas("export", str(own / "deep" / "er" / "run"), "--candidate", "s0=c1", "--to", "model", *more)


def test_a_file_of_the_same_name_in_the_current_folder_is_not_run(own: Path) -> None:
    done = exported(own, "--trust")
    assert done.returncode == 0, done.stderr
    assert Path("model/who").read_text() == "mine"


def test_the_file_that_would_be_run_is_named_in_full(own: Path) -> None:
    assert f"'{own / 'compress.py'}'; give --trust to run that file" in exported(own).stderr


def test_run_and_file_may_be_moved_together(own: Path, tmp_path: Path) -> None:
    moved = own.rename(tmp_path / "moved")
    assert exported(moved, "--trust").returncode == 0
    assert Path("model/who").read_text() == "mine"


@pytest.mark.parametrize("verb", [("export", "--candidate", "teacher", "--to", "model"), ("cascade",)])
def test_another_space_than_that_of_the_run_is_refused_before_it_is_made_ready(own: Path, verb: tuple[str, ...]) -> None:
    (own / "compress.py").write_text(OWN.replace('"mine"', '"another"'))
    done = nas(verb[0], str(own / "deep" / "er" / "run"), *verb[1:], "--trust")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"searched another space than '{own / 'compress.py'}:make_space' gives (teacher 'mine' there, 'another' now)" in done.stderr
    assert not Path("model").exists()


def test_a_file_that_is_nowhere_is_told_with_the_places(own: Path) -> None:
    (own / "compress.py").unlink()
    done = exported(own, "--trust")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for place in (own / "compress.py", own / "deep" / "compress.py"):
        assert f"'{place}'" in done.stderr
    assert not Path("model").exists()


def test_a_run_that_recorded_no_place_is_read_as_before(own: Path) -> None:
    (own / "deep" / "compress.py").write_text(OWN)
    written = own / "deep" / "er" / "run" / "run.toml"
    written.write_text(written.read_text().replace('[source]\nfile = "../../../compress.py"\n', ""))
    assert "source" not in RunDirectory(written.parent).config()
    assert exported(own, "--trust").returncode == 0
    assert Path("model/who").read_text() == "mine"


def test_the_same_search_goes_on_after_its_file_was_moved(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(own / "compress.py", "compress.py")
    result = toolkit.search("compress.py:make_space", 0.1, workdir=own / "deep" / "er", name="run", trials=2, minimize="seconds")
    assert result.run == own / "deep" / "er" / "run"


def test_the_command_that_goes_on_works_in_any_folder(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(own)
    with RunDirectory(Path("deep/er/run")).record() as record:
        result = record.fact("result")
        record._db.execute("DELETE FROM facts WHERE name = 'result'")
    command = nas("show", "deep/er/run").stdout.splitlines()[-1].removeprefix("go on with: ")
    assert f" --space {own / 'compress.py'}:make_space " in command
    monkeypatch.chdir(tmp_path / "other")
    done = nas(*shlex.split(command)[1:], "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["winners"] == result["winners"]
    assert [path.name for path in Path.cwd().iterdir()] == ["compress.py"]


def test_a_command_names_a_file_that_is_gone_as_it_was_given(own: Path) -> None:
    (own / "compress.py").unlink()
    run = own / "deep" / "er" / "run"
    assert search_command(run, RunDirectory(run).config()).startswith("nas search --space compress.py:make_space ")


def test_a_space_known_by_name_has_no_file(tmp_path: Path) -> None:
    assert recorded_file(tmp_path, "synthetic:3") == {}
    assert file_of_space(tmp_path, {"space": {"name": "synthetic:3"}}) is None
    with pytest.raises(InputError, match="which is none of"):
        file_of_space(tmp_path, {"space": {"name": "gone.py:make_space"}})


def test_a_space_known_by_name_must_be_that_of_the_run_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    toolkit.search("synthetic:3", 0.1, workdir=tmp_path, name="run", trials=1)
    assert "has no models to export" in nas("export", str(run), "--candidate", "teacher", "--to", str(tmp_path / "model")).stderr
    written = (run / "run.toml").read_text()
    (run / "run.toml").write_text(written.replace('seed = "3"', 'seed = "4"'))
    refused = nas("export", str(run), "--candidate", "teacher", "--to", str(tmp_path / "model"))
    assert refused.returncode == 2
    assert "than 'synthetic:3' gives (seed '4' there, '3' now); give it the teacher, the data and the stage-nas it was made with" in refused.stderr
