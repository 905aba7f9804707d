"""A hash of what Python code does, so that what was computed with a user's function is not taken for the work of its next version.

It does not depend on where the code stands: the module's name, comments, docstrings and layout are left out.
"""

import ast
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Any

USER_PREFIX = "nas_user_"
"""Begins the module names of files that `--space FILE.py:function` loads."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_OWN = ("nas.", "torch.", "builtins.", "numpy.", "diffusers.", "transformers.", "dataclasses.", "functools.")
"""Code of these is told by its version, not its text."""
_NOT_CODE = ("__module__", "__doc__", "__firstlineno__", "__static_attributes__", "does", "fits")
"""Attributes of classes that say where they stand, or are words for people (those of `nas.blocks.recipe`)."""


def code_identity(thing: Any) -> str:
    """The qualified name of a function, class or callable object, and a hash of its code and of the code and constants of its own modules it uses."""
    if isinstance(thing, functools.partial):
        return f"partial({code_identity(thing.func)}, {_text(thing.args)}, {_text(thing.keywords)})"
    if isinstance(thing, types.MethodType):
        return f"{code_identity(thing.__self__)}.{code_identity(thing.__func__)}"
    kind = thing if isinstance(thing, types.FunctionType | types.BuiltinFunctionType | type) else type(thing)
    state = "" if kind is thing else f":{_state(thing)}"
    if _is_own(kind):
        return f"{kind.__module__}.{kind.__qualname__}{state}"
    found: list[str] = []
    _collect(kind, found, {})
    return f"{kind.__qualname__}{state}#{hashlib.sha256(repr(found).encode()).hexdigest()[:16]}"


def _state(thing: Any) -> Any:
    return {name: _text(value) for name, value in sorted(vars(thing).items())} if hasattr(thing, "__dict__") else _slots(thing)


def _slots(thing: Any) -> Any:
    """What its own words for itself say, else its slots: the words of `object` are an address."""
    own: Any = type(thing)
    if own.__repr__ is not object.__repr__:
        return repr(thing)
    names = {name for kind in own.__mro__ for name in getattr(kind, "__slots__", ())}
    return {name: _text(getattr(thing, name, None)) for name in sorted(names)}


def _is_own(thing: Any) -> bool:
    return f"{getattr(thing, '__module__', '')}.".startswith(_OWN)


def _collect(thing: Any, found: list[str], seen: dict[int, int]) -> None:
    """Adds the code of a function or class, and of what it refers to, in an order that follows from the code alone."""
    if _is_own(thing):
        found.append(f"{thing.__module__}.{thing.__qualname__}")
    elif id(thing) in seen:
        found.append(f"again {seen[id(thing)]}")
    else:
        seen[id(thing)] = len(seen)
        for name, value in _parts_of_class(thing) if isinstance(thing, type) else _parts_of_function(thing):
            _refer(name, value, found, seen)


def _parts_of_class(kind: type) -> Iterator[tuple[str, Any]]:
    yield "class", kind.__qualname__
    for name, value in sorted(vars(kind).items()):
        if name not in _NOT_CODE:
            for member in (value.fget, value.fset) if isinstance(value, property) else (value,):
                function = getattr(member, "__func__", getattr(member, "func", member))
                if not _written_by_dataclass(kind, function):
                    yield name, function
    for base in kind.__bases__:
        yield "base", base


def _written_by_dataclass(kind: type, function: Any) -> bool:
    """Whether it follows from the fields, such as `__init__`."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return hasattr(kind, "__dataclass_params__") and code is not None and code.co_filename == "<string>" and code.co_name.startswith("__")


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield "def", _source(function.__code__)
    yield "defaults", function.__defaults__
    yield "keyword defaults", function.__kwdefaults__
    yield from zip(function.__code__.co_freevars, (_held(cell) for cell in function.__closure__ or ()), strict=True)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__ and not name.startswith("__"):
            yield name, function.__globals__[name]


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _refer(name: str, value: Any, found: list[str], seen: dict[int, int]) -> None:
    if isinstance(value, types.FunctionType | type):
        found.append(name)
        _collect(value, found, seen)
    elif (text := _text(value)) is not None:
        found.append(f"{name}={text}")


def _text(value: Any) -> str | None:
    """Constants, containers of them and arrays as text; None for all else."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_text(part) for part in value]
        return None if None in parts else repr(sorted(map(str, parts)) if isinstance(value, set | frozenset) else parts)
    if isinstance(value, dict):
        pairs = [(repr(key), _text(part)) for key, part in value.items()]
        return None if any(part is None for _, part in pairs) else repr(sorted(map(str, pairs)))
    if isinstance(value, types.ModuleType | type):
        return None
    if hasattr(value, "state_dict"):
        return _text(dict(value.state_dict()))
    if hasattr(value, "detach") and not value.is_meta:
        value = value.detach().cpu().double().numpy()
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    return None


def _names(code: types.CodeType) -> set[str]:
    """Global names and attributes that the code mentions, inner functions included."""
    return set(code.co_names).union(*(_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)))


@functools.lru_cache(4096)
def _source(code: types.CodeType) -> str:
    """The function's text without comments, docstrings and layout; the bytecode of a lambda, or of one whose text is not there."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(code))).body
    except (OSError, SyntaxError, TypeError, ValueError, IndexError):
        return _bytecode(code)
    if not isinstance(tree, ast.FunctionDef) or tree.name != code.co_name:
        return _bytecode(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _bytecode(code: types.CodeType) -> str:
    """Bytecode, names and constants, those of inner functions included; positions in the file left out."""
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else _text(c) or repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
