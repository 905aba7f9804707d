"""What code is called in a key does not depend on how its file was loaded."""

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nas.blocks.recipe import recipe_of
from nas.errors import InputError
from nas.fingerprint import code_identity
from nas.names import BLOCKS, function_of_file

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
    named = code_identity(function_of_file(file, "make_space")())
    imported = importlib.import_module("own_recipes")
    assert code_identity(imported.Recipe()) == named
    file.write_text(FILE.format(factor=30))
    assert code_identity(function_of_file(file, "make_space")()) != named


RECIPE = """
from dataclasses import dataclass
from torch import nn
from nas.blocks.recipe import BlockRecipe, block

class Layer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.line = nn.Linear(inner, inner)

@block("fingerprinted")
@dataclass(frozen=True)
class Own(BlockRecipe):
    \"\"\"{words}\"\"\"
    inner: int = 3

    def build(self, teacher):
        print(type(teacher).__name__)  # {words}
        return Layer({inner})

def make_space():
    return Own()
"""


def load_as(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered() -> Any:
    yield
    BLOCKS._loaded.pop("fingerprinted", None)


@pytest.mark.usefixtures("registered")
def test_a_recipe_has_one_spec_under_every_module_name_and_is_loaded_by_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_block.py"
    file.write_text(RECIPE.format(words="A layer.", inner="self.inner"))
    named: Any = function_of_file(file, "make_space")()
    for name in ("own_block", "package.own_block", "__main__.elsewhere"):
        imported = load_as(name, file, monkeypatch)  # registers the same recipe again
        assert imported.Own().spec == named.spec
        assert isinstance(recipe_of(named.spec), imported.Own)


@pytest.mark.usefixtures("registered")
def test_words_and_comments_leave_the_key_code_and_constants_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = []
    for number, (words, inner) in enumerate([("A layer.", "self.inner"), ("Another word.", "self.inner"), ("A layer.", "self.inner + 1")]):
        BLOCKS._loaded.pop("fingerprinted", None)
        file = tmp_path / f"version{number}.py"
        file.write_text(RECIPE.format(words=words, inner=inner))
        specs.append(load_as(f"version{number}", file, monkeypatch).Own().spec)
    assert specs[0] == specs[1] != specs[2]


@pytest.mark.usefixtures("registered")
def test_another_recipe_of_a_taken_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, inner in (("first_file", "self.inner"), ("second_file", "self.inner * 2")):
        (tmp_path / f"{name}.py").write_text(RECIPE.format(words="A layer.", inner=inner))
    load_as("first_file", tmp_path / "first_file.py", monkeypatch)
    with pytest.raises(InputError, match="block 'fingerprinted' is registered already"):
        load_as("second_file", tmp_path / "second_file.py", monkeypatch)


WEIGHT = torch.tensor([1.0, 2.0])
ORDERS = [1, 2]


def weighted(teacher: torch.Tensor, candidate: torch.Tensor, power: int = 2) -> torch.Tensor:
    def inside(value: torch.Tensor) -> torch.Tensor:
        return (value * WEIGHT).abs() ** power

    return sum((inside(teacher - candidate) ** order for order in ORDERS), torch.zeros(())).flatten(1).mean(1)


def test_arguments_arrays_and_lists_that_a_divergence_uses_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_identity(weighted)
    assert code_identity(functools.partial(weighted, power=1)) != code_identity(functools.partial(weighted, power=3))
    monkeypatch.setattr(sys.modules[__name__], "ORDERS", [1, 3])
    other_orders = code_identity(weighted)
    monkeypatch.setattr(sys.modules[__name__], "WEIGHT", torch.tensor([1.0, 3.0]))
    assert len({before, other_orders, code_identity(weighted)}) == 3
    monkeypatch.undo()
    assert code_identity(weighted) == before


class Weighted:
    """Two distances that share what they weigh with."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def near(self, x: float) -> float:
        return self.weight * x

    def far(self, x: float) -> float:
        return self.weight * x * x


def test_methods_differ_by_their_code_and_by_what_they_are_bound_to() -> None:
    prints = [code_identity(method) for method in (Weighted(1.0).near, Weighted(1.0).far, Weighted(2.0).near)]
    assert len(set(prints)) == 3
    assert code_identity(Weighted(1.0).near) == prints[0]


class Slotted:
    """A callable without a dictionary or words of its own."""

    __slots__ = ("weight",)

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, x: float) -> float:
        return self.weight * x


def test_objects_with_slots_are_told_by_what_they_hold_and_not_by_where_they_are() -> None:
    one, same, other = Slotted(1.0), Slotted(1.0), Slotted(2.0)
    assert code_identity(one) == code_identity(same) != code_identity(other)
