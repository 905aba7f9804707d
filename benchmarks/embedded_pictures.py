"""What does an embedded teacher draw, and how did it learn? The pictures of docs/embedded_teacher.md.

    python benchmarks/embedded_pictures.py [--teacher embedded-tight] [--to docs/images]

`embedded_samples.png`, for another teacher its name: rows of posters decoded from the shipped latents (a training family's, then `verify`'s), each
above a 25-step DDIM sample from noise with the same caption and classifier-free guidance of 3. `embedded_loss.png`: validation loss by quarter of t
over the Wiener denoiser's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import Tensor

from nas.spaces.tocsr.assets import EmbeddedAssets, shipped_version

COLUMNS, STEPS, GUIDANCE, CELL, ZOOM = 24, 25, 3.0, 34, 2
WIDTH, HEIGHT = 640, 360
COLOURS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#d62728")


def draw_samples(assets: EmbeddedAssets) -> Image.Image:
    """Two pairs of rows: posters, and samples with their captions."""
    unet = UNet2DConditionModel.from_pretrained(assets.root / "unet", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(assets.root / "vae", torch_dtype=torch.float32).eval()
    latents = assets.latents()
    clean = torch.cat([latents["fit"].latents[:COLUMNS], latents["verify"].latents[:COLUMNS]])
    text = torch.cat([latents["fit"].text[:COLUMNS], latents["verify"].text[:COLUMNS]])
    rows = [to_pixels(vae, part) for pair in zip(clean.split(COLUMNS), sample(assets, unet, text).split(COLUMNS), strict=True) for part in pair]
    sheet = Image.new("RGB", (COLUMNS * CELL, len(rows) * CELL), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            sheet.paste(Image.fromarray(pixels), (x * CELL + 1, y * CELL + 1))
    return sheet.resize((sheet.width * ZOOM, sheet.height * ZOOM), Image.Resampling.NEAREST)


@torch.no_grad()
def sample(assets: EmbeddedAssets, unet: UNet2DConditionModel, text: Tensor) -> Tensor:
    """25-step DDIM from noise with classifier-free guidance, `(n, 16, h, w)`."""
    scheduler = DDIMScheduler.from_pretrained(assets.root / "scheduler", timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    size = int(unet.config.sample_size)
    x = torch.randn(len(text), 16, size, size, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        blind, told = (unet(x, t, words).sample for words in (torch.zeros_like(text), text))
        x = scheduler.step(blind + GUIDANCE * (told - blind), t, x).prev_sample
    return x


@torch.no_grad()
def to_pixels(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Decoded pictures, `(n, H, W, 3)` uint8."""
    images = (vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
    return images.round().byte().permute(0, 2, 3, 1).numpy()


def draw_curve(rows: list[list[float]]) -> Image.Image:
    """Validation loss over the Wiener denoiser's, one line a quarter of t."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 60, 20, WIDTH - 20, HEIGHT - 50
    last = max(row[0] for row in rows)

    def place(step: float, ratio: float) -> tuple[float, float]:
        return left + (right - left) * step / last, bottom - (bottom - top) * (ratio - 0.3) / 0.8

    for tenths in range(3, 12):
        pen.line([place(0, tenths / 10), place(last, tenths / 10)], fill="black" if tenths == 10 else "#dddddd")
        pen.text((28, place(0, tenths / 10)[1] - 6), f"{tenths / 10:.1f}", fill="black")
    for step in range(0, int(last) + 1, 1000 if last <= 10000 else 2500):
        pen.text((place(step, 0.3)[0] - 12, bottom + 6), str(step), fill="black")
    for quarter, colour in enumerate(COLOURS):
        pen.line([place(row[0], row[3 + quarter] / row[7 + quarter]) for row in rows], fill=colour, width=2)
        pen.text((left + 10 + 130 * quarter, bottom + 28), f"quarter {quarter + 1} of t", fill=colour)
    pen.text((left + 8, top + 2), "validation eps loss / Wiener denoiser's, by steps", fill="black")
    return picture


def main() -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="embedded", help="embedded, embedded-tight, or a version of them")
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    version = shipped_version(asked.teacher)
    if version is None:
        parser.error(f"no embedded teacher '{asked.teacher}' ships")
    assets, stem = EmbeddedAssets(version), version.rpartition("-v")[0].replace("-", "_")
    draw_samples(assets).save(asked.to / f"{stem}_samples.png", optimize=True)
    draw_curve(assets.manifest["loss_curve"]).save(asked.to / f"{stem}_loss.png", optimize=True)


if __name__ == "__main__":
    main()
