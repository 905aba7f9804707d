"""The training of the embedded teacher: pictures, codec, and legs that go on exactly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.spaces.tocsr.training import unet as training
from nas.spaces.tocsr.training.autoencoder import make_autoencoder, poster_pictures, to_images
from nas.spaces.tocsr.training.codec import LinearCodec, fit_codec
from nas.spaces.tocsr.training.pictures import CELL, Emoji, split_families
from nas.spaces.tocsr.training.pools import Pools, choose_emoji, draw_batch
from nas.spaces.tocsr.training.posters import SIZE, draw_poster, tokens_of, vocabulary
from nas.spaces.tocsr.training.unet import ScalePenalty, Trainer, UNetSettings, make_unet

SMALL = UNetSettings(widths=(8, 8, 16, 16), heads=2, batch=8, steps=4, warmup=2, early=2)


@pytest.fixture(scope="module")
def emoji() -> list[Emoji]:
    """Twelve discs of random colour and size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:CELL, :CELL] / CELL - 0.5
    drawings = []
    for number in range(12):
        pixels = np.empty((CELL, CELL, 4), dtype=np.uint8)
        pixels[..., :3] = rng.integers(0, 256, 3)
        pixels[..., 3] = 255 * (np.hypot(x, y) < rng.uniform(0.2, 0.5))
        drawings.append(Emoji(f"disc number {number}", "shape", number, ("red",), pixels))
    return drawings


@pytest.fixture(scope="module")
def codec(emoji: list[Emoji]) -> LinearCodec:
    """The codec of twelve posters."""
    return fit_codec(poster_pictures(emoji, np.arange(12), np.random.default_rng(1)))


def make_trainer(emoji: list[Emoji], codec: LinearCodec) -> Trainer:
    return Trainer(SMALL, emoji, dict.fromkeys(range(12), 0), codec, vocabulary(emoji))


def test_a_poster_is_a_function_of_its_seed_and_its_caption_names_ground_and_object(emoji: list[Emoji]) -> None:
    one, again = (draw_poster(emoji, 3, np.random.default_rng(5)) for _ in range(2))
    assert one.pixels.shape == (SIZE, SIZE, 3)
    assert np.array_equal(one.pixels, again.pixels)
    assert one.words == again.words
    assert one.words[0].endswith("-ground")
    assert {"shape", "disc", "number", "3"} <= set(one.words)


def test_unknown_words_are_left_out_of_the_tokens(emoji: list[Emoji]) -> None:
    ids = vocabulary(emoji)
    tokens = tokens_of(("disc", "never-heard-of", "red-ground"), ids)
    assert tokens.tolist()[:3] == [ids["disc"], ids["red-ground"], 0]


def test_families_lie_wholly_in_one_split_and_every_family_is_drawn_before_any_is_drawn_twice(emoji: list[Emoji]) -> None:
    splits = split_families([e.family for e in emoji], 3, seed=0)
    assert sorted(splits.values()) == [0] * 6 + [1] * 3 + [2] * 3
    chosen = choose_emoji(emoji, splits, 1, 6, np.random.default_rng(0))
    families = [emoji[i].family for i in chosen]
    assert sorted(families[:3]) == sorted(families[3:]) == sorted(f for f, split in splits.items() if split == 1)


def test_the_encoder_is_the_linear_codec(emoji: list[Emoji], codec: LinearCodec) -> None:
    images = to_images(poster_pictures(emoji, np.arange(4), np.random.default_rng(2)))
    with torch.no_grad():
        found = make_autoencoder(codec).encode(images).latent_dist.mean
    assert torch.allclose(found, codec.encode(images), atol=1e-3)
    assert codec.encode(to_images(poster_pictures(emoji, np.arange(12), np.random.default_rng(1)))).var() == pytest.approx(1, abs=0.1)


def test_the_untrained_network_is_the_wiener_denoiser(emoji: list[Emoji], codec: LinearCodec) -> None:
    trainer = make_trainer(emoji, codec)
    latents, tokens = draw_batch(emoji, np.arange(4), codec, vocabulary(emoji), np.random.default_rng(0))
    losses = training.evaluate(trainer.unet, trainer.text.weight.detach(), latents, tokens, trainer.abar)
    assert losses["eps_loss"] == pytest.approx(losses["wiener"], rel=1e-5)


def test_only_hidden_states_above_the_limit_are_penalised() -> None:
    unet = make_unet(SMALL)
    penalty = ScalePenalty(unet)

    def total(factor: float) -> float:
        with torch.no_grad():
            unet.conv_in.weight.mul_(factor)
        penalty.total = 0.0
        unet(torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), 10, torch.zeros(2, 16, 48))
        return float(torch.as_tensor(penalty.total).detach())

    assert total(0.1) == 0.0
    assert total(1e5) > 1.0


def test_a_leg_that_was_cut_goes_on_exactly(emoji: list[Emoji], codec: LinearCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POOL", 16)
    val = draw_batch(emoji, np.arange(4), codec, vocabulary(emoji), np.random.default_rng(0))
    whole = make_trainer(emoji, codec)
    whole.run(tmp_path / "whole", val)

    cut = make_trainer(emoji, codec)
    monkeypatch.setattr(cut, "train_step", stopping_after(2, cut.train_step))
    with pytest.raises(KeyboardInterrupt):
        cut.run(tmp_path / "cut", val, save_s=0.0)
    again = make_trainer(emoji, codec)
    again.run(tmp_path / "cut", val)
    assert again.step == whole.step == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, again.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.average, again.average, strict=True))


def stopping_after(n: int, step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    calls = iter(range(n))

    def limited(latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return step(latents, tokens)

    return limited


def test_pools_of_a_limited_number_come_again_and_are_the_same_from_several_processes(emoji: list[Emoji], codec: LinearCodec) -> None:
    splits, ids, device = dict.fromkeys(range(12), 0), vocabulary(emoji), torch.device("cpu")
    alone, ahead = (Pools(emoji, splits, codec, ids, size=6, count=2, seed=4) for _ in range(2))
    ahead.draw_ahead(device, 2)
    for number in range(4):
        assert all(torch.equal(a, b) for a, b in zip(alone.on(device, number), ahead.on(device, number), strict=True))
    assert alone.on(device, 3) is alone.on(device, 1)
    assert not torch.equal(alone.on(device, 0)[0], alone.on(device, 1)[0])
