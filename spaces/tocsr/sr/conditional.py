"""Conditional diffusion for super-resolution (Section 3.3.1 of [TOC-SR]) and its one-step reading (Section 3.3.2).

Symbols (C latent channels, h x w latents):

    z_hr, z_lr (B, C, h, w)  latents of a picture and of its low-resolution version, which is upsampled first (Eq. 17, 19)
    x_0                      what is diffused: z_hr (the paper), or the residual (z_hr - z_lr) / s
    x_t                      sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Eq. 18)
    eps                      predicted by the backbone from [x_t, z_lr] and t (Eq. 20)

A network that predicts eps gives x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t): at t = T of SD1.5's betas its error is amplified
14.6 times. One that predicts v natively (a `CompactUNet` converts it) has x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v: not at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import InputError
from nas.spaces.tocsr.compact import CompactUNet

LEAST_ABAR = 1e-4
"""Of a schedule's last step: below, x_0 from eps loses more than two digits of float32."""

TARGETS = ("latent", "residual")


@dataclass(frozen=True, slots=True)
class Diffused:
    """What is diffused: the HR latent as in the paper, or its residual on the LR latent in units of `scale` (its standard deviation)."""

    target: str = "residual"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"target must be one of {', '.join(TARGETS)}, got '{self.target}'")
        if not self.scale > 0:
            raise InputError(f"the residual's scale must be positive, got {self.scale}")

    def x0(self, z_hr: Tensor, z_lr: Tensor) -> Tensor:
        """What is diffused for a latent."""
        return z_hr if self.target == "latent" else (z_hr - z_lr) / self.scale

    def latent(self, x0: Tensor, z_lr: Tensor) -> Tensor:
        """The latent it stands for."""
        return x0 if self.target == "latent" else z_lr + self.scale * x0


def conditional_unet(backbone: CompactUNet, prediction_type: str | None = None, context: Tensor | None = None) -> CompactUNet:
    """The backbone with an input layer for [x_t, z_lr]: its own weights for x_t, zeros for z_lr; a copy, with its text context folded in.

    Args:
        backbone: a network of C latent channels, such as a search's winner, that knows its scheduler.
        prediction_type: how its output is read from now on ("epsilon" or "v_prediction"); None leaves it.
        context: `(1, T, D)`, such as the null prompt's; None is one token of zeros.

    Raises:
        InputError: the network reads other channels than it predicts, in more than one convolution, or has no scheduler config.
    """
    config = {key: value for key, value in backbone.config.items() if not key.startswith("_")}
    channels = config["out_channels"]
    if config["in_channels"] != channels:
        raise InputError(f"the backbone must read the {channels} channels that it predicts, got {config['in_channels']}; is it conditional already?")
    if not isinstance(backbone.conv_in, nn.Conv2d):
        raise InputError("the backbone's conv_in must be one convolution; expand the teacher as variant v2")
    if config["scheduler"] is None:
        raise InputError("the backbone must know its scheduler (CompactUNet.of(unet, scheduler)), whose betas the noise follows")
    scheduler = dict(config["scheduler"]) | ({} if prediction_type is None else {"prediction_type": prediction_type})
    grown: CompactUNet = CompactUNet.from_config({**config, "in_channels": 2 * channels, "scheduler": scheduler})
    weights = dict(backbone.state_dict())
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], torch.zeros_like(weights["conv_in.weight"])], dim=1)
    grown.load_state_dict(weights)
    if config["folded_tokens"] is None:
        grown.fold_context(torch.zeros(1, 1, int(config["cross_attention_dim"])) if context is None else context)
    return grown


class ConditionalModel(nn.Module):
    """A conditional backbone, whose text context is folded in, with its schedule and what it diffuses."""

    def __init__(self, unet: CompactUNet, diffused: Diffused) -> None:
        super().__init__()
        self.unet = unet
        self.diffused = diffused
        assert unet.noise_conversion is not None
        if float(unet.noise_conversion.alphas_cumprod[-1]) < LEAST_ABAR:
            raise InputError("the noise schedule must leave some signal at t = T, or one step cannot tell x_0 from noise; use SD1.5's betas")
        self.abar: Tensor = unet.noise_conversion.alphas_cumprod.clone()

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The diffusers scheduler config of the betas."""
        config: Mapping[str, Any] = self.unet.config.scheduler
        return config

    def forward(self, x_t: Tensor, z_lr: Tensor, t: Tensor) -> Tensor:
        """The predicted noise (Eq. 20) for timesteps `(B,)`."""
        unread = x_t.new_zeros(len(x_t), 1, 1)
        eps: Tensor = self.unet(torch.cat([x_t, z_lr], dim=1), t, unread, return_dict=False)[0]
        return eps

    def diffuse(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """`x_t` (Eq. 18) for timesteps `(B,)`."""
        abar = self.abar[t].view(-1, 1, 1, 1).to(x0)
        return abar.sqrt() * x0 + (1 - abar).sqrt() * noise

    def one_step(self, noise: Tensor, z_lr: Tensor, network: nn.Module | None = None) -> Tensor:
        """The latent predicted from pure noise at t = T at once (Eq. 22); by `network` if this model is wrapped for training."""
        t = torch.full((len(noise),), len(self.abar) - 1, device=noise.device)
        abar = self.abar[-1].to(noise)
        eps: Tensor = (network or self)(noise, z_lr, t)
        x0 = (noise - (1 - abar).sqrt() * eps) / abar.sqrt()
        return self.diffused.latent(x0, z_lr)

    def sample(self, noise: Tensor, z_lr: Tensor, steps: int) -> Tensor:
        """The latent after `steps` steps of DDIM (without noise of its own) from noise at t = T, evenly spaced; one step is `one_step`."""
        if steps < 1 or steps > len(self.abar):
            raise InputError(f"steps must be 1 to {len(self.abar)}, got {steps}")
        if steps == 1:
            return self.one_step(noise, z_lr)
        timesteps = [round(len(self.abar) * (1 - k / steps)) - 1 for k in range(steps)]
        x = noise
        for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
            abar, left = self.abar[t].to(x), torch.ones(()).to(x) if after is None else self.abar[after].to(x)
            eps = self(x, z_lr, torch.full((len(x),), t, device=x.device))
            x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
            x = left.sqrt() * x0 + (1 - left).sqrt() * eps
        return self.diffused.latent(x, z_lr)
