"""The closed-form linear codec that the encoder is set to and the decoder starts from.

Symbols: `x` a 4 x 4 patch, 48 numbers in [-1, 1]; `mu`, `U` (48, 16), `lam` (16,) mean, first principal axes and
variances of patches; `g` the partial whitening; `R` (16, 16) an orthogonal Hadamard rotation.

    z = R diag(s) U^T (x - mu),   s_i = c lam_i^(g / 2 - 1 / 2),   c such that the mean variance of z is 1

With g = 1 (no whitening) coarse colour would fill nearly all of the variance, with g = 0 (whitening) edges would weigh
as much as colour and a denoiser would be judged by texture alone. The rotation gives every channel unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

PATCH = 4
CHANNELS = 16
PARTIAL = 0.5  # g


@dataclass(frozen=True, slots=True)
class LinearCodec:
    """`z = encode_matrix @ patch + encode_bias`; decode is its pseudo-inverse (patch order: channel, row, column)."""

    encode_matrix: Tensor
    encode_bias: Tensor
    decode_matrix: Tensor
    decode_bias: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Latents `(B, 16, H / 4, W / 4)` of images `(B, 3, H, W)` in [-1, 1]."""
        patches = torch.nn.functional.pixel_unshuffle(images, PATCH)
        return torch.einsum("zp,bphw->bzhw", self.encode_matrix, patches) + self.encode_bias[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Images in about [-1, 1] of latents: the best linear reconstruction."""
        patches = torch.einsum("pz,bzhw->bphw", self.decode_matrix, latents) + self.decode_bias[:, None, None]
        return torch.nn.functional.pixel_shuffle(patches, PATCH)


def fit_codec(images: np.ndarray) -> LinearCodec:
    """The codec of images `(n, H, W, 3)` uint8."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    patches = torch.nn.functional.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2)
    mean = patches.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(patches.T))
    variances, axes = variances.flip(0)[:CHANNELS], axes.flip(1)[:, :CHANNELS]
    power = variances**PARTIAL
    scale = (power / power.mean() / variances).sqrt()
    rotation = torch.from_numpy(hadamard(CHANNELS)).double() / CHANNELS**0.5
    encode = rotation @ (scale[:, None] * axes.T)
    decode = (axes / scale) @ rotation.T
    return LinearCodec(encode.float(), (-encode @ mean).float(), decode.float(), mean.float())
