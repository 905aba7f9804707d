"""Is the one-step model better than bicubic, and than a linear model of the same latents, on photographs that neither was trained on?

Every held-out photograph of the recipe as a whole, bicubic x4. Rows: bicubic; a 5 x 5 ridge regression from the LR latent to the HR latent,
fitted to the training pairs and decoded by the same autoencoder; each pipeline folder in one step, and in `--many` steps on textured windows
of 256 pixels; the autoencoder alone, from the HR picture (a ceiling). Paired t-tests over photographs.

    python benchmarks/super_resolution.py --recipe recipes/embedded.toml --photographs FOLDER --model NAME=FOLDER ... [--many 15] [--pictures docs/images]

Also how tiles agree with the whole. With `--metric niqe` (or others that other packages have) instead: these of whole photographs, the photographs
themselves among the rows; windows are too small for NIQE's statistics.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dated import write_result
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nas.cli.console import Terminal
from nas.home import nas_home
from nas.spaces.tocsr.sr.evaluate import BICUBIC, Pair, Row, System, bicubic_up, evaluate, gain, parts, system_of
from nas.spaces.tocsr.sr.images import FACTOR, to_picture
from nas.spaces.tocsr.sr.metrics import ALWAYS, available
from nas.spaces.tocsr.sr.pairs import Pairs, bicubic, decode, encode, to_tensor, upsample
from nas.spaces.tocsr.sr.photographs import Picture
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.recipe import Recipe
from nas.spaces.tocsr.sr.steps import pairs_of

WINDOW = 256  # pixels of a textured window
TAPS, FITTED = 5, 3000  # of the ridge regression: its window, how many pairs
SIZE = 512


class Ridge:
    """`z_lr` -> `z_lr` + a linear function of its 5 x 5 surroundings, all channels to all; penalty 1e-4 of the mean variance."""

    def __init__(self, pairs: Pairs) -> None:
        n = pairs.z_lr.shape[1]
        size = n * TAPS**2 + 1
        a, b = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, n, dtype=torch.float64)
        for rows in torch.arange(min(FITTED, len(pairs))).split(100):
            z_lr, z_hr = pairs.z_lr[rows].float(), pairs.z_hr[rows].float()
            x = self._surroundings(z_lr).movedim(1, -1).reshape(-1, size)
            y = (z_hr - z_lr).movedim(1, -1).reshape(-1, n)
            a += (x.T @ x).double()
            b += (x.T @ y).double()
        self._weight = torch.linalg.solve(a + 1e-4 * a.diagonal().mean() * torch.eye(size, dtype=torch.float64), b).float()

    def __call__(self, z_lr: Tensor) -> Tensor:
        return z_lr + (self._surroundings(z_lr).movedim(1, -1) @ self._weight).movedim(-1, 1)

    @staticmethod
    def _surroundings(z: Tensor) -> Tensor:
        """`(B, C * 25 + 1, h, w)`, the last of them 1."""
        patches = functional.unfold(functional.pad(z, [TAPS // 2] * 4, mode="replicate"), TAPS).view(len(z), -1, *z.shape[2:])
        return torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)


def through_latents(pipeline: TOCSRPipeline, of: Callable[[Tensor], Tensor]) -> System:
    """A system that maps the LR latent of the whole picture."""

    @torch.no_grad()
    def enlarge(low: Picture) -> Picture:
        z = of(encode(pipeline.vae, upsample(to_tensor(low))))
        return to_picture(decode(pipeline.vae, z)[0].clamp(-1, 1))

    return enlarge


def whole(name: str, picture: Picture) -> Pair:
    """The photograph and its small version."""
    height, width = (side // FACTOR * FACTOR for side in picture.shape[:2])
    large = np.ascontiguousarray(picture[:height, :width])
    return Pair(name, bicubic(large), large)


def textured(pair: Pair) -> Pair:
    """The window that bicubic gets most wrong."""
    wrong = np.abs(bicubic_up(pair.low).astype(float) - pair.high).mean(-1)
    places = [(y, x) for y in range(0, wrong.shape[0] - WINDOW + 1, 32) for x in range(0, wrong.shape[1] - WINDOW + 1, 32)]
    y, x = max(places, key=lambda at: float(wrong[at[0] : at[0] + WINDOW, at[1] : at[1] + WINDOW].mean()))
    small = slice(y // FACTOR, (y + WINDOW) // FACTOR), slice(x // FACTOR, (x + WINDOW) // FACTOR)
    return Pair(pair.name, np.ascontiguousarray(pair.low[small]), np.ascontiguousarray(pair.high[y : y + WINDOW, x : x + WINDOW]))


def table(rows: list[Row], baselines: tuple[str, ...], more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Means, gains over the baselines with their p (of PSNR and of `more` metrics), seconds a picture."""
    by_name = {row.system: row for row in rows}
    found = []
    for row in rows:
        entry: dict[str, Any] = {"system": row.system, **row.values, "seconds": round(row.seconds, 3), "psnr_each": row.each["psnr"]}
        for name in (name for name in baselines if name in by_name and name != row.system):
            entry[f"psnr_over_{name}"], entry[f"p_over_{name}"] = gain(row, by_name[name])
            for metric in (metric for metric in more if row.each.get(metric)):
                entry[f"{metric}_over_{name}"], entry[f"p_{metric}_over_{name}"] = gain(row, by_name[name], metric)
        entry.update({f"{metric}_each": row.each.get(metric) for metric in more})
        found.append(entry)
    return found


def sheet(pairs: list[Pair], systems: dict[str, System], side: int = 128, zoom: int = 2) -> Image.Image:
    """The middle of each window: small picture, the systems, the photograph."""
    columns: list[Callable[[Pair], Picture]] = [lambda p: p.low.repeat(FACTOR, 0).repeat(FACTOR, 1)]
    columns += [(lambda p, s=s: s(p.low)) for s in systems.values()]
    columns.append(lambda p: p.high)
    at = (WINDOW - side) // 2
    rows = [np.concatenate([column(pair)[at : at + side, at : at + side] for column in columns], axis=1) for pair in pairs]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/embedded.toml"))
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--model", action="append", default=[], help="NAME=FOLDER, the first is the one that ships")
    parser.add_argument("--many", type=int, default=15)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--shown", nargs="+", default=[], help="names of the photographs in the picture; the first six by default")
    parser.add_argument("--metric", action="append", default=[], help="of other packages")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = Recipe.read(asked.recipe)
    source = replace(recipe.photographs, folder=str(asked.photographs))
    training, held = source.load(Terminal())
    folders = {name: Path(folder) for name, _, folder in (model.partition("=") for model in asked.model)}
    pipelines = {name: TOCSRPipeline.from_pretrained(folder) for name, folder in folders.items()}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    first = next(iter(pipelines.values()))
    ridge = Ridge(pairs_of(training, first.vae, source.data, nas_home() / "pairs", Terminal()))
    baselines: dict[str, System] = {BICUBIC: bicubic_up, "ridge": through_latents(first, ridge)}
    ours = {name: system_of(pipeline, 1) for name, pipeline in pipelines.items()}
    pairs = [whole(name, picture) for name, picture in held.items()]
    if asked.metric:
        write_result("super_resolution_other_metrics", other_metrics(baselines | ours, pairs, asked.metric))
        return
    windows = [textured(pair) for pair in pairs]
    answers = {pair.low.tobytes(): pair.high for pair in windows}
    ceiling = through_latents(first, lambda z: z)

    @torch.no_grad()
    def from_hr(low: Picture) -> Picture:
        return to_picture(decode(first.vae, encode(first.vae, to_tensor(answers[low.tobytes()])))[0].clamp(-1, 1))

    many = system_of(first, asked.many)
    on_windows = baselines | {"autoencoder of the LR picture": ceiling, **ours, f"{asked.many} steps": many, "autoencoder of the HR picture": from_hr}
    content: dict[str, Any] = {
        "held_out": list(held),
        "rows": {name: pipeline.config.row for name, pipeline in pipelines.items()},
        "whole_photographs": table(evaluate(baselines | ours, pairs, ALWAYS), (BICUBIC, "ridge")),
        "windows": table(evaluate(on_windows, windows, ALWAYS), (BICUBIC, "ridge")),
        "window": WINDOW,
        "parts_at_512": [{"name": p.name, "params": p.params, "macs": p.macs, "macs_with_attention": p.macs_with_attention} for p in parts(first, SIZE)],
        "tiles": tiles(first, pairs),
    }
    write_result("super_resolution", content)
    if asked.pictures:
        shown = {BICUBIC: bicubic_up, "ridge": baselines["ridge"], **ours, "many": many}
        chosen = [pair for pair in windows if pair.name in asked.shown] or windows[:6]
        sheet(chosen, shown).save(asked.pictures / "super_resolution.png", optimize=True)


def other_metrics(systems: dict[str, System], pairs: list[Pair], metrics: list[str]) -> dict[str, Any]:
    """Rows of the systems and of the photographs themselves."""
    there, missing = available(metrics)
    answers = {pair.low.tobytes(): pair.high for pair in pairs}
    rows = evaluate({**systems, "photograph": lambda low: answers[low.tobytes()]}, pairs, ["psnr", *there])
    return {
        "photographs": [pair.name for pair in pairs],
        "rows": table(rows, (BICUBIC, "photograph"), there),
        "packages": {name: version(name) for name in ("pyiqa", "lpips", "torch-fidelity") if installed(name)},
        "missing": missing | dict(rows[0].failed),
    }


def installed(name: str) -> bool:
    """Whether the distribution is there."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def tiles(pipeline: TOCSRPipeline, pairs: list[Pair]) -> list[dict[str, float]]:
    """PSNR on four photographs by the side of tiles, and how far they are from the whole picture at once, in levels of 255."""
    some, found = pairs[:4], []
    wholes = {pair.name: system_of(pipeline, 1, tile=0)(pair.low).astype(float) for pair in some}
    for side in (24, 32, 48, 64, 96, 0):
        system = system_of(pipeline, 1, tile=side, overlap=8 if side else 0)
        made = {pair.name: system(pair.low) for pair in some}
        apart = [np.abs(made[name] - large) for name, large in wholes.items()]
        (row,) = evaluate({"it": lambda low, made=made: made[next(p.name for p in some if p.low is low)]}, some, ["psnr"])
        found.append(
            {"tile": side, "psnr": row.values["psnr"], "mean_level": float(np.mean([a.mean() for a in apart])), "most": float(max(a.max() for a in apart))}
        )
    return found


if __name__ == "__main__":
    main()
