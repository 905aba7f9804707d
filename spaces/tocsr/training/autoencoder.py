"""The embedded autoencoder: a stock AutoencoderKL whose encoder *is* the linear codec and whose decoder is trained.

Eq. (4) of [TOC-SR] trains an encoder on latent matching plus reconstruction. Here latent matching has a closed-form
optimum: residual branches start at zero, strided convolutions gather 4 x 4 patches, and the output norm, which would
lose the scale, is made linear by (a) carrying z beside -z and two constants +-K that dominate every group's variance,
(b) silu(x) - silu(-x) = x. So latents cost nothing to train and never move while the decoder learns.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.spaces.tocsr.training.codec import CHANNELS, LinearCodec
from nas.spaces.tocsr.training.pictures import Emoji
from nas.spaces.tocsr.training.posters import draw_poster

DOMINANT = 300.0  # K: group deviations stray by (z_a^2 + z_b^2) / (2 K^2), about 1e-5
GROUPS = 8
LOG_VARIANCE = -12.0


def make_autoencoder(codec: LinearCodec, widths: tuple[int, ...] = (16, 32, 56), seed: int = 0) -> AutoencoderKL:
    """Encoder set to `codec`, decoder fresh except for its first convolution."""
    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=32,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        _write_encoder(model, codec)
        first = model.decoder.conv_in
        nn.init.zeros_(first.bias)
        first.weight *= 0.1
        first.weight[:48, :, 1, 1] += codec.decode_matrix
    model.encoder.requires_grad_(False)
    return model


def _write_encoder(model: AutoencoderKL, codec: LinearCodec) -> None:
    """Sets the encoder's linear path; channel order of the 2 x 2 gather is (colour, row, column)."""
    encoder = model.encoder
    blocks = [*(r for b in encoder.down_blocks for r in b.resnets), *encoder.mid_block.resnets]
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    gather, first, second = encoder.conv_in, encoder.down_blocks[0].downsamplers[0].conv, encoder.down_blocks[1].downsamplers[0].conv
    widen, place = encoder.down_blocks[1].resnets[0].conv_shortcut, encoder.down_blocks[2].resnets[0].conv_shortcut
    norm, last = encoder.conv_norm_out, encoder.conv_out
    for module in (gather, first, second, widen, place, last):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    for c in range(3):
        for row in range(2):
            for column in range(2):
                gather.weight[4 * c + 2 * row + column, c, 1 + row, 1 + column] = 1
    patch = codec.encode_matrix.view(CHANNELS, 3, 4, 4)
    for i in range(12):
        first.weight[i, i, 0, 0] = 1
        widen.weight[i, i, 0, 0] = 1
        c, row, column = i // 4, i // 2 % 2, i % 2
        second.weight[:CHANNELS, i, :2, :2] = patch[:, c, row::2, column::2]
    second.bias[:CHANNELS] = codec.encode_bias
    size = place.out_channels // GROUPS
    for z in range(CHANNELS):
        at = z // 2 * size + z % 2 * 2
        place.weight[at, z, 0, 0], place.weight[at + 1, z, 0, 0] = 1, -1
        last.weight[z, at, 1, 1], last.weight[z, at + 1, 1, 1] = 1, -1
    for group in range(GROUPS):
        place.bias[group * size + 4], place.bias[group * size + 5] = DOMINANT, -DOMINANT
    norm.weight.fill_(DOMINANT * (2 / size) ** 0.5)
    norm.bias.zero_()
    last.bias[CHANNELS:] = LOG_VARIANCE


def train_decoder(
    model: AutoencoderKL,
    codec: LinearCodec,
    sources: list[list[np.ndarray]],
    path: Path,
    *,
    steps: int,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Fits the decoder by squared error to crops of pictures, each source as often, resumably from `path`; leaves the model on the CPU."""
    decoder = model.decoder.to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {k: v.clone() for k, v in decoder.state_dict().items()}
    step, saved, mean = 0, time.monotonic(), torch.tensor(0.1, device=device)
    if path.exists():
        state = load_checkpoint(path)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = {k: v.to(device) for k, v in state["average"].items()}, state["step"]
    while step < steps:
        rng = np.random.default_rng((seed, step))
        large = step % 4 == 3
        images = _crops(sources, rng, *((batch // 4, 64) if large else (batch, 32)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100, max(0.02, (steps - step) / (0.4 * steps)))
        latents, images = codec.encode(images).to(device), images.to(device)
        loss = (decoder(latents) - images).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean.lerp_(loss.detach(), 0.02)
        decay = min(0.998, (1 + step) / (20 + step))
        for key, value in decoder.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if step % 200 == 0:
            print(f"decoder step {step} PSNR {10 * np.log10(4 / float(mean)):.2f} dB", flush=True)
        if step == steps or time.monotonic() - saved > 120:
            save_checkpoint(path, {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step})
            saved = time.monotonic()
    decoder.load_state_dict(average)
    model.cpu()


@torch.no_grad()
def psnr(model: AutoencoderKL, images: Tensor) -> dict[str, float]:
    """Mean PSNR in dB over images `(n, 3, H, W)` in [-1, 1]: the autoencoder's and bicubic x4 down and up."""
    found = torch.cat([model.decode(model.encode(part).latent_dist.mean).sample for part in torch.split(images, 16)])
    low = nn.functional.interpolate(images, scale_factor=0.25, mode="bicubic", antialias=True)
    cubic = nn.functional.interpolate(low, scale_factor=4, mode="bicubic")
    return {name: float(_psnr(x, images).mean()) for name, x in (("autoencoder", found), ("bicubic", cubic))}


def poster_pictures(emoji: list[Emoji], chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One poster of each chosen emoji, `(n, 32, 32, 3)` uint8."""
    return np.stack([draw_poster(emoji, int(i), rng).pixels for i in chosen])


def to_images(pictures: np.ndarray) -> Tensor:
    """`(n, H, W, 3)` uint8 -> `(n, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _psnr(found: Tensor, images: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (found.clamp(-1, 1) - images).square().mean((1, 2, 3)))


def _crops(sources: list[list[np.ndarray]], rng: np.random.Generator, n: int, size: int) -> Tensor:
    """Random crops of the sources that are large enough, flipped and halved at random, `(n, 3, size, size)` in [-1, 1]."""
    crops, sources = [], [pictures for pictures in sources if min(pictures[0].shape[:2]) >= size]
    for _ in range(n):
        pictures = sources[rng.integers(len(sources))]
        picture = pictures[rng.integers(len(pictures))]
        step = 2 if min(picture.shape[:2]) >= 4 * size and rng.random() < 0.5 else 1
        y, x = (int(rng.integers(0, s - size * step + 1)) for s in picture.shape[:2])
        crop = torch.from_numpy(picture[y : y + size * step, x : x + size * step].copy()).permute(2, 0, 1).float()
        crop = nn.functional.avg_pool2d(crop, step)
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops) / 127.5 - 1
