"""Posters: one emoji on a two-colour ground, with its caption. An endless set with global structure.

A ground is plain, a gradient, two halves or a disc, in two of sixteen named colours. Captions are sets of words (no order): kind and
name words of the emoji, its two commonest colours (`yellow-subject`), the ground's pattern with its direction, and its two colours (`red-ground`,
`blue-mark`). The words that do not name the object mean the same for every object, also a held-out one.
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
    """Emoji number `index` on a random ground, at 84-97 % of the width, anywhere it fits."""
    pattern = list(PATTERNS)[rng.integers(len(PATTERNS))]
    mask, words = PATTERNS[pattern](rng)
    ground, mark = rng.choice(list(COLOURS), size=2, replace=False)
    tints = [np.clip(np.asarray(COLOURS[c]) + rng.normal(0, 8, 3), 0, 255) for c in (ground, mark)]
    canvas = Image.fromarray((tints[0] + mask[..., None] * (tints[1] - tints[0])).astype(np.uint8))
    side = int(rng.integers(54, CANVAS - 1))
    drawing = Image.fromarray(emoji[index].pixels).resize((side, side), Image.Resampling.BILINEAR)
    x, y = (int(v) for v in rng.integers(0, CANVAS - side + 1, 2))
    canvas.paste(drawing, (x, y), drawing)
    subject = tuple(f"{colour}-subject" for colour in emoji[index].colours)
    caption = (f"{ground}-ground", f"{mark}-mark", pattern, *words, *subject, *words_of(emoji[index]))
    return Poster(np.asarray(canvas.reduce(CANVAS // SIZE)), caption, index)


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
LAYOUT = ("level", "upright", "falling", "rising")


def _directed(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A coordinate of about unit range in one of four directions, and the word for lines of equal coordinate."""
    way = int(rng.integers(4))
    return (Y, X, (X - Y) / 1.4142, (X + Y) / 1.4142)[way], ("level", "upright", "falling", "rising")[way]


def _gradient(rng: np.random.Generator) -> Ground:
    coordinate, word = _directed(rng)
    span = (coordinate - coordinate.min()) / np.ptp(coordinate)
    return span if rng.random() < 0.5 else 1 - span, (word,)


def _halves(rng: np.random.Generator) -> Ground:
    coordinate, word = _directed(rng)
    edge = np.median(coordinate) + rng.uniform(-0.15, 0.15)
    sign = 1 if rng.random() < 0.5 else -1
    return np.clip(sign * (coordinate - edge) * 60 + 0.5, 0, 1), (word,)


def _sun(rng: np.random.Generator) -> Ground:
    centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.3, 0.48)
    return np.clip((radius - np.hypot(X - centre[0], Y - centre[1])) * 60 + 0.5, 0, 1), ()


def _plain(rng: np.random.Generator) -> Ground:
    del rng
    return np.zeros((CANVAS, CANVAS)), ()


PATTERNS: dict[str, Callable[[np.random.Generator], Ground]] = {
    "gradient": _gradient,
    "halves": _halves,
    "sun": _sun,
    "plain": _plain,
}
