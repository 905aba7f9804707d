"""A hash of what Python code does, so that what was computed with a user's function is not taken for the work of its next version."""

import hashlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

USER_PREFIX = "nas_user_"
"""Begins the module names of files that `--space FILE.py:function` loads."""

_PLAIN = (type(None), bool, int, float, str, bytes)
_OWN = ("nas.", "torch.", "builtins", "numpy", "diffusers.", "transformers.")
"""Code of these is told by its version, not its text."""


def code_identity(thing: Any) -> str:
    """The qualified name of a function, class or callable object, and a hash of its code and of the code and constants of its own modules it uses."""
    kind = thing if isinstance(thing, types.FunctionType | type) else type(thing)
    if isinstance(thing, types.FunctionType | type):
        name = f"{_module(thing)}.{thing.__qualname__}"
    else:
        name = f"{_module(kind)}.{kind.__qualname__}:{vars(thing) if hasattr(thing, '__dict__') else thing!r}"
    if name.startswith(_OWN):
        return name
    parts: dict[str, str] = {}
    _collect(kind, parts)
    return f"{name}#{hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:16]}"


def _module(thing: Any) -> str:
    """The name of the file that holds the code, whether it was imported, run, or loaded by `--space FILE.py`."""
    name = str(getattr(thing, "__module__", ""))
    if name == "__main__":
        return Path(getattr(sys.modules[name], "__file__", None) or name).stem
    return name.removeprefix(USER_PREFIX)


def _collect(thing: Any, parts: dict[str, str]) -> None:
    """Adds the code of a function or class, and of what it refers to, by name."""
    key = f"{_module(thing)}.{getattr(thing, '__qualname__', '')}"
    if key in parts or key.startswith(_OWN):
        return
    parts[key] = ""
    if isinstance(thing, types.FunctionType):
        parts[key] = _code(thing.__code__) + repr([value for value in thing.__defaults__ or () if isinstance(value, _PLAIN)])
        closed = inspect.getclosurevars(thing)
        for name, value in sorted({**closed.globals, **closed.nonlocals}.items()):
            _refer(f"{key}:{name}", value, parts)
    elif isinstance(thing, type):
        for name, value in sorted(vars(thing).items()):
            if name == "__module__":
                continue
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            _refer(f"{key}:{name}", function, parts)
        for base in thing.__bases__:
            _collect(base, parts)


def _refer(key: str, value: Any, parts: dict[str, str]) -> None:
    if isinstance(value, types.FunctionType | type):
        _collect(value, parts)
    elif isinstance(value, (*_PLAIN, tuple)):
        parts[key] = repr(value)


def _code(code: types.CodeType) -> str:
    """Bytecode, names and constants, those of inner functions included; positions in the file left out."""
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
