"""Trains the embedded teacher from an emoji font and a folder of photographs, and exports it; goes on where it stopped.

python -m nas.spaces.tocsr.training --font NotoColorEmoji.ttf --names emoji-test.txt --photographs FOLDER --assets FOLDER
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.home import nas_home
from nas.spaces.tocsr.training.autoencoder import make_autoencoder, poster_pictures, psnr, to_images, train_decoder
from nas.spaces.tocsr.training.codec import LinearCodec, fit_codec
from nas.spaces.tocsr.training.export import shipped_samples, write_assets
from nas.spaces.tocsr.training.pictures import Emoji, read_emoji, read_photographs, split_families
from nas.spaces.tocsr.training.pools import choose_emoji, draw_batch
from nas.spaces.tocsr.training.posters import vocabulary
from nas.spaces.tocsr.training.unet import Trainer, UNetSettings, make_scheduler

HELD_OUT_FAMILIES = 128  # in each of measure and verify
HELD_OUT_PHOTOGRAPHS = 6
CODEC_POSTERS, DECODER_POSTERS = 800, 2500


def main() -> None:
    """Decoder, U-Net, export, in that order; each part is skipped when its checkpoint says it is done."""
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    torch.set_float32_matmul_precision("high")  # for CUDA: TF32, as its convolutions do by default
    asked.work.mkdir(parents=True, exist_ok=True)
    emoji = read_emoji(asked.font, asked.names)
    splits = split_families([e.family for e in emoji], HELD_OUT_FAMILIES, seed=0)
    ids = vocabulary(e for e in emoji if splits[e.family] == 0)
    codec = codec_of(emoji, splits)
    vae = make_autoencoder(codec)
    figures = _decoder(vae, codec, emoji, splits, asked)
    settings = UNetSettings(steps=asked.steps, batch=asked.batch, average=asked.average, pools=asked.pools)
    trainer = Trainer(settings, emoji, splits, codec, ids, asked.device)
    if asked.pools and asked.jobs > 1:
        trainer.pools.draw_ahead(trainer.device, asked.jobs)
    rng = np.random.default_rng(11)
    trainer.run(asked.work / "unet", draw_batch(emoji, choose_emoji(emoji, splits, 1, 128, rng), codec, ids, rng))
    trainer.swap_average()
    summary: dict[str, Any] = {"active_stages": "?", "settings": asdict(settings), "steps": trainer.step, "autoencoder": figures}
    summary["loss_curve"] = _curve(asked.work / "unet/curve.csv")
    write_assets(
        asked.assets,
        unet=trainer.unet.cpu(),
        vae=vae.cpu(),
        scheduler=make_scheduler(),
        embedding=trainer.text.weight.cpu(),
        ids=ids,
        samples=shipped_samples(emoji, splits, codec, ids),
        summary=summary,
    )


def codec_of(emoji: list[Emoji], splits: dict[int, int]) -> LinearCodec:
    """The linear codec of posters of training families."""
    rng = np.random.default_rng(7)
    return fit_codec(poster_pictures(emoji, choose_emoji(emoji, splits, 0, CODEC_POSTERS, rng), rng))


def _decoder(vae: Any, codec: LinearCodec, emoji: list[Emoji], splits: dict[int, int], asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Trains the decoder on posters and photographs; PSNR on held-out ones."""
    photographs = read_photographs(asked.photographs, 1200)
    held = set(np.random.default_rng(5).choice(sorted(photographs), HELD_OUT_PHOTOGRAPHS, replace=False))
    rng = np.random.default_rng(22)
    posters = poster_pictures(emoji, choose_emoji(emoji, splits, 0, DECODER_POSTERS, rng), rng)
    sources = [list(posters), [p for name, p in photographs.items() if name not in held]]
    train_decoder(vae, codec, sources, asked.work / "decoder.safetensors", steps=asked.decoder_steps, batch=asked.decoder_batch, device=asked.device)
    rng = np.random.default_rng(21)
    posters = poster_pictures(emoji, choose_emoji(emoji, splits, 2, HELD_OUT_FAMILIES, rng), rng)
    crops = []
    for name in sorted(held):
        picture = photographs[name]
        for _ in range(8):
            y, x = (int(rng.integers(0, side - 256)) for side in picture.shape[:2])
            crops.append(picture[y : y + 256, x : x + 256])
    return {"posters": psnr(vae, to_images(posters)), "photographs": psnr(vae, to_images(np.stack(crops)))}


def _curve(path: Path) -> list[list[float]]:
    """Step, seconds, running v loss, validation eps loss by quarter, Wiener's by quarter."""
    with path.open(newline="") as file:
        return [[float(x) for x in row] for row in csv.reader(file)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf with bitmaps (CBDT)")
    parser.add_argument("--names", type=Path, required=True, help="Unicode's emoji-test.txt")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of photographs for the decoder")
    parser.add_argument("--assets", type=Path, required=True, help="folder to write, such as spaces/tocsr/assets/embedded-v2")
    parser.add_argument("--work", type=Path, default=nas_home() / "training", help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=UNetSettings().steps)
    parser.add_argument("--batch", type=int, default=UNetSettings().batch)
    parser.add_argument("--average", type=float, default=UNetSettings().average, help="decay of the averaged weights")
    parser.add_argument("--pools", type=int, default=0, help="pools of 6,400 posters to go through again and again; 0: endless fresh ones")
    parser.add_argument("--jobs", type=int, default=1, help="processes that draw the pools")
    parser.add_argument("--decoder-steps", type=int, default=12000)
    parser.add_argument("--decoder-batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="such as cuda: a step is then replayed as one CUDA graph")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
