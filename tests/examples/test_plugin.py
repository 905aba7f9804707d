"""The plug-in as a user gets it: built and installed into a folder of its own, then found by its entry points."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", base / "source")
    command = ["pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(base / "site"), str(base / "source")]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return base


def run(installed: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(installed / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "NAS_HOME": str(installed / "home")}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=installed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


NAS = ("-c", "from nas.cli.app import main; main()")


def test_its_space_and_block_are_listed(installed: Path) -> None:
    assert "plugin_waves" in json.loads(run(installed, *NAS, "spaces", "list", "--json"))
    rows = {row["name"]: row for row in json.loads(run(installed, *NAS, "blocks", "list", "--json"))}
    assert rows["plugin_scale"]["fits"] == "blocks that read and write (B, width)"


def test_its_space_is_searched_with_its_block_and_its_optimizer(installed: Path) -> None:
    text = run(installed, *NAS, "search", "--space", "plugin_waves", "--eps", "100", "--optimizer", "plugin_cheapest", "--trials", "10", "--json")
    winner = json.loads(text)["winners"][0]
    assert set(winner["candidate"].values()) == {"plugin_scale-16"}


def test_its_own_tests_pass(installed: Path) -> None:
    run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(installed / "source" / "tests"))
