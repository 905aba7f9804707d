"""The embedded U-Net: its configuration, its noise schedule, and a resumable training loop.

The network predicts v = sqrt(abar) eps - sqrt(1 - abar) x_0. Zero v is the per-pixel Wiener denoiser of unit-variance
latents, eps = sqrt(1 - abar) x_t, and conv_out starts at zero, so training starts at that baseline (v loss 1).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.graphed import Graphed
from nas.spaces.tocsr.training.codec import CHANNELS, PATCH, LinearCodec
from nas.spaces.tocsr.training.pictures import Emoji
from nas.spaces.tocsr.training.pools import Pools
from nas.spaces.tocsr.training.posters import SIZE

POOL = 6400  # posters drawn at a time
QUARTERS = 4
TEXT_DROP = 0.1
SCALE_WEIGHT, SCALE_LIMIT = 0.02, 2.0  # see `ScalePenalty`
TEXT_SCALE = 5.0  # cross-attention averages 16 words: at unit scale it adds 4 % to the hidden state and is not learned
TEXT_RATE = 10.0  # the word vectors' share of the rate: each is met in few batches


@dataclass(frozen=True, slots=True)
class UNetSettings:
    """What a probe varies; `save_config` of the network holds the rest."""

    widths: tuple[int, ...] = (32, 64, 96, 96)
    layers: int = 1
    text_width: int = 48
    heads: int = 4
    batch: int = 64
    steps: int = 8000
    rate: float = 2e-3
    warmup: int = 200
    skip_drop: float = 0.3  # chance that a sample loses the skips of up2 and up3 (half of these also up1's); starts at 1, see `drop_chance`
    noisy: float = 0.2  # chance that t is drawn from the noisiest fifth, falling to 0 over `early`
    early: int = 500
    decay: float = 0.4  # share of the steps over which the rate falls at the end
    average: float = 0.999  # decay of the averaged weights
    pools: int = 0  # pools of posters that are drawn and gone through again and again; 0: endless fresh ones
    seed: int = 0


def make_unet(settings: UNetSettings) -> UNet2DConditionModel:
    """A stock network that reads text in the middle only, with a zero last convolution."""
    torch.manual_seed(settings.seed)
    unet = UNet2DConditionModel(
        sample_size=SIZE // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        cross_attention_dim=settings.text_width,
        attention_head_dim=settings.heads,
        norm_num_groups=8,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


class ScalePenalty:
    """What a forward pass costs for hidden states whose root mean square exceeds `SCALE_LIMIT`.

    Norms make the loss blind to the scale of the hidden state, so it drifts up (to 1e10 in one probe) until residual branches
    no longer matter and every stage is a linear map that a 1x1 projection imitates.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.total: Tensor | float = 0.0
        for module in unet.modules():
            if isinstance(module, ResnetBlock2D | Downsample2D | Upsample2D):
                module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        del module, args
        if torch.is_grad_enabled():
            excess = output.square().mean().log() / 2 - math.log(SCALE_LIMIT)
            self.total = self.total + torch.relu(excess).square()


def make_scheduler() -> DDPMScheduler:
    """SD1.5's noise schedule, which spends half of uniform t at signal-to-noise ratios of 0.06 to 2."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False)


def v_error(unet: Callable[..., tuple[Tensor, ...]], text: Tensor, x0: Tensor, t: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Squared error of v, `(B, 16, h, w)`."""
    a = abar[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
    found: Tensor = unet(noisy, t, text, return_dict=False)[0]
    return (found - (a.sqrt() * noise - (1 - a).sqrt() * x0)).square()


@torch.no_grad()
def evaluate(unet: Callable[..., tuple[Tensor, ...]], embedding: Tensor, latents: Tensor, tokens: Tensor, abar: Tensor) -> dict[str, list[float]]:
    """Mean eps error by quarter of t, and the Wiener denoiser's, at 8 fixed timesteps a sample."""
    generator, device = torch.Generator().manual_seed(1234), embedding.device
    latents, tokens, n, repeats = latents.to(device), tokens.to(device), len(latents), 8
    t = torch.cat([torch.randint(k * 125, (k + 1) * 125, (n,), generator=generator) for k in range(repeats)]).to(device)
    found = []
    for part in torch.split(torch.arange(n * repeats), 64):
        x0, words = latents[part % n], embedding[tokens[part % n]]
        noise = torch.randn(x0.shape, generator=generator).to(device)
        error = v_error(unet, words, x0, t[part], noise, abar).mean((1, 2, 3)) * abar[t[part]]
        wiener = v_error(_zero, words, x0, t[part], noise, abar).mean((1, 2, 3)) * abar[t[part]]
        found.append(torch.stack([error, wiener]))
    by_quarter = torch.cat(found, 1).view(2, QUARTERS, -1).mean(-1)
    return {"eps_loss": by_quarter[0].tolist(), "wiener": by_quarter[1].tolist()}


def _zero(sample: Tensor, t: Tensor, text: Tensor, return_dict: bool = False) -> tuple[Tensor]:
    del t, text, return_dict
    return (torch.zeros_like(sample),)


class Trainer:
    """Everything a leg needs to go on exactly: network, text table, optimizer, averages, step."""

    def __init__(
        self, settings: UNetSettings, emoji: list[Emoji], splits: dict[int, int], codec: LinearCodec, ids: dict[str, int], device: str = "cpu"
    ) -> None:
        self.settings = settings
        self.pools = Pools(emoji, splits, codec, ids, size=POOL, count=settings.pools, seed=settings.seed)
        self.device = torch.device(device)
        self.unet = make_unet(settings).to(self.device)
        text = nn.Embedding(len(ids), settings.text_width, padding_idx=0)
        nn.init.normal_(text.weight, std=TEXT_SCALE)
        with torch.no_grad():
            text.weight[0] = 0
        self.text = text.to(self.device)
        self.abar: Tensor = make_scheduler().alphas_cumprod.to(self.device)
        self.parameters = [*self.unet.parameters(), *self.text.parameters()]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.unet.parameters()), "share": 1.0}, {"params": [self.text.weight], "share": TEXT_RATE}],
            lr=settings.rate,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            fused=self.device.type == "cuda",
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = 0
        self._scales = ScalePenalty(self.unet)
        self._kept: dict[int, Tensor] = {}
        self._differentiate = Graphed(self._gradients)
        for level in (1, 2, 3):
            self.unet.up_blocks[level].register_forward_pre_hook(partial(self._drop_skips, level), with_kwargs=True)

    def _drop_skips(self, level: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del module
        if level in self._kept:
            kwargs["res_hidden_states_tuple"] = tuple(s * self._kept[level] for s in kwargs["res_hidden_states_tuple"])
        return args, kwargs

    def rate(self) -> float:
        """Warm-up, flat, and a linear descent over the last `decay` of the steps."""
        s = self.settings
        return s.rate * min(1.0, (self.step + 1) / s.warmup, max(0.02, (s.steps - self.step) / (s.decay * s.steps)))

    def drop_chance(self) -> float:
        """Inner levels first: 1 for a quarter of `early`, falling to `skip_drop` at its end."""
        s = self.settings
        opened = min(1.0, max(0.0, (self.step - s.early / 4) / (0.75 * s.early)))
        return 1 + (s.skip_drop - 1) * opened

    def train_step(self, x0: Tensor, tokens: Tensor) -> Tensor:
        """One optimizer step; random numbers are a function of seed, step and kind of device. Returns the v loss, a scalar on the device."""
        s, n = self.settings, len(x0)
        generator = torch.Generator(self.device).manual_seed(s.seed * 1_000_003 + self.step)
        draw = partial(torch.rand, generator=generator, device=self.device)
        early = max(0.0, 1 - self.step / s.early)
        t = torch.randint(0, 1000, (n,), generator=generator, device=self.device)
        t = torch.where(draw(n) < s.noisy * early, 800 + t // 5, t)
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        words = draw(n, 1) >= TEXT_DROP
        lot, chance = draw(n, 1, 1, 1), self.drop_chance()
        loss = self._differentiate(x0, tokens * words, t, noise, (lot >= chance / 2).float(), (lot >= chance).float())
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate() * group["share"]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(s.average, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return loss

    def _gradients(self, x0: Tensor, tokens: Tensor, t: Tensor, noise: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
        """Leaves the loss' gradients in the parameters; `outer` and `inner` `(B, 1, 1, 1)` keep (1) or drop (0) skips of up1 and of up2, up3."""
        self._kept = {1: outer, 2: inner, 3: inner}
        self._scales.total = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        loss = v_error(self.unet, self.text(tokens), x0, t, noise, self.abar).mean()
        (loss + SCALE_WEIGHT * self._scales.total).backward()  # type: ignore[no-untyped-call]
        self._kept = {}
        return loss.detach()

    @torch.no_grad()
    def swap_average(self) -> None:
        """Swaps the averaged weights in; called again it swaps them out."""
        for p, a in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(a)
            a.copy_(kept)

    def save(self, path: Path) -> None:
        """Writes the whole state, or leaves what was there."""
        state = {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "settings": asdict(self.settings),
        }
        save_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Goes on from `path`."""
        state = load_checkpoint(path)
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = [a.to(self.device) for a in state["average"]], state["step"]

    def run(self, folder: Path, val: tuple[Tensor, Tensor], every: int = 500, save_s: float = 120.0) -> None:
        """Trains to `settings.steps`, saving every two minutes and logging the validation loss every `every` steps."""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, s = folder / "checkpoint.safetensors", self.settings
        if checkpoint.exists():
            self.load(checkpoint)
        per_pool = POOL // s.batch
        number, saved, started, mean = -1, time.monotonic(), time.monotonic(), torch.zeros((), device=self.device)
        while self.step < s.steps:
            if self.step // per_pool != number:
                number = self.step // per_pool
                latents, tokens = self.pools.on(self.device, number)
            at = self.step % per_pool * s.batch
            mean.lerp_(self.train_step(latents[at : at + s.batch], tokens[at : at + s.batch]), 0.02)
            if self.step % every == 0 or self.step == s.steps:
                self.swap_average()
                losses = evaluate(self.unet, self.text.weight.detach(), *val, self.abar)
                self.swap_average()
                row = [self.step, round(time.monotonic() - started), round(float(mean), 5), *(round(x, 5) for x in losses["eps_loss"] + losses["wiener"])]
                with (folder / "curve.csv").open("a", newline="") as file:
                    csv.writer(file).writerow(row)
                print(row, flush=True)
            if time.monotonic() - saved > save_s or self.step == s.steps:
                self.save(checkpoint)
                saved = time.monotonic()
