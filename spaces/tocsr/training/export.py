"""Writes the teacher's asset folder: U-Net, autoencoder, scheduler, text table, latents, pictures, manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from nas.spaces.tocsr.training.codec import LinearCodec
from nas.spaces.tocsr.training.pictures import Emoji
from nas.spaces.tocsr.training.pools import choose_emoji, draw_batch

SPLITS = {"fit": 384, "measure": 128, "verify": 128}  # in the order of the split's number
PACKAGE, LICENCE = "fonts-noto-color-emoji", "OFL-1.1"


def shipped_samples(
    emoji: list[Emoji], splits: dict[int, int], codec: LinearCodec, ids: dict[str, int], seed: int = 11
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors of `data/latents.safetensors` and the rows of `data/pictures.json`: one poster a family."""
    latents, tokens, rows = [], [], []
    for split, (name, n) in enumerate(SPLITS.items()):
        rng = np.random.default_rng((seed, split))
        chosen = choose_emoji(emoji, splits, split, n, rng)
        drawn = draw_batch(emoji, chosen, codec, ids, rng)
        latents.append(drawn[0])
        tokens.append(drawn[1])
        rows += [{"name": emoji[i].name, "package": PACKAGE, "licence": LICENCE, "group": emoji[i].family, "split": name} for i in chosen]
    stacked = torch.cat(latents)
    scale = stacked.abs().amax((0, 2, 3)) / 127
    return {
        "latents": (stacked / scale[:, None, None]).round().to(torch.int8),
        "scale": scale.float(),
        "tokens": torch.cat(tokens),
        "group": torch.tensor([row["group"] for row in rows]),
        "split": torch.tensor([list(SPLITS).index(row["split"]) for row in rows], dtype=torch.uint8),
    }, rows


def write_assets(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDPMScheduler,
    embedding: Tensor,
    ids: dict[str, int],
    samples: tuple[dict[str, Tensor], Sequence[dict[str, Any]]],
    summary: dict[str, Any],
) -> None:
    """Writes everything beside `folder` and moves it into place; weights in fp16."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name, module in (("unet", unet), ("vae", vae)):
        module.save_config(part / name)
        state = {k: v.detach().half().contiguous() for k, v in module.state_dict().items()}
        save_file(state, part / name / "diffusion_pytorch_model.safetensors")
    scheduler.save_config(part / "scheduler")
    (part / "text").mkdir()
    (part / "data").mkdir()
    save_file({"embedding": embedding.detach().half().contiguous()}, part / "text" / "embedding.safetensors")
    save_file(samples[0], part / "data" / "latents.safetensors")
    _write_json(part / "text" / "vocabulary.json", ids)
    _write_json(part / "data" / "pictures.json", list(samples[1]))
    files = {str(p.relative_to(part)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(part.rglob("*")) if p.is_file()}
    _write_json(part / "manifest.json", {"version": folder.name, "files": files, **summary})
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
