"""Names from packages of third parties: found, described, and told when they cannot be loaded."""

from pathlib import Path

import pytest

from nas.errors import InputError, UserCodeError
from nas.names import OPTIMIZERS, optimizer_factory


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers an optimizer that works, one that is not there and one that ends the program."""
    folder = tmp_path / "acme_nas-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-nas\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[nas.optimizers]\nacme = acme_optimizer:make\nbroken = acme_optimizer:nothing\nquits = acme_quits\n")
    (tmp_path / "acme_quits.py").write_text("raise SystemExit(1)\n")
    (tmp_path / "acme_optimizer.py").write_text("def make(problem, seed=0):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_an_entry_point_is_listed_loaded_and_told_when_it_cannot_be() -> None:
    assert {"acme", "broken"} <= set(OPTIMIZERS)
    assert OPTIMIZERS.about("acme") == "from package acme-nas"
    assert OPTIMIZERS.get("acme").__name__ == "make"
    with pytest.raises(InputError, match=r"optimizer 'broken' \(entry point acme_optimizer:nothing\) cannot be loaded"):
        OPTIMIZERS.get("broken")
    with pytest.raises(UserCodeError, match=r"optimizer 'quits' \(entry point acme_quits\): SystemExit: 1 \(.*acme_quits.py:1\)"):
        OPTIMIZERS.get("quits")
    with pytest.raises(InputError, match="did you mean 'acme'"):
        OPTIMIZERS.get("acmee")


def test_an_optimizer_without_an_argument_takes_none() -> None:
    with pytest.raises(InputError, match="optimizer 'random' takes no argument, got '3'"):
        optimizer_factory("random:3")
