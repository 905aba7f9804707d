"""What code is called in a key does not depend on how its file was loaded."""

import importlib
from pathlib import Path

import pytest

from nas.fingerprint import code_identity
from nas.names import resolve_space

FILE = """
class Recipe:
    def build(self, teacher):
        return changed(teacher)

def changed(block):
    return block * {factor}

def make_space():
    return Recipe()
"""


def test_a_recipe_is_the_same_whether_its_file_is_imported_or_named_by_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_recipes.py"
    file.write_text(FILE.format(factor=2))
    monkeypatch.syspath_prepend(tmp_path)
    named = code_identity(resolve_space(f"{file}:make_space"))
    imported = importlib.import_module("own_recipes")
    assert code_identity(imported.Recipe()) == named
    file.write_text(FILE.format(factor=30))
    assert code_identity(resolve_space(f"{file}:make_space")) != named
