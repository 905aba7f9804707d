"""Training state in one safetensors file: tensors as such, all else as JSON in its header. No pickle, nothing half written.

A file is never in memory as a whole: it is written from the tensors themselves (copied to the CPU if they are elsewhere), read one by one through a map.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas.data import hash_tensors
from nas.errors import DamagedFile, InputError
from nas.files import check_plain, parse_json, whole_file

LIMIT = 1 << 36
"""Bytes of a checkpoint that are read at most."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes nested dicts, lists and tuples of tensors, numbers, strings, booleans and None (a `state_dict`, an optimizer's too) exactly.

    Raises:
        InputError: the file cannot be written, or the state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    plan = json.dumps(_plan(state, tensors, "state"))
    tensors = _apart(tensors)
    header = {"state": plan, "sha256": _hash(plan, hash_tensors(tensors))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft:
            save_file(tensors, draft, header)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write checkpoint {path}: {reason}; the one before stands; free some space and go on") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, equal to the last bit, on the CPU.

    Raises:
        DamagedFile: the file is cut, changed, or of another kind.
    """
    check_plain(path, LIMIT)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        content = hash_tensors(tensors)
        if header["sha256"] not in (_hash(header["state"], content), content):  # earlier versions hashed the tensors alone
            raise DamagedFile(f"checkpoint {path} is damaged (its hash differs); remove it to start afresh")
        state = _rebuilt(parse_json(header["state"], f"checkpoint {path}"), tensors)
        if not isinstance(state, dict):
            raise TypeError("it must hold a dict")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"checkpoint {path} is damaged or no checkpoint of this toolkit: {error}; remove it to start afresh") from error
    return state


def _hash(plan: str, content: str) -> str:
    return hashlib.sha256(f"{content} {plan}".encode()).hexdigest()


def _plan(value: Any, tensors: dict[str, Tensor], where: str) -> list[Any]:
    """`[kind, content]`, the tensors themselves put aside under running numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return ["tensor", name]
    if isinstance(value, Mapping):
        return ["dict", [[_key(key, where), _plan(item, tensors, f"{where}.{key}")] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", [_plan(item, tensors, f"{where}[{n}]") for n, item in enumerate(value)]]
    if isinstance(value, int) and abs(value) >= 1 << 63:  # states of numpy's generators have 128 bits; JSON is read up to 64
        return ["integer", str(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return ["value", value]
    raise InputError(f"checkpoint: {where} must be a tensor, number, string, list or dict, got {type(value).__name__}")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with its memory to itself, as safetensors wants it; copied only where they are not so already."""
    found, seen = {}, set()
    for name, value in tensors.items():
        here = value.cpu().contiguous()
        memory = here.untyped_storage()
        found[name] = here if memory.nbytes() == here.nbytes and memory.data_ptr() not in seen else here.clone()
        seen.add(memory.data_ptr())
    return found


def _key(key: Any, where: str) -> str | int:
    if isinstance(key, str | int):
        return key
    raise InputError(f"checkpoint: {where} must have strings and integers as keys, got {type(key).__name__}")


def _rebuilt(plan: Any, tensors: Mapping[str, Tensor]) -> Any:
    kind, content = plan
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _rebuilt(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_rebuilt(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "integer":
        return int(content)
    if kind == "value":
        return content
    raise ValueError(f"unknown kind {kind!r:.40}")
