"""Writes a distilled pipeline as an asset of the package: half precision, with its model card and a manifest.

python -m nas.spaces.tocsr.sr.ship FOLDER spaces/tocsr/assets/tocsr-sr-v2 --figures benchmarks/results/super_resolution-DATE.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas.amounts import amount
from nas.evaluators.costs import count_params
from nas.files import read_json, whole_folder
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.steps import MADE_FROM, save_without_paths


def ship(folder: Path, to: Path, figures: Mapping[str, Any]) -> None:
    """Writes the pipeline in `folder` to `to`; `figures` is what `benchmarks/super_resolution.py` wrote of it, as its first model."""
    pipeline = TOCSRPipeline.from_pretrained(folder)
    made_from = read_json(folder / MADE_FROM, dict)
    text = card(to.name, pipeline, made_from, figures)
    pipeline.to(torch.float16)
    with whole_folder(to) as draft:
        save_without_paths(pipeline, draft)
        shutil.copy(folder / MADE_FROM, draft)
        (draft / "README.md").write_text(text, encoding="utf-8")


def card(name: str, pipeline: TOCSRPipeline, made_from: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The model card as Markdown, with a model hub's front matter."""
    ours = next(iter(figures["rows"]))
    rows = [row for row in figures["whole_photographs"] if row["system"] in ("bicubic", "ridge", ours)]
    row = next(row for row in rows if row["system"] == ours)
    terms = ", ".join(f"{key} {value:g}" for key, value in made_from["origin"]["terms"].items() if value)
    n = len(figures["held_out"])
    lines = (f"| {r['system']} | {r['psnr']:.2f} | {r['psnr_y']:.2f} | {r['ssim']:.4f} | {r['gmsd']:.4f} |" for r in rows)
    return _CARD.format(
        name=name, row=pipeline.config.row, terms=terms, unet=amount(count_params(pipeline.unet)), vae=amount(count_params(pipeline.vae)), n=n,
        table="\n".join(lines), bicubic=row["psnr_over_bicubic"], p_bicubic=row["p_over_bicubic"], ridge=row["psnr_over_ridge"], p_ridge=row["p_over_ridge"],
    )  # fmt: skip


_CARD = """\
---
library_name: diffusers
pipeline_tag: image-to-image
license: apache-2.0
tags: [super-resolution, diffusion, one-step]
---

# {name}: x4 super-resolution in one step

**The row that ships: {row}** (weights of the loss: {terms}).

One-step U-Net of {unet} parameters, the multi-step one it was distilled from, and the embedded 16-channel autoencoder ({vae}). The backbone is
the winner of `nas search --space tocsr_unet --eps 0.005`; `recipes/embedded.toml` repeats all steps.

{n} held-out photographs, whole, bicubic x4, means:

| | PSNR | PSNR (Y) | SSIM | GMSD |
|---|---|---|---|---|
{table}

Gain over bicubic {bicubic:+.2f} dB (paired t-test, p = {p_bicubic:.2g}), over a 5x5 ridge regression in latent space {ridge:+.2f} dB (p = {p_ridge:.2g}).

## Data

26 photographs of Debian's lomiri-wallpapers, mate-backgrounds and plasma-workspace-wallpapers (CC0-1.0, CC-BY-4.0, CC-BY-SA, GPL-2+, LGPLv3;
docs/embedded_teacher.md names them), random crops; split by photograph. None of them is in this folder.

## Limits

Trained for less than two hours on one core, for pictures that are bicubic reductions: noise, JPEG artefacts and blur of cameras are kept or
amplified. It sharpens edges; it does not invent texture.

```python
from nas.spaces.tocsr.sr import TOCSRPipeline

pipeline = TOCSRPipeline.from_pretrained("{name}")
large = pipeline(picture).images[0]
```
"""


def main() -> None:
    """The command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--figures", type=Path, required=True)
    asked = parser.parse_args()
    ship(asked.folder, asked.to, json.loads(asked.figures.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
