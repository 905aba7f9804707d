"""Names to objects: built-in entries, third parties' entry points, and a hint when a name is wrong."""

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from nas.errors import InputError, did_you_mean
from nas.fingerprint import USER_PREFIX, code_identity
from nas.user_code import user_code

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name, loaded at first use, so that listing names imports nothing.

    Args:
        kind: what an entry is, in the singular, as error messages say it ("optimizer").
        group: entry-point group that third parties add to ("nas.optimizers").
        builtin: name -> "module:attribute" of the entries that ship with the toolkit.
        about: name -> one line on each of them.
    """

    def __init__(self, kind: str, group: str, builtin: dict[str, str] | None = None, about: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._group = group
        self._targets = dict(builtin or {})
        self._loaded: dict[str, T] = {}
        self._about = dict(about or {})

    def add(self, name: str, entry: T) -> None:
        """Registers `entry` under `name`; a name that is taken by another object is an error. A file that is run or loaded again replaces its own."""
        if not _same(self._loaded.get(name, entry), entry) or (name in self._targets and name not in self._loaded):
            raise InputError(f"{self.kind} '{name}' is registered already; choose another name")
        self._loaded[name] = entry

    def names(self) -> list[str]:
        """All known names, sorted; nothing is imported."""
        return sorted({*self._targets, *self._loaded, *(point.name for point in entry_points(group=self._group))})

    def about(self, name: str) -> str:
        """One line on an entry; of a third party's, which package it is from. Nothing is imported."""
        if name in self._about or name in self._targets or name in self._loaded:
            return self._about.get(name, "")
        packages = [point.dist.name for point in entry_points(group=self._group, name=name) if point.dist is not None]
        return f"from package {packages[0]}" if packages else ""

    def check(self, name: str) -> str:
        """The name itself, or an error with the nearest known one; nothing is imported."""
        if name not in self.names():
            raise InputError(f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}")
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            InputError: the name is unknown (with the nearest known one), or its module cannot be imported.
            UserCodeError: what a third party's module raises.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> T:
        self.check(name)
        if name in self._targets:
            return load_target(self._targets[name])
        (point, *_) = entry_points(group=self._group, name=name)
        what = f"{self.kind} '{name}' (entry point {point.value})"
        try:
            with user_code(what):
                return cast(T, point.load())
        except (ImportError, AttributeError) as error:
            raise InputError(f"{what} cannot be loaded: {error}") from error


def _same(one: object, other: object) -> bool:
    """Whether both are one object, two runs of one definition, or one definition loaded under two module names."""
    if one is other:
        return True
    places = [(str(getattr(thing, "__module__", "")).removeprefix(USER_PREFIX), getattr(thing, "__qualname__", None)) for thing in (one, other)]
    return None not in places[0] and (places[0] == places[1] or (places[0][1] == places[1][1] and code_identity(one) == code_identity(other)))


def load_target(target: str) -> T:  # type: ignore[type-var]  # the caller knows what stands there
    """The object that "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return cast(T, getattr(importlib.import_module(module), attribute))
