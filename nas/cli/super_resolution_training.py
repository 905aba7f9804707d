"""`nas tocsr adapt`, `distill` and `run`: from a winner to a one-step super-resolution model, step by step or by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nas.cli import options
from nas.cli.console import out, print_json

if TYPE_CHECKING:
    from nas.spaces.tocsr.sr.run import Artefact

Photographs = Annotated[Path, typer.Option("--photographs", help="Folder of photographs to train on.")]
HeldOut = Annotated[list[str] | None, typer.Option("--held-out", help="Name of a photograph that is not trained on; several allowed.")]
Longest = Annotated[int, typer.Option("--longest", help="Photographs are halved until no side has more pixels.")]
Crops = Annotated[int, typer.Option("--crops", help="How many training pairs.")]
Size = Annotated[int, typer.Option("--size", help="Side of a crop in pixels.")]
Degradation = Annotated[str, typer.Option("--degradation", help="bicubic or realesrgan.")]
To = Annotated[Path, typer.Argument(metavar="OUT", help="Pipeline folder to write; checkpoints lie beside it.")]


def adapt(
    backbone: Annotated[Path, typer.Argument(metavar="BACKBONE", help="Run directory, or a model folder such as RUN/winner.")],
    to: To,
    photographs: Photographs,
    held_out: HeldOut = None,
    longest: Longest = 1200,
    crops: Crops = 8000,
    size: Size = 96,
    degradation: Degradation = "bicubic",
    teacher: Annotated[str, typer.Option("--teacher", help="Whose autoencoder and null prompt: embedded, a diffusers folder, or a hub id.")] = "embedded",
    target: Annotated[str, typer.Option("--target", help="What is diffused: latent (the paper) or residual on the LR latent.")] = "residual",
    prediction: Annotated[str | None, typer.Option("--prediction", help="Read the network as epsilon or v_prediction; by default as it is.")] = None,
    weighting: Annotated[str, typer.Option("--weighting", help="Of the loss: eps (Eq. 21) or v (Eq. 21 divided by abar).")] = "v",
    steps: options.Steps = 8000,
    batch: options.Batch = 8,
    accumulate: options.Accumulate = 1,
    rate: options.Rate = 1e-3,
    precision: options.Precision = "fp32",
    seed: options.TrainingSeed = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    log: options.Log = None,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Make a winner a conditional diffusion model for super-resolution (Eq. 17-21); the same command goes on with a training that was stopped."""
    options.set_threads(threads)
    from nas.run_directory import RunDirectory
    from nas.spaces.tocsr.sr.recipe import Photographs as Source
    from nas.spaces.tocsr.sr.run import adapt_backbone
    from nas.summary import winner_folder

    folder = backbone if (backbone / "config.json").is_file() else winner_folder(RunDirectory.open(backbone), None)
    source = Source(str(photographs), tuple(held_out or ()), longest, crops, size, degradation)
    table = {"target": target, "prediction_type": prediction, "weighting": weighting, **_training(steps, batch, accumulate, rate, precision, seed)}
    with options.terminal(quiet, log, to.with_name(f"{to.name}-logs")) as terminal:
        adapt_backbone(folder, teacher, source, table, to, terminal, device or "cpu")
    _say(to, json)


def distill(
    adapted: Annotated[Path, typer.Argument(metavar="ADAPTED", help="Pipeline folder that `nas tocsr adapt` wrote.")],
    to: To,
    photographs: Photographs,
    held_out: HeldOut = None,
    longest: Longest = 1200,
    crops: Crops = 8000,
    size: Size = 96,
    degradation: Degradation = "bicubic",
    teacher: Annotated[float, typer.Option("--teacher-weight", help="Weight of Eq. 23.")] = 1.0,
    hr: Annotated[float, typer.Option("--hr", help="Weight of the regression to the HR latent; 0 is pure Eq. 23.")] = 0.0,
    image_l1: Annotated[float, typer.Option("--image-l1", help="Weight of the L1 error of the decoded picture.")] = 0.0,
    lpips: Annotated[float, typer.Option("--lpips", help="Weight of LPIPS; needs its package.")] = 0.0,
    targets: Annotated[int, typer.Option("--targets", help="Pairs that the multi-step model samples.")] = 2500,
    teacher_steps: Annotated[int, typer.Option("--teacher-steps", help="DDIM steps of such a sample.")] = 15,
    steps: options.Steps = 12000,
    batch: options.Batch = 8,
    accumulate: options.Accumulate = 1,
    rate: options.Rate = 1e-3,
    precision: options.Precision = "fp32",
    seed: options.TrainingSeed = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    log: options.Log = None,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Distil a multi-step model into a one-step one (Equations 22 and 23 and optional terms); the same command goes on with a training that was stopped."""
    options.set_threads(threads)
    from nas.spaces.tocsr.sr.recipe import Photographs as Source
    from nas.spaces.tocsr.sr.run import distill_adapted

    source = Source(str(photographs), tuple(held_out or ()), longest, crops, size, degradation)
    terms = {"teacher": teacher, "hr": hr, "image_l1": image_l1, "lpips": lpips, "targets": targets, "teacher_steps": teacher_steps}
    with options.terminal(quiet, log, to.with_name(f"{to.name}-logs")) as terminal:
        distill_adapted(adapted, source, terms | _training(steps, batch, accumulate, rate, precision, seed), to, terminal, device or "cpu")
    _say(to, json)


def run(
    recipe: Annotated[Path, typer.Option("--config", help="Recipe, such as recipes/embedded.toml.")],
    workdir: Annotated[Path, typer.Option("--workdir", help="Where run directories are kept.")] = Path("runs"),
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Do a whole recipe: expand, search, finetune, adapt, distill, evaluate; the same command goes on with one that was stopped."""
    options.set_threads(threads)
    from nas.spaces.tocsr.sr.recipe import Recipe
    from nas.spaces.tocsr.sr.run import run as run_recipe

    with options.terminal(quiet, None, workdir) as terminal:
        found = run_recipe(Recipe.read(recipe), workdir, terminal, device or "cpu")
    if json:
        print_json([{"step": a.step, "path": str(a.path), "fingerprint": a.fingerprint, "seconds": a.seconds} for a in found])
    else:
        _show(found)


def _show(artefacts: "list[Artefact]") -> None:
    table = Table("step", "artefact", "fingerprint", "seconds", box=None, header_style="bold", pad_edge=False)
    for artefact in artefacts:
        table.add_row(artefact.step, str(artefact.path), artefact.fingerprint, f"{artefact.seconds:g}")
    out.print(table)


def _say(written: Path, json: bool) -> None:
    from nas.spaces.tocsr.resources import leads

    if leads() and json:
        print_json({"path": str(written)})
    elif leads():
        out.print(str(written), soft_wrap=True)


def _training(steps: int, batch: int, accumulate: int, rate: float, precision: str, seed: int) -> dict[str, Any]:
    return {"steps": steps, "batch": batch, "accumulate": accumulate, "rate": rate, "precision": precision, "seed": seed}
