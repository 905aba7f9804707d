import doctest
import importlib
import pkgutil

import pytest

import nas

MODULES = [name for _, name, _ in pkgutil.walk_packages(nas.__path__, "nas.") if not name.endswith("__main__")]
EXTRAS = {"nas.ray_workers": "ray"}
"""Modules that cannot be imported without an extra, and what it brings."""


@pytest.mark.parametrize("name", MODULES)
def test_every_example_in_a_docstring_is_true(name: str) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    assert doctest.testmod(importlib.import_module(name)).failed == 0
