import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_cli import nas

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_block_library_of_ones_own_is_searched_from_its_file(home: Path, tmp_path: Path) -> None:
    del home
    space = f"{EXAMPLES / 'own_library.py'}:make_space"
    done = nas("search", "--space", space, "--eps", "0.5", "--workdir", str(tmp_path), "--json", "--trials", "20")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["winners"][0]["feasible"]
    assert result["winners"][0]["params"] < result["teacher"]["params"]
    shown = json.loads(nas("spaces", "show", space, "--json").stdout)
    assert shown["n_candidates"] == 256
    assert [stage["name"] for stage in shown["stages"]] == ["first", "second", "third", "fourth"]


def outcome(name: str, folder: Path) -> dict[str, Any]:
    """What an example's `main` returns, run in a folder of its own."""
    code = f"import json, runpy; print(json.dumps(runpy.run_path({str(EXAMPLES / name)!r})['main']()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_example_has_fewer_than_100_lines() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path.name


@pytest.mark.slow
def test_the_cnn_loses_at_most_one_percent_accuracy_at_a_third_of_its_size(home: Path, tmp_path: Path) -> None:
    found = outcome("01_cnn.py", tmp_path)
    assert found["smaller"] >= 3
    assert found["of the winner"] >= found["accuracy of the teacher"] - 0.01


@pytest.mark.slow
def test_the_vision_transformer_shrinks_and_keeps_its_accuracy(home: Path, tmp_path: Path) -> None:
    found = outcome("02_transformer.py", tmp_path)
    assert found["smaller"] > 1.1
    assert found["of the winner"] >= found["accuracy of the teacher"] - 0.03


@pytest.mark.slow
def test_the_diffusion_transformer_shrinks_and_keeps_its_loss(home: Path, tmp_path: Path) -> None:
    found = outcome("03_dit.py", tmp_path)
    assert found["smaller"] > 1.1
    assert found["of the winner"] <= found["loss of the teacher"] * 1.1


@pytest.mark.slow
def test_an_own_block_is_chosen(home: Path, tmp_path: Path) -> None:
    found = outcome("04_own_block.py", tmp_path)
    assert found["smaller"] > 1.2
    assert any(str(choice).startswith("gated") for choice in found.values())


@pytest.mark.slow
def test_an_own_optimizer_keeps_the_contract_and_finds_what_the_default_does(home: Path, tmp_path: Path) -> None:
    found = outcome("05_own_optimizer.py", tmp_path)
    assert found["frugal"] <= 1.1 * found["eps_gp"]


@pytest.mark.slow
def test_own_metric_cost_and_rule_all_hold(home: Path, tmp_path: Path) -> None:
    found = outcome("06_own_metric_and_bounds.py", tmp_path)
    assert found["lost probability"] <= 0.02
    assert found["kilobytes"] <= 0.6 * found["of the teacher's"]
    assert sum(choice == "bypass" for choice in found.values()) <= 1
