"""A diffusers `UNet2DConditionModel` as a graph of steps: time embedding, conv_in, the stages `down0.. mid up0..`, out.

Every travelling tensor has its own name: `down1` writes `skip1a`, `skip1b`, `skip1c`, of which `down2` reads the last as its hidden state
and the up stages read each once; `mid` and the up stages write `h`. The output `eps` is the noise prediction whatever the network predicts natively.
"""

import string
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from nas.errors import DamagedFile, InputError
from nas.graph import StageGraph, Step
from nas.spaces.tocsr.stages import DownStage, Stage, UpStage, stage_of

INPUTS = ("sample", "timestep", "text")

_MUST_BE_OFF = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_embedding_act_fn",
    "time_cond_proj_dim",
    "center_input_sample",
    "dual_cross_attention",
)
"""Config keys of networks that read more than (sample, timestep, text)."""


class TimeEmbedding(nn.Module):
    """`timestep (B,) -> temb (B, T)`."""

    def __init__(self, projection: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.projection = projection
        self.embedding = embedding

    def forward(self, timestep: Tensor) -> Tensor:
        weight: Tensor = self.embedding.linear_1.weight  # type: ignore[union-attr,assignment]
        embedded: Tensor = self.embedding(self.projection(timestep).to(weight.dtype))
        return embedded


class NoiseConversion(nn.Module):
    """Turns what the network says into a noise prediction, with `abar_t` of the scheduler the teacher was trained with.

    epsilon: eps = net. v_prediction: eps = sqrt(abar) net + sqrt(1 - abar) x_t. Input skip: eps = net + sqrt(1 - abar) x_t.

    Args:
        scheduler: a diffusers scheduler config (betas, `prediction_type`).
        input_skip: the network predicts the noise less its linear part in `x_t`.
    """

    alphas_cumprod: Tensor

    def __init__(self, scheduler: Mapping[str, Any], input_skip: bool) -> None:
        super().__init__()
        missing = [key for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule") if key not in scheduler]
        if missing and scheduler.get("trained_betas") is None:
            raise InputError(
                f"scheduler config: needs the betas the teacher was trained with; {', '.join(missing)} is missing (flow matching is not supported)"
            )
        self.prediction_type = scheduler.get("prediction_type", "epsilon")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"scheduler config: prediction_type must be 'epsilon' or 'v_prediction', got '{self.prediction_type}'")
        if input_skip and self.prediction_type != "epsilon":
            raise InputError("teacher config: input_skip needs prediction_type 'epsilon'; a v prediction has a skip of its own")
        self.input_skip = input_skip
        known = DDPMScheduler.from_config(dict(scheduler))
        self.register_buffer("alphas_cumprod", known.alphas_cumprod.clone(), persistent=False)

    def extra_repr(self) -> str:
        """What tells two conversions apart; part of a teacher's key."""
        return f"{self.prediction_type}, input_skip={self.input_skip}"

    @property
    def changes(self) -> bool:
        """Whether the noise prediction differs from the network's output."""
        return self.input_skip or self.prediction_type != "epsilon"

    def forward(self, net: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
        """`net` (B, C, H, W), `sample` (B, C or more, H, W: conditions after the latent), `timestep` (B,) -> eps (B, C, H, W)."""
        abar = self.alphas_cumprod[timestep.long()].view(-1, 1, 1, 1)
        skip = (1 - abar).sqrt().to(net.dtype) * sample[:, : net.shape[1]]
        return net + skip if self.input_skip else abar.sqrt().to(net.dtype) * net + skip


class Output(nn.Module):
    """`h -> eps`, or `(h, sample, timestep) -> eps` with a conversion."""

    def __init__(self, norm: nn.Module | None, activation: nn.Module | None, conv: nn.Module, conversion: NoiseConversion | None) -> None:
        super().__init__()
        self.norm = norm
        self.activation = activation
        self.conv = conv
        self.conversion = conversion

    def forward(self, h: Tensor, *sample_and_timestep: Tensor) -> Tensor:
        if self.norm is not None and self.activation is not None:
            h = self.activation(self.norm(h))
        h = self.conv(h)
        return h if self.conversion is None else self.conversion(h, *sample_and_timestep)


def check_config(config: Mapping[str, Any]) -> None:
    """Raises unless the network reads a sample, a timestep and text, and nothing else."""
    for key in _MUST_BE_OFF:
        if config.get(key):
            raise InputError(f"teacher config '{key}' must be off, got {config[key]!r}; SD1.5-like networks are supported, SDXL-like ones are not")


def check_channels(config: Mapping[str, Any]) -> None:
    """Raises unless the network reads as many channels as it predicts, the latent's: what a teacher does, and an inpainting network does not."""
    read, predicted = config.get("in_channels", 4), config.get("out_channels", 4)
    if read != predicted:
        raise InputError(
            f"teacher config 'in_channels' must equal 'out_channels', the latent's channels, got {read} and {predicted}; "
            "an inpainting or super-resolution network cannot be a teacher, give the text-to-image network it was made from"
        )


_AT_MOST = {
    "block_out_channels": 1 << 14, "layers_per_block": 64, "transformer_layers_per_block": 64, "in_channels": 1 << 12, "out_channels": 1 << 12,
    "sample_size": 1 << 14, "cross_attention_dim": 1 << 14, "attention_head_dim": 1 << 12, "num_attention_heads": 1 << 12, "num_train_timesteps": 1 << 20,
}  # fmt: skip
_MOST_BLOCKS = 64  # blocks, and layers of a surrogate stage


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises if a config, which may come from anywhere, asks for a network so large that building it would not end.

    Raises:
        DamagedFile: names the entry.
    """
    for name, value in _entries(config):
        if isinstance(value, int) and value > _AT_MOST.get(name, 1 << 31):
            raise DamagedFile(f"config '{name}' must be at most {_AT_MOST.get(name, 1 << 31)}, got {value}")
        if isinstance(value, list) and len(value) > _MOST_BLOCKS and name != "trained_betas":
            raise DamagedFile(f"config '{name}' must have at most {_MOST_BLOCKS} entries, got {len(value)}")


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested objects and lists, with the key it stands under."""
    yield name, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _entries(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, name)


def stages_of(unet: UNet2DConditionModel) -> dict[str, Stage]:
    """Stage name -> stage over the network's own units, in execution order."""
    named = {f"down{i}": stage_of(block) for i, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        named["mid"] = stage_of(unet.mid_block)
    return named | {f"up{i}": stage_of(block) for i, block in enumerate(unet.up_blocks)}


def unet_graph(unet: UNet2DConditionModel) -> StageGraph:
    """The network as steps that reference its own modules; a `CompactUNet`'s graph ends with the conversion its config asks for."""
    check_config(unet.config)
    conversion = getattr(unet, "noise_conversion", None)
    conversion = conversion if conversion is not None and conversion.changes else None
    steps = [
        Step("time", ("timestep",), ("temb",), TimeEmbedding(unet.time_proj, unet.time_embedding)),
        Step("conv_in", ("sample",), ("skip",), unet.conv_in),
    ]
    skips, h = ["skip"], "skip"
    for name, stage in stages_of(unet).items():
        reads: tuple[str, ...] = (h, "temb", "text")
        if isinstance(stage, DownStage):
            count = stage.n_skips + (stage.sampler is not None)
            writes: tuple[str, ...] = tuple(f"skip{name.removeprefix('down')}{letter}" for letter in string.ascii_lowercase[:count])
            skips += writes
            h = writes[-1]
        else:
            writes, h = ("h",), "h"
        if isinstance(stage, UpStage):
            reads += tuple(skips.pop() for _ in range(stage.n_skips))
            reads += (skips[-1],) if stage.sampler is not None else ()
        steps.append(Step(name, reads, writes, stage))
    out = Output(unet.conv_norm_out, unet.conv_act, unet.conv_out, conversion)
    steps.append(Step("out", (h, "sample", "timestep") if conversion is not None else (h,), ("eps",), out))
    return StageGraph(INPUTS, tuple(steps), "eps")


def example_inputs(unet: UNet2DConditionModel, size: int | tuple[int, int], tokens: int = 77, batch: int = 1) -> dict[str, Tensor]:
    """Graph inputs of the network's widths, dtype and device (meta included): standard normal sample and text, timestep 500."""
    weight = next(unet.conv_in.parameters())
    height, width = (size, size) if isinstance(size, int) else size
    like = {"dtype": weight.dtype, "device": weight.device}
    return {
        "sample": torch.randn(batch, unet.config.in_channels, height, width, **like),
        "timestep": torch.full((batch,), 500, device=weight.device),
        "text": torch.randn(batch, tokens, unet.config.cross_attention_dim, **like),
    }
