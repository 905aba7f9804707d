"""Posters: one emoji on a patterned two-colour ground, with its caption. An endless set with global structure.

A ground is drawn by ten patterns in sixteen named colours with a random phase, so that what lies under noise in one
corner can be read off another corner, or off the caption. Captions are sets of words (no order): kind and name words
of the emoji, its size, place and two commonest colours (`yellow-subject`), pattern words, and the ground's two colours
(`red-ground`, `blue-mark`). The words that do not name the object mean the same for every object, also a held-out one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nas.spaces.tocsr.training.pictures import COLOURS, Emoji

SIZE = 32  # pixels a side
CANVAS = 64  # what is drawn, then halved
TOKENS = 16
X, Y = np.meshgrid((np.arange(CANVAS) + 0.5) / CANVAS, (np.arange(CANVAS) + 0.5) / CANVAS)


@dataclass(frozen=True, slots=True)
class Poster:
    """Pixels `(32, 32, 3)` uint8, the words of the caption, and which emoji it shows."""

    pixels: np.ndarray
    words: tuple[str, ...]
    emoji: int


def draw_poster(emoji: Sequence[Emoji], index: int, rng: np.random.Generator) -> Poster:
    """Emoji number `index` on a random ground, at 62-98 % of the width, anywhere it fits, mirrored half of the time."""
    pattern = list(PATTERNS)[rng.integers(len(PATTERNS))]
    mask, words = PATTERNS[pattern](rng)
    ground, mark = rng.choice(list(COLOURS), size=2, replace=False)
    tints = [np.clip(np.asarray(COLOURS[c]) + rng.normal(0, 8, 3), 0, 255) for c in (ground, mark)]
    canvas = Image.fromarray((tints[0] + mask[..., None] * (tints[1] - tints[0])).astype(np.uint8))
    side = int(rng.integers(40, CANVAS - 1))
    drawing = Image.fromarray(emoji[index].pixels).resize((side, side), Image.Resampling.BILINEAR)
    mirrored = rng.random() < 0.5
    if mirrored:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x, y = (int(v) for v in rng.integers(0, CANVAS - side + 1, 2))
    canvas.paste(drawing, (x, y), drawing)
    place = (_place_word(x + side / 2, ("left", "centre", "right")), _place_word(y + side / 2, ("high", "middle", "low")))
    layout = (_size_word(side), *place, *(("mirrored",) if mirrored else ()))
    subject = tuple(f"{colour}-subject" for colour in emoji[index].colours)
    caption = (f"{ground}-ground", f"{mark}-mark", pattern, *words, *layout, *subject, *words_of(emoji[index]))
    return Poster(np.asarray(canvas.reduce(CANVAS // SIZE)), caption, index)


def _size_word(side: int) -> str:
    return ("small", "medium-sized", "large")[min(2, (side - 40) // 8)]


def _place_word(middle: float, words: tuple[str, str, str]) -> str:
    return words[1 + int(middle > CANVAS / 2 + 3) - int(middle < CANVAS / 2 - 3)]


def words_of(emoji: Emoji) -> tuple[str, ...]:
    """The emoji's kind and at most six words of its name, without repeats."""
    words = dict.fromkeys([emoji.kind, *re.findall(r"[a-z0-9]+", emoji.name.replace("\u2019", ""))])
    return tuple(words)[:7]


def vocabulary(emoji: Iterable[Emoji], least: int = 2) -> dict[str, int]:
    """Word to id over the words of at least `least` drawings and all ground words; id 0 is padding and the empty text."""
    counts = Counter(word for e in emoji for word in words_of(e))
    fixed = [*PATTERNS, *LAYOUT, *(f"{c}-{part}" for c in COLOURS for part in ("ground", "mark", "subject"))]
    words = dict.fromkeys([*fixed, *sorted(w for w, n in counts.items() if n >= least)])
    return {"": 0} | {word: i + 1 for i, word in enumerate(words)}


def tokens_of(words: Iterable[str], ids: dict[str, int]) -> np.ndarray:
    """Ids `(16,)` int64 of the known words, padded with 0."""
    known = [ids[w] for w in words if w in ids][:TOKENS]
    return np.asarray(known + [0] * (TOKENS - len(known)), dtype=np.int64)


Ground = tuple[np.ndarray, tuple[str, ...]]
LAYOUT = (
    *("level", "upright", "falling", "rising", "wide", "narrow"),
    *("small", "medium-sized", "large", "left", "centre", "right", "high", "middle", "low", "mirrored"),
)


def _wave(coordinate: np.ndarray, rng: np.random.Generator, periods: tuple[float, float] = (3.0, 6.0)) -> Ground:
    """A square wave along `coordinate` at one of two spacings, softened at its edges, at a random phase."""
    narrow = int(rng.integers(2))
    wave = np.sin(2 * np.pi * (coordinate * periods[narrow] + rng.random()))
    return np.clip(wave * 4 + 0.5, 0, 1), (("wide", "narrow")[narrow],)


def _directed(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A coordinate of about unit range in one of four directions, and the word for lines of equal coordinate."""
    way = int(rng.integers(4))
    return (Y, X, (X - Y) / 1.4142, (X + Y) / 1.4142)[way], ("level", "upright", "falling", "rising")[way]


def _stripes(rng: np.random.Generator) -> Ground:
    coordinate, word = _directed(rng)
    mask, words = _wave(coordinate, rng)
    return mask, (*words, word)


def _checks(rng: np.random.Generator) -> Ground:
    periods = (2.0, 4.0)[int(rng.integers(2))]
    waves = [np.sin(2 * np.pi * (c * periods + rng.random())) for c in (X, Y)]
    return np.clip(waves[0] * waves[1] * 8 + 0.5, 0, 1), ("wide" if periods == 2.0 else "narrow",)


def _dots(rng: np.random.Generator) -> Ground:
    periods = (3.0, 6.0)[int(rng.integers(2))]
    waves = [np.cos(2 * np.pi * (c * periods + rng.random())) for c in (X, Y)]
    return np.clip((waves[0] + waves[1] - 0.6) * 4, 0, 1), ("wide" if periods == 3.0 else "narrow",)


def _rings(rng: np.random.Generator) -> Ground:
    centre = rng.uniform(0.25, 0.75, 2)
    return _wave(np.hypot(X - centre[0], Y - centre[1]), rng)


def _rays(rng: np.random.Generator) -> Ground:
    centre = rng.uniform(0.25, 0.75, 2)
    return _wave(np.arctan2(Y - centre[1], X - centre[0]) / (2 * np.pi), rng, (6.0, 12.0))


def _gradient(rng: np.random.Generator) -> Ground:
    coordinate, word = _directed(rng)
    span = (coordinate - coordinate.min()) / np.ptp(coordinate)
    return span if rng.random() < 0.5 else 1 - span, (word,)


def _halves(rng: np.random.Generator) -> Ground:
    coordinate, word = _directed(rng)
    edge = np.median(coordinate) + rng.uniform(-0.15, 0.15)
    sign = 1 if rng.random() < 0.5 else -1
    return np.clip(sign * (coordinate - edge) * 60 + 0.5, 0, 1), (word,)


def _frame(rng: np.random.Generator) -> Ground:
    width = rng.uniform(0.06, 0.16)
    inside = np.minimum(np.minimum(X, 1 - X), np.minimum(Y, 1 - Y))
    return np.clip((width - inside) * 60 + 0.5, 0, 1), ()


def _sun(rng: np.random.Generator) -> Ground:
    centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.3, 0.48)
    return np.clip((radius - np.hypot(X - centre[0], Y - centre[1])) * 60 + 0.5, 0, 1), ()


def _plain(rng: np.random.Generator) -> Ground:
    del rng
    return np.zeros((CANVAS, CANVAS)), ()


PATTERNS: dict[str, Callable[[np.random.Generator], Ground]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "rays": _rays,
    "gradient": _gradient,
    "halves": _halves,
    "frame": _frame,
    "sun": _sun,
    "plain": _plain,
}
