"""Emoji drawings with names and families, read from Noto Color Emoji, and photographs from a folder.

A *family* is the unit of independence: skin-tone, gender and hair variants of one emoji, and drawings that look alike,
belong to one family, and a family lies wholly in one split.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image

CELL = 136  # width of Noto's glyph bitmaps; their 128 rows are centred in a square cell
VARIATION = 0xFE0F  # the variation selector is not part of the font's sequences
LOOK_ALIKE = 10.0  # root mean square difference (of 255) of 16-pixel thumbnails below which two drawings are one family
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (250, 214, 70),
    "lime": (160, 210, 60),
    "green": (50, 150, 70),
    "teal": (30, 150, 150),
    "cyan": (110, 215, 235),
    "blue": (50, 100, 220),
    "navy": (25, 35, 95),
    "violet": (135, 75, 200),
    "pink": (245, 140, 185),
    "brown": (125, 80, 50),
    "cream": (248, 236, 208),
    "white": (250, 250, 250),
    "grey": (140, 142, 146),
    "black": (25, 25, 28),
}  # RGB
PERSON = re.compile(r"^(man|woman|men|women|person|people|boy|girl|child|prince|princess|merman|mermaid|mr|mrs|mx)$")


@dataclass(frozen=True, slots=True)
class Emoji:
    """One drawing: its name, its kind (Unicode's subgroup), its family, commonest colours and RGBA pixels `(136, 136, 4)` uint8."""

    name: str
    kind: str
    family: int
    colours: tuple[str, ...]
    pixels: np.ndarray


def read_emoji(font: Path, names: Path) -> list[Emoji]:
    """All emoji of a CBDT `font` that Unicode's emoji-test.txt (`names`) lists as fully qualified, in its order."""
    drawn = TTFont(font, lazy=True)
    cmap, bitmaps, ligatures = drawn.getBestCmap(), drawn["CBDT"].strikeData[0], _ligatures(drawn)
    found: list[tuple[str, str, np.ndarray]] = []
    for points, name, kind in _listed(names):
        glyphs = [cmap.get(p) for p in points if p != VARIATION]
        glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(tuple(glyphs))
        if glyph is not None and glyph in bitmaps:
            found.append((name, kind, _square(bitmaps[glyph].imageData)))
    families = _families([name for name, _, _ in found], [pixels for _, _, pixels in found])
    return [Emoji(n, k, f, colours_of(p), p) for (n, k, p), f in zip(found, families, strict=True)]


def read_photographs(folder: Path, longest: int = 1600) -> dict[str, np.ndarray]:
    """Name to RGB `(H, W, 3)` uint8 of every picture in `folder`, halved until no side exceeds `longest`."""
    photographs = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"}):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        factor = 1
        while max(picture.size) > longest * factor:
            factor *= 2
        photographs[path.name] = np.asarray(picture.reduce(factor))
    return photographs


def split_families(families: Sequence[int], held_out: int, seed: int) -> dict[int, int]:
    """Family to split: 1 for `held_out` families (measure), 2 for as many (verify), 0 for the rest (training, fit)."""
    order = np.random.default_rng(seed).permutation(sorted(set(families)))
    return {int(f): 1 if i < held_out else 2 if i < 2 * held_out else 0 for i, f in enumerate(order)}


def colours_of(pixels: np.ndarray) -> tuple[str, ...]:
    """The one or two commonest named colours of RGBA pixels, commonest first; the second only above 15 %."""
    opaque = pixels[::4, ::4].reshape(-1, 4).astype(np.int64)
    opaque = opaque[opaque[:, 3] > 127, :3]
    distance = ((opaque[:, None] - np.asarray(list(COLOURS.values()))) ** 2).sum(-1)
    share = np.bincount(distance.argmin(1), minlength=len(COLOURS)) / max(len(opaque), 1)
    first, second = np.argsort(-share, kind="stable")[:2]
    names = list(COLOURS)
    return (names[first], names[second]) if share[second] > 0.15 else (names[first],)


def _listed(names: Path) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """Code points, name and subgroup of every fully qualified line of emoji-test.txt."""
    kind = ""
    for line in names.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            kind = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line:
            points, rest = line.split(";", 1)
            yield tuple(int(p, 16) for p in points.split()), rest.split("#", 1)[1].split(maxsplit=2)[2].lower(), kind


def _ligatures(font: TTFont) -> dict[tuple[str, ...], str]:
    """Glyph sequence to ligature glyph, over all ligature lookups (the font draws one whole sequence by one glyph)."""
    table: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for sub in lookup.SubTable:
            for first, entries in getattr(sub, "ligatures", {}).items():
                for entry in entries:
                    table[(first, *entry.Component)] = entry.LigGlyph
    return table


def _square(data: bytes) -> np.ndarray:
    """The bitmap's RGBA pixels, centred in a transparent square cell."""
    with Image.open(io.BytesIO(data)) as opened:
        drawing = opened.convert("RGBA")
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(drawing, ((CELL - drawing.width) // 2, (CELL - drawing.height) // 2))
    return np.asarray(cell)


def _families(names: Sequence[str], pixels: Sequence[np.ndarray]) -> list[int]:
    """A family number for each drawing: equal stripped names or look-alike thumbnails are joined (union-find)."""
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, name in enumerate(names):
        parent[root(i)] = root(first.setdefault(_stem(name), i))
    thumbs = np.stack([_thumbnail(p) for p in pixels])
    for i in range(1, len(names)):
        near = np.sqrt(((thumbs[:i] - thumbs[i]) ** 2).mean(axis=1)) < LOOK_ALIKE
        for j in np.flatnonzero(near):
            parent[root(i)] = root(int(j))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(names))]


def _stem(name: str) -> str:
    """The name without skin tone, hair, gender and the clock's hour: what all variants share."""
    base = name if name.startswith(("flag", "keycap")) else name.split(":", 1)[0]
    if "o\u2019clock" in base or "-thirty" in base:
        return "clock"
    return " ".join("person" if PERSON.match(word) else word for word in base.split())


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """The drawing over mid-grey at 16 x 16, flat float32."""
    cell = Image.new("RGBA", (CELL, CELL), (128, 128, 128, 255))
    cell.alpha_composite(Image.fromarray(pixels))
    return np.asarray(cell.convert("RGB").resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel()
