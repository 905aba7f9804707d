"""Latent capacity expansion (3.1 of [TOC-SR]): more latent channels for an autoencoder and a U-Net that were trained with fewer.

Old channels keep their weights and new ones begin without effect, so the wider network starts as what the old one was: the autoencoder decodes the
same picture, the U-Net (variant v2) predicts the same noise on the old channels and none on the new.

    variant   conv_in                     conv_out                    (Table S4; L latent channels, o the old number, W the first width)
    v1        L -> o, o -> W              W -> L
    v2        L -> W                      W -> L
    v3        L -> 2 o, 2 o -> o, o -> W  W -> o, o -> 2 o, 2 o -> L
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from nas.errors import InputError, did_you_mean

Variant = Literal["v1", "v2", "v3"]

VARIANTS = ("v1", "v2", "v3")


def expansion_layers(variant: Variant, old: int, channels: int, width: int, kernel: int = 3) -> tuple[nn.Module, nn.Module]:
    """conv_in and conv_out of a variant, with fresh weights.

    Raises:
        InputError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown variant '{variant}'{did_you_mean(variant, VARIANTS)}")
    widths = {
        "v1": ((channels, old, width), (width, channels)),
        "v2": ((channels, width), (width, channels)),
        "v3": ((channels, 2 * old, old, width), (width, old, 2 * old, channels)),
    }
    first, last = (_chain(row, kernel) for row in widths[variant])
    return first, last


def _chain(widths: Sequence[int], kernel: int) -> nn.Module:
    convolutions = [nn.Conv2d(i, o, kernel, padding=kernel // 2) for i, o in itertools.pairwise(widths)]
    return convolutions[0] if len(convolutions) == 1 else nn.Sequential(*convolutions)


@torch.no_grad()
def expand_unet(unet: UNet2DConditionModel, channels: int = 16, variant: Variant = "v2") -> UNet2DConditionModel:
    """A copy of a U-Net for more latent channels; v1 and v3 are no stock networks (`CompactUNet` saves them).

    Raises:
        InputError: it has as many channels already, or reads more than a latent (inpainting, 9 channels).
    """
    old = unet.config.out_channels
    if unet.config.in_channels != old:
        raise InputError(
            f"the U-Net must read what it predicts, {old} channels, got {unet.config.in_channels}; inpainting and super-resolution networks cannot be expanded"
        )
    if channels <= old:
        raise InputError(f"the U-Net has {old} latent channels already, got {channels} to expand it to")
    wider = copy.deepcopy(unet)
    first, last = expansion_layers(variant, old, channels, unet.conv_in.out_channels, unet.conv_in.kernel_size[0])
    _inherit(first, unet.conv_in, -1)
    _inherit(last, unet.conv_out, 0)
    wider.conv_in, wider.conv_out = first.to(unet.conv_in.weight), last.to(unet.conv_in.weight)
    wider.register_to_config(in_channels=channels, out_channels=channels)
    return wider


def _inherit(layers: nn.Module, old: nn.Conv2d, position: int) -> None:
    """The old convolution at a position of the row, the others hand the first channels through; what is left is zero."""
    row = [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
    for layer in row:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(_bias(layer))
    nn.init.zeros_(row[position].weight)
    _corner(row[position].weight, old.weight)
    _bias(row[position])[: len(_bias(old))] = _bias(old)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # diffusers' first and last convolutions have one
    return layer.bias


def _corner(wide: Tensor, narrow: Tensor) -> None:
    wide[: narrow.shape[0], : narrow.shape[1]] = narrow


@torch.no_grad()
def expand_autoencoder(vae: AutoencoderKL, channels: int = 16, seed: int = 0) -> AutoencoderKL:
    """A copy of an autoencoder with more latent channels.

    Means and log variances of the old channels stay; new means begin as random mixtures of the old ones, of their scale whatever the network's is, new log
    variances as the old ones' average; the decoder does not read the new channels yet.

    Raises:
        InputError: it has as many channels already.
    """
    old = int(vae.config.latent_channels)
    if channels <= old:
        raise InputError(f"the autoencoder has {old} latent channels already, got {channels} to expand it to")
    with torch.device("meta"):
        wider: AutoencoderKL = AutoencoderKL.from_config({**vae.config, "latent_channels": channels})
    wider = wider.to_empty(device="cpu").to(vae.dtype)
    ours, theirs = wider.state_dict(), vae.state_dict()
    mixing = nn.functional.normalize(torch.randn(channels - old, old, generator=torch.Generator().manual_seed(seed)), dim=1)
    for name, value in ours.items():
        if name.startswith("encoder.conv_out."):
            value.copy_(_moments(theirs[name], mixing))
        elif name.startswith("quant_conv."):
            value.copy_(_quantised(theirs[name], channels))
        elif name.startswith(("post_quant_conv.", "decoder.conv_in.")) and value.shape != theirs[name].shape:
            value.copy_(_placed(theirs[name], value, identity=name.startswith("post_quant_conv.w")))
        else:
            value.copy_(theirs[name])
    return wider


def _moments(old: Tensor, mixing: Tensor) -> Tensor:
    """Rows of means, then of log variances, each with the old ones first; new means are mixtures of the old ones."""
    n = len(old) // 2
    mean, log_variance = old[:n], old[n:]
    mixed = torch.einsum("ij,j...->i...", mixing.to(old), mean)
    return torch.cat([mean, mixed, log_variance, log_variance.mean(0, keepdim=True).expand_as(mixed)])


def _quantised(old: Tensor, channels: int) -> Tensor:
    """The 1x1 convolution over means and log variances: the old one on the old channels, the identity on the new."""
    n = len(old) // 2
    kept = torch.cat([torch.arange(n), channels + torch.arange(n)])
    if old.ndim == 1:
        wide = torch.zeros(2 * channels).to(old)
        wide[kept] = old
        return wide
    wide = torch.eye(2 * channels).to(old)[:, :, None, None].repeat(1, 1, *old.shape[2:])
    wide[kept[:, None], kept[None]] = old
    return wide


def _placed(old: Tensor, like: Tensor, *, identity: bool) -> Tensor:
    wide = torch.zeros_like(like)
    if identity:
        wide[:, :, 0, 0] = torch.eye(len(like)).to(like)
    if old.ndim == 1:
        wide[: len(old)] = old
    else:
        _corner(wide, old)
    return wide


class Distilled(nn.Module):
    """An autoencoder and what Eq. (4) of [TOC-SR] says of it: latent matching plus reconstruction.

    loss = weight |z - z_T|^2 + |x - D(z)|^2     (means over elements; z the scaled mean of the student, z_T of the teacher)
    """

    def __init__(self, vae: AutoencoderKL, weight: float = 1.0) -> None:
        super().__init__()
        self.vae, self.weight = vae, weight

    def forward(self, images: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, a scalar, and scaled latents `(B, L, h, w)` of images `(B, 3, H, W)`, given the teacher's latents."""
        mean = self.vae.encode(images).latent_dist.mode()
        found = scaled_latents(self.vae, mean)
        reconstructed = self.vae.decode(mean).sample
        loss = self.weight * (found - wanted).float().square().mean() + (reconstructed - images).float().square().mean()
        return loss, found


def scaled_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents as the U-Net reads them, of about unit variance."""
    scaled: Tensor = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return scaled


@torch.no_grad()
def teacher_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """`z_T`: the scaled means of the teacher autoencoder, Eq. (2)."""
    return scaled_latents(vae, vae.encode(images).latent_dist.mode())


def check_vae_teacher(teacher: AutoencoderKL, vae: AutoencoderKL, channels: int) -> None:
    """Raises unless the teacher autoencoder has the channels wanted and compresses like the one to be expanded."""
    if teacher.config.latent_channels != channels:
        got, old = teacher.config.latent_channels, vae.config.latent_channels
        way_out = f"choose another, or --channels {got}" if got > old else f"choose another, of more than the {old} that there are"
        raise InputError(f"the teacher autoencoder must have {channels} latent channels, got {got}; {way_out}")
    factors = [2 ** (len(config.block_out_channels) - 1) for config in (vae.config, teacher.config)]
    if factors[0] != factors[1]:
        raise InputError(f"the teacher autoencoder must compress by {factors[0]} like the one to be expanded, got {factors[1]}; choose another")


def taken_over(vae: AutoencoderKL, teacher: AutoencoderKL) -> dict[str, Any]:
    """Config keys of the teacher's that its student takes over: its latents are to be scaled like the teacher's."""
    return {key: teacher.config[key] for key in ("scaling_factor", "shift_factor") if vae.config.get(key) != teacher.config[key]}
