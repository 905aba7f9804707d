"""`TOCSRPipeline`: x4 super-resolution in one step (or many), a diffusers pipeline."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from nas.errors import DamagedFile, InputError, NasError
from nas.files import MANIFEST, damage, read_json
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.sr.conditional import ConditionalModel, Diffused
from nas.spaces.tocsr.sr.images import FACTOR, joined, split, to_unit
from nas.spaces.tocsr.sr.pairs import decode, encode, upsample
from nas.spaces.tocsr.sr.tiles import blended, windows

VERSION = 1
"""Of the folder; another one is refused."""

TILE, OVERLAP = 64, 8
"""Pixels of the small picture."""

SUPPORT = 4
"""Pixels around a window that are upsampled with it; bicubic interpolation reads 2."""

LEAST = 16
"""Pixels a side that the networks are given at least."""

_UNET = ("diffusers", "ModelMixin")
"""What diffusers is told of a `CompactUNet`: a class it knows, so that it takes the loaded model, but cannot build in its place."""


class TOCSRPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Enlarges pictures four times.

    Args:
        vae: the autoencoder.
        scheduler: the noise schedule of the diffusion model.
        unet: the one-step model (Eq. 22 of [TOC-SR]).
        multistep: the multi-step model that it was distilled from; either may be missing.
        target: what is diffused, see `conditional.Diffused`.
        residual_scale: its unit.
        row: the terms of the loss that the one-step model was trained with, as tables call them.
        tocsr_version: of the folder.
    """

    _optional_components = ["unet", "multistep"]  # noqa: RUF012  # diffusers' protocol
    model_cpu_offload_seq = "unet->multistep->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        unet: CompactUNet | None = None,
        multistep: CompactUNet | None = None,
        target: str = "residual",
        residual_scale: float = 1.0,
        row: str = "",
        tocsr_version: int = VERSION,
    ) -> None:
        super().__init__()
        if unet is None and multistep is None:
            raise InputError("a TOCSRPipeline needs a one-step unet, a multi-step one, or both")
        diffused = Diffused(target, residual_scale)
        self.register_modules(vae=vae, scheduler=scheduler, unet=unet, multistep=multistep)
        places = {name: _UNET for name, model in (("unet", unet), ("multistep", multistep)) if model is not None}
        self.register_to_config(target=target, residual_scale=residual_scale, row=row, tocsr_version=tocsr_version, **places)
        self.diffused = diffused

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "TOCSRPipeline":
        """The pipeline saved in a folder; takes diffusers' options, such as `torch_dtype`.

        Raises:
            InputError: there is no such folder, or it is of another version.
            DamagedFile: a file in it is missing or not what its manifest vouches for.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"no pipeline folder '{folder}'; give one that TOCSRPipeline.save_pretrained wrote")
        if (folder / MANIFEST).exists() and (wrong := damage(folder)):
            raise DamagedFile(f"{wrong[0]}; install or save the pipeline again")
        index = read_json(folder / "model_index.json", {"_class_name": str, "tocsr_version?": int, "unet?": list, "multistep?": list})
        if index["_class_name"] != cls.__name__:
            raise InputError(f"pipeline folder '{folder}' must hold a {cls.__name__}, got {index['_class_name'][:60]}")
        if index.get("tocsr_version") != VERSION:
            raise InputError(f"pipeline folder '{folder}' is of version {index.get('tocsr_version')}, this toolkit reads {VERSION}; use the one that made it")
        dtype = {"torch_dtype": options["torch_dtype"]} if "torch_dtype" in options else {}
        for name in cls._optional_components:
            if index.get(name, [None])[0] is not None and name not in options:
                options[name] = CompactUNet.from_pretrained(folder / name, **dtype).eval()
        try:
            loaded: TOCSRPipeline = super().from_pretrained(str(folder), use_safetensors=True, **options)
        except NasError:
            raise
        except Exception as error:  # diffusers builds whatever the files say: a wrong one fails anywhere in it
            reason = (str(error).split(". ")[0].splitlines() or [""])[0][:200]
            raise DamagedFile(f"pipeline folder '{folder}': {reason or type(error).__name__}; save it again") from error
        loaded.vae.eval()
        return loaded

    def model(self, steps: int) -> ConditionalModel:
        """The model that takes so many steps.

        Raises:
            InputError: the pipeline has none.
        """
        unet = (self.unet or self.multistep) if steps == 1 else self.multistep
        if unet is None:
            raise InputError(f"this pipeline has no multi-step model; it takes 1 step, got {steps}")
        return ConditionalModel(unet, self.diffused).to(self.device)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image],
        num_inference_steps: int = 1,
        *,
        tile: int = TILE,
        overlap: int = OVERLAP,
        seed: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Any]]:
        """The picture, or pictures, four times as wide and high.

        Args:
            image: of any size and mode; transparency is enlarged bicubically, gray pictures stay gray, cameras' orientation is applied.
            num_inference_steps: 1, or steps of DDIM.
            tile: side of the tiles in pixels of the small picture; 0 is the whole picture at once.
            overlap: of the tiles.
            seed: of the noise; the same for every picture.
            output_type: "pil" or "np" (`(H, W, 3)` float in [0, 1], colours only).
            return_dict: diffusers' output object, else a tuple.
        """
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type must be 'pil' or 'np', got '{output_type}'")
        pictures = [image] if isinstance(image, Image.Image) else list(image)
        found: list[Any] = []
        for picture in pictures:
            colours, kept = split(picture)
            enlarged = self.enlarge(colours, num_inference_steps, tile=tile, overlap=overlap, seed=seed)
            found.append(to_unit(enlarged) if output_type == "np" else joined(enlarged, kept))
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    @torch.no_grad()
    def enlarge(self, low: Tensor, steps: int = 1, *, tile: int = TILE, overlap: int = OVERLAP, seed: int = 0) -> Tensor:
        """Colours `(3, h, w)` in [-1, 1] -> `(3, 4 h, 4 w)` in [-1, 1].

        The noise of the whole picture is drawn at once, so that tiles see what the whole would.
        """
        f = 2 ** (len(self.vae.config.block_out_channels) - 1)
        unit = max(1, f // FACTOR)  # small pixels that make a whole number of latents
        per_pixel = FACTOR / f
        if tile % unit or overlap % unit:
            raise InputError(f"tile and overlap must be multiples of {unit} with this autoencoder, got {tile} and {overlap}")
        height, width = low.shape[1:]
        padded = _padded(low[None].float(), unit)
        model = self.model(steps)
        tall, wide = padded.shape[2:]
        grid = (round(tall * per_pixel), round(wide * per_pixel))
        noise = torch.randn(1, int(self.vae.config.latent_channels), *grid, generator=torch.Generator().manual_seed(seed))
        areas = windows(tall, wide, tile, overlap)

        def parts() -> Iterator[tuple[tuple[slice, slice], Tensor]]:
            for area in self.progress_bar(areas):
                z_lr = encode(self.vae, _upsampled(padded, area).to(self.device, self.vae.dtype))
                z = model.sample(noise[:, :, *(_times(s, per_pixel) for s in area)].to(z_lr), z_lr, steps)
                yield area, decode(self.vae, z)[0].float()

        whole = blended(parts(), tall, wide, FACTOR, overlap, self.device)
        return whole[:, : FACTOR * height, : FACTOR * width].clamp_(-1, 1).cpu()


def _padded(low: Tensor, unit: int) -> Tensor:
    """The picture continued by its edges to a multiple of `unit` pixels, at least `LEAST`, a side."""
    right, below = (max(-(-side // unit) * unit, LEAST) - side for side in (low.shape[3], low.shape[2]))
    return torch.nn.functional.pad(low, (0, right, 0, below), mode="replicate")


def _upsampled(low: Tensor, area: tuple[slice, slice]) -> Tensor:
    """A window of `upsample(low)`, computed from the window and the few pixels around it that interpolation reads."""
    wide = [slice(max(0, s.start - SUPPORT), min(side, s.stop + SUPPORT)) for s, side in zip(area, low.shape[2:], strict=True)]
    inner = (_times(slice(s.start - w.start, s.stop - w.start), FACTOR) for s, w in zip(area, wide, strict=True))
    return upsample(low[:, :, *wide])[:, :, *inner]


def _times(window: slice, factor: float) -> slice:
    return slice(round(window.start * factor), round(window.stop * factor))
