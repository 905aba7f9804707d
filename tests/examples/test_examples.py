import json
from pathlib import Path

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
