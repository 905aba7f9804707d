"""`nas tocsr`: TOC-SR from end to end, before and after the search."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas.amounts import amount
from nas.cli import options
from nas.cli.console import out, print_json, print_legend
from nas.errors import InputError

tocsr = typer.Typer(help="TOC-SR from end to end: what comes before and after the search.", no_args_is_help=True, rich_markup_mode=None)


@tocsr.command("expand")
def expand(
    teacher: Annotated[Path, typer.Option("--teacher", help="Diffusers folder to expand, such as SD1.5: unet, vae, scheduler.")],
    data: Annotated[list[Path], typer.Option("--data", help="Folder of pictures to train on; several allowed (LSDIR, FFHQ and DIV2K as they are laid out).")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write the expanded teacher to; it must not exist.")],
    vae_teacher: Annotated[str, typer.Option("--vae-teacher", help="Autoencoder to imitate: a folder or a hub id.")] = "black-forest-labs/FLUX.1-schnell",
    channels: Annotated[int, typer.Option("--channels", help="Latent channels afterwards.")] = 16,
    variant: Annotated[str, typer.Option("--variant", help="The U-Net's first and last convolutions: v1, v2 or v3 of Table S4.")] = "v2",
    size: Annotated[int, typer.Option("--size", help="Side of training crops in pixels.")] = 256,
    first: Annotated[int | None, typer.Option("--first", help="Take so many pictures of each folder at most.")] = None,
    heldout: Annotated[int, typer.Option("--held-out", help="Pictures that are not trained on; figures are taken on them.")] = 16,
    latent_weight: Annotated[float, typer.Option("--latent-weight", help="Weight of latent matching beside reconstruction.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", help="Optimizer steps of the autoencoder.")] = 20_000,
    joint_steps: Annotated[int, typer.Option("--joint-steps", help="Optimizer steps of autoencoder and U-Net together.")] = 20_000,
    batch: options.Batch = 4,
    accumulate: options.Accumulate = 4,
    rate: options.Rate = 1e-5,
    precision: options.Precision = "fp32",
    seed: options.TrainingSeed = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    log: options.Log = None,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Give a teacher more latent channels: its autoencoder learns from a wider one, then U-Net and autoencoder are trained together."""
    options.set_threads(threads)
    from nas.spaces.tocsr.expand import ExpansionOptions
    from nas.spaces.tocsr.expand import expand as run_expand
    from nas.spaces.tocsr.folders import PictureFolder
    from nas.spaces.tocsr.resources import leads
    from nas.spaces.tocsr.trainer import TrainingSettings

    shared: dict[str, Any] = {"batch": batch, "accumulate": accumulate, "rate": rate, "precision": precision, "seed": seed}
    first_step, second_step = (TrainingSettings(count, **shared, warmup=count // 20) for count in (steps, joint_steps))
    asked = ExpansionOptions(first_step, second_step, channels, variant, latent_weight, heldout)  # type: ignore[arg-type]  # checked there
    with options.terminal(quiet, log, to.with_name(f"{to.name}-logs")) as terminal:
        pictures = PictureFolder.of(data, size, terminal, first)
        result = run_expand(teacher, vae_teacher, pictures, asked, to, device=device or "cpu", progress=terminal)
    if not leads():
        return
    if json:
        print_json(result)
        return
    _show_expanded(result)


def _show_expanded(result: dict[str, Any]) -> None:
    before, after = result["autoencoder"][0], result["joint"][-1]
    out.print(f"held-out PSNR {before['psnr']:.2f} dB at the start, {after['psnr']:.2f} dB at the end; held-out denoising loss {after['heldout_loss']:.4g}")
    out.print(f"saved in {result['path']}", soft_wrap=True)


@tocsr.command("finetune")
def finetune(
    run: options.Run,
    eps: Annotated[float | None, typer.Option("--eps", help="Which winner, when the run has several.")] = None,
    distill: Annotated[float, typer.Option("--distill", help="Weight of imitating the teacher, 0 to 1; 0 is the denoising objective alone.")] = 0.0,
    steps: options.Steps = 2000,
    batch: options.Batch = 64,
    accumulate: options.Accumulate = 1,
    rate: options.Rate = 5e-4,
    precision: options.Precision = "fp32",
    seed: options.TrainingSeed = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    log: options.Log = None,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Fine-tune a run's winner end to end; the same command goes on with a training that was stopped, or prints its result."""
    from nas.files import check_writable
    from nas.run_directory import RunDirectory
    from nas.summary import winner_folder

    directory = RunDirectory.open(run)
    origin = directory.config()["space"]
    if origin["name"] != "tocsr_unet":
        raise InputError(f"run '{run}' searched '{origin['name']}'; fine-tuning with the denoising objective is for runs of tocsr_unet")
    check_writable(directory.path, "the result is saved there")
    winner = winner_folder(directory, eps)
    options.set_threads(threads)
    from nas.spaces.tocsr.finetune import finetune as run_finetune
    from nas.spaces.tocsr.resources import leads, own_device
    from nas.spaces.tocsr.teacher import load_teacher
    from nas.spaces.tocsr.trainer import TrainingSettings

    settings = TrainingSettings(steps, batch, accumulate, rate, warmup=steps // 20, precision=precision, seed=seed)  # type: ignore[arg-type]  # checked there
    place, given = own_device(device or origin.get("device", "cpu")), {name: origin[name] for name in ("teacher", "data") if name in origin}
    with options.terminal(quiet, log, run / "logs") as terminal:
        result = run_finetune(winner, load_teacher(**given, device=place, progress=terminal), settings, distill, run, place, terminal)
    if not leads():
        return
    if json:
        print_json(result)
    else:
        _show_finetuned(result, quiet)


def _show_finetuned(result: dict[str, Any], quiet: bool) -> None:
    shown = Table(
        "", "winner", "fine-tuned", "teacher", title=f"{result['winner']}: {amount(result['params'])} parameters", title_justify="left", box=SIMPLE_HEAD
    )
    for key, name in (("divergence", "L"), ("heldout_divergence", "held-out L"), ("heldout_loss", "task loss, held out")):
        teacher = f"{result['teacher_heldout_loss']:.4g}" if key == "heldout_loss" else "0"
        shown.add_row(name, f"{result['before'][key]:.4g}", f"{result['after'][key]:.4g}", teacher)
    out.print(shown)
    print_legend("L", "held-out L", quiet=quiet)
    if result["after"]["divergence"] > result["before"]["divergence"] and not result["distillation"]:
        out.print("L rose, as the denoising objective alone asks for the noise and not for the teacher; --distill 1 lowered both on the embedded teacher")
    out.print(f"saved in {result['path']}", soft_wrap=True)
