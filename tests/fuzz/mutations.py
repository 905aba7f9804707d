"""Random damage to a file's content: bytes for any file, values for JSON and TOML."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_VALUES = (None, True, -1, 0, 2**70, 10**400, -0.5, 1e308, "", "x" * 500, "../../etc/passwd", "/etc/passwd", "a\0b", [], {}, [[]], {"a": 1}, "\ud800")


def damaged_bytes(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The content cut, flipped, overwritten, doubled in part, or lengthened."""
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            at = chance.randrange(len(changed) + 1)
            length = chance.choice([1, 1, 2, 4, 8, 64])
            kind = chance.randrange(6)
            if kind == 0 and changed:
                changed[at % len(changed)] ^= 1 << chance.randrange(8)
            elif kind == 1:
                changed[at : at + length] = chance.randbytes(length)
            elif kind == 2:
                del changed[at:]
            elif kind == 3:
                changed[at:at] = changed[at // 2 : at // 2 + length]
            elif kind == 4:
                del changed[at : at + length]
            else:
                changed[at : at + length] = bytes([chance.choice([0, 255, 32, 34, 91, 123])]) * length
        yield bytes(changed)


def damaged_values(value: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """The JSON value with entries replaced by strange ones, removed, renamed, or nested where they do not belong."""
    chance = random.Random(seed)
    for _ in range(count):
        changed = json.loads(json.dumps(value))
        for _ in range(chance.choice([1, 1, 2, 4])):
            changed = _changed(changed, chance)
        yield changed


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        kind = chance.randrange(8)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[chance.choice(["", "x", key + key])] = value.pop(key)
        else:
            value[key] = _changed(value[key], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        kind = chance.randrange(8)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.append(value[at])
        else:
            value[at] = _changed(value[at], chance)
        return value
    return copy.deepcopy(chance.choice(_VALUES))
