"""What a user's own file raises: one line that says whose code and which line, exit code 2."""

from pathlib import Path

import pytest

from nas.errors import DoesNotFit, UserCodeError
from nas.user_code import user_code
from tests.core.test_cli import nas
from tests.core.test_run_space import OWN

FILE = """
from neighbour_of_own import number

def divides():
    return 1 / number

def quits():
    raise SystemExit("no data here")

def another(data=None):
    return data.fit

class Denoiser:
    pass

def syntax():
    return Denoiser()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_of_own.py").write_text("number = 0\n")
    path = tmp_path / "own_file.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("divides", (), "own_file.py:divides': ZeroDivisionError: division by zero"),
        ("quits", (), "own_file.py:quits': SystemExit: no data here ("),
        ("another", ("--data", "foo"), "AttributeError: "),
        ("another", ("--device", "cpu"), "takes no option 'device'; it takes: data; to add it, write `def another(device=None)`"),
        ("Denoiser", (), "gives a Denoiser, which is no search space; nas.spaces.model.model_space"),
        ("missing", (), "has no function 'missing'; it has: divides, quits, another, syntax"),
    ],
)
def test_what_a_space_file_does_wrong_is_one_line_with_exit_code_2(file: Path, function: str, options: tuple[str, ...], message: str) -> None:
    done = nas("plan", "--space", f"{file}:{function}", *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_line_of_the_users_code_is_named_and_debug_shows_the_traceback(file: Path) -> None:
    assert f"({file}:5)" in nas("spaces", "show", f"{file}:divides").stderr
    assert "Traceback" in nas("--debug", "spaces", "show", f"{file}:divides").stderr


def test_a_file_that_is_no_python_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef make_space(:\n")
    done = nas("spaces", "show", str(tmp_path / "broken.py"))
    assert done.returncode == 2
    assert "SyntaxError" in done.stderr
    assert "broken.py:2)" in done.stderr


@pytest.mark.parametrize("code", ["", "0", "'no data'"])
def test_a_file_that_ends_the_program_as_it_is_loaded_is_named_with_its_line(tmp_path: Path, code: str) -> None:
    (tmp_path / "quits.py").write_text(f"import sys\nsys.exit({code})\n")
    for done in (nas("spaces", "show", str(tmp_path / "quits.py")), nas("search", "--eps", "1", "--optimizer", str(tmp_path / "quits.py:Mine"))):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "SystemExit" in done.stderr
        assert "quits.py:2)" in done.stderr


def test_a_space_that_ends_the_program_as_it_is_made_ready_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"{OWN}\n\nclass Quits(Space):\n    def prepare(self, progress):\n        raise SystemExit('no GPU')\n")
    done = nas("search", "--space", f"{tmp_path / 'own.py'}:Quits", "--eps", "1", "--workdir", str(tmp_path))
    line = len((tmp_path / "own.py").read_text().splitlines())
    assert (done.returncode, done.stderr) == (2, f"error: code from outside of nas ended the program: SystemExit: no GPU ({tmp_path / 'own.py'}:{line})\n")


def test_own_errors_and_want_of_memory_pass_unchanged() -> None:
    for error in (DoesNotFit("narrow", "needs a layer"), MemoryError()):
        with pytest.raises(type(error)), user_code("somebody"):
            raise error
    assert str(DoesNotFit("narrow", "needs a layer")) == "narrow, needs a layer"
    with pytest.raises(UserCodeError, match=r"somebody: KeyError: 'x' \(.*test_user_code.py:\d+\); mend it"), user_code("somebody", "mend it"):
        raise KeyError("x")
