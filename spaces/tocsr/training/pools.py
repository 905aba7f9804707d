"""Pools of posters as latents: the unit in which training data is drawn, each a function of seed and number."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from torch import Tensor

from nas.spaces.tocsr.training.codec import LinearCodec
from nas.spaces.tocsr.training.pictures import Emoji
from nas.spaces.tocsr.training.posters import draw_poster, tokens_of

_drawing: Callable[[int], tuple[Tensor, Tensor]]  # a worker process draws from this


def draw_batch(emoji: list[Emoji], chosen: np.ndarray, codec: LinearCodec, ids: dict[str, int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Latents `(n, 16, 8, 8)` and tokens `(n, 16)` of one poster of each chosen emoji."""
    posters = [draw_poster(emoji, int(i), rng) for i in chosen]
    tokens = torch.from_numpy(np.stack([tokens_of(p.words, ids) for p in posters]))
    images = torch.from_numpy(np.stack([p.pixels for p in posters])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([codec.encode(part) for part in torch.split(images, 256)]), tokens


def choose_emoji(emoji: list[Emoji], splits: dict[int, int], split: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices `(n,)`: families of a split uniformly (each once before any twice), then a member of each uniformly."""
    members: dict[int, list[int]] = {}
    for i, e in enumerate(emoji):
        if splits[e.family] == split:
            members.setdefault(e.family, []).append(i)
    families = list(members)
    rounds = [rng.permutation(len(families)) for _ in range(-(-n // len(families)))]
    return np.asarray([rng.choice(members[families[k]]) for k in np.concatenate(rounds)[:n]])


class Pools:
    """Pools of `size` posters of training families; with a `count` they come again and are kept on the device, without one they are endless."""

    def __init__(self, emoji: list[Emoji], splits: dict[int, int], codec: LinearCodec, ids: dict[str, int], *, size: int, count: int, seed: int) -> None:
        self.emoji, self.splits, self.codec, self.ids = emoji, splits, codec, ids
        self.size, self.count, self.seed = size, count, seed
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Latents and tokens of pool `number`, see `draw_batch`."""
        rng = np.random.default_rng((self.seed, number))
        return draw_batch(self.emoji, choose_emoji(self.emoji, self.splits, 0, self.size, rng), self.codec, self.ids, rng)

    def on(self, device: torch.device, number: int) -> tuple[Tensor, Tensor]:
        """The pool that a run meets as its number `number`."""
        number = number % self.count if self.count else number
        if number in self._kept:
            return self._kept[number]
        latents, tokens = self.draw(number)
        drawn = latents.to(device), tokens.to(device)
        if self.count:
            self._kept[number] = drawn
        return drawn

    def draw_ahead(self, device: torch.device, jobs: int) -> None:
        """Draws all pools of a limited number at once, by `jobs` processes."""
        with ProcessPoolExecutor(jobs, initializer=_share, initargs=(self.draw,)) as workers:
            for number, (latents, tokens) in enumerate(workers.map(_draw, range(self.count))):
                self._kept[number] = torch.from_numpy(latents).to(device), torch.from_numpy(tokens).to(device)


def _share(draw: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    global _drawing
    torch.set_num_threads(1)
    _drawing = draw


def _draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    latents, tokens = _drawing(number)
    return latents.numpy(), tokens.numpy()
