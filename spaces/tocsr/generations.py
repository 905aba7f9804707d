"""Same-seed samples of teacher and winners side by side, as in Table S6 of [TOC-SR]: how far apart they end, and FID with the teacher's samples as truth.

FID needs features: a function of pictures `(n, 3, H, W)` in [0, 1] to `(n, d)`, such as an Inception network's pooling layer; none ships.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from scipy.linalg import sqrtm
from torch import Tensor

from nas.errors import InputError
from nas.progress import Progress
from nas.spaces.tocsr.compact import CompactUNet

Extractor = Callable[[Tensor], Tensor]
"""Pictures `(n, 3, H, W)` in [0, 1] -> features `(n, d)`."""

_CHUNK = 32


@torch.no_grad()
def sampled(unet: CompactUNet, text: Tensor, size: int, steps: int, seed: int) -> Tensor:
    """Latents `(n, C, size, size)` after DDIM from noise that the seed decides, one for each row of conditioning `(n, T, D)`."""
    config = {**unet.config.scheduler, "prediction_type": "epsilon"}  # the network says noise, whatever it predicts natively
    scheduler = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    shape = (len(text), int(unet.config.in_channels), size, size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(text)
    for t in scheduler.timesteps:
        eps = torch.cat([unet(x, t, words).sample for x, words in zip(torch.split(latents, _CHUNK), torch.split(text, _CHUNK), strict=True)])
        latents = scheduler.step(eps, t, latents).prev_sample
    return latents


def compare_generations(
    teacher: CompactUNet, winners: Mapping[str, CompactUNet], text: Tensor, *, steps: int, seed: int, progress: Progress,
    vae: AutoencoderKL | None = None, extractor: Extractor | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each winner: `params`, `mse` between same-seed latents, `relative` to the variance of the teacher's, `fid` (None without an extractor).

    The row of the teacher compares its samples with those of another seed: what no winner needs to do better than.
    """
    size = int(teacher.config.sample_size)
    wanted = sampled(teacher, text, size, steps, seed)
    features = _features(wanted, vae, extractor)
    rows = []
    systems = {"teacher, another seed": teacher, **winners}
    for name, unet in progress.track(list(systems.items()), "samples"):
        found = sampled(unet, text, size, steps, seed + (unet is teacher))
        error = float((found - wanted).square().mean())
        other = _features(found, vae, extractor)
        rows.append(
            {
                "name": name,
                "params": sum(p.numel() for p in unet.parameters()),
                "mse": error,
                "relative": error / float(wanted.var()),
                "fid": None if features is None or other is None else frechet_distance(other, features),
            }
        )
    return rows


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of the Gaussians fitted to two sets of features `(n, d)`: |m - m'|^2 + tr(C + C' - 2 (C C')^1/2).

    Raises:
        InputError: fewer samples than the fit needs.
    """
    if min(len(one), len(other)) < 2:
        raise InputError(f"FID needs at least 2 samples on each side, got {len(one)} and {len(other)}")
    means = one.mean(0) - other.mean(0)
    covariances = [np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (one, other)]
    root = np.asarray(sqrtm(covariances[0] @ covariances[1])).real
    return float(means @ means + np.trace(covariances[0] + covariances[1] - 2 * root))


@torch.no_grad()
def _features(latents: Tensor, vae: AutoencoderKL | None, extractor: Extractor | None) -> np.ndarray | None:
    if extractor is None or vae is None:
        return None
    found = []
    for part in torch.split(latents, _CHUNK):
        pictures = vae.decode(part / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
        rows = extractor(((pictures + 1) / 2).clamp(0, 1))
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(part):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise InputError(f"the extractor must give features ({len(part)}, d) for {len(part)} pictures, got {got}")
        found.append(rows.double().cpu().numpy())
    return np.concatenate(found)
