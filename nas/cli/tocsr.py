"""`nas tocsr`: TOC-SR from end to end, before and after the search."""

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas.amounts import amount
from nas.cli import options
from nas.cli.console import Terminal, out, print_json, print_legend
from nas.cli.runs import winner_folder
from nas.errors import InputError
from nas.record import RunDirectory

tocsr = typer.Typer(help="TOC-SR from end to end: what comes before and after the search.", no_args_is_help=True, rich_markup_mode=None)

Steps = Annotated[int, typer.Option("--steps", help="Optimizer steps.")]
Batch = Annotated[int, typer.Option("--batch", help="Samples of one forward pass.")]
Accumulate = Annotated[int, typer.Option("--accumulate", help="Forward passes of a step; several GPUs (`accelerate launch`) share them.")]
Rate = Annotated[float, typer.Option("--rate", help="Learning rate.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="What forward passes are computed in: fp32, bf16 or fp16.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides batches and noise.")]


@tocsr.command("finetune")
def finetune(
    run: options.Run,
    eps: Annotated[float | None, typer.Option("--eps", help="Which winner, when the run has several.")] = None,
    distill: Annotated[float, typer.Option("--distill", help="Weight of imitating the teacher, 0 to 1; 0 is the denoising objective alone.")] = 0.0,
    steps: Steps = 2000,
    batch: Batch = 64,
    accumulate: Accumulate = 1,
    rate: Rate = 5e-4,
    precision: PrecisionName = "fp32",
    seed: Seed = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Fine-tune a run's winner end to end; the same command goes on with a training that was stopped, or prints its result."""
    directory = RunDirectory.open(run)
    origin = directory.config()["space"]
    if origin["name"] != "tocsr_unet":
        raise InputError(f"run '{run}' searched '{origin['name']}'; fine-tuning with the denoising objective is for runs of tocsr_unet")
    winner = winner_folder(directory, eps)
    options.set_threads(threads)
    from nas.spaces.tocsr.finetune import finetune as run_finetune
    from nas.spaces.tocsr.teacher import load_teacher
    from nas.spaces.tocsr.trainer import TrainingSettings

    settings = TrainingSettings(steps, batch, accumulate, rate, warmup=steps // 20, precision=precision, seed=seed)  # type: ignore[arg-type]  # checked there
    terminal, place = Terminal(quiet), device or origin.get("device", "cpu")
    given = {name: origin[name] for name in ("teacher", "data") if name in origin}
    result = run_finetune(winner, load_teacher(**given, device=place, progress=terminal), settings, distill, run, place, terminal)
    if json:
        print_json(result)
    else:
        _show_finetuned(result)


def _show_finetuned(result: dict[str, Any]) -> None:
    shown = Table(
        "", "winner", "fine-tuned", "teacher", title=f"{result['winner']}: {amount(result['params'])} parameters", title_justify="left", box=SIMPLE_HEAD
    )
    for key, name in (("divergence", "L"), ("heldout_divergence", "held-out L"), ("heldout_loss", "task loss, held out")):
        teacher = f"{result['teacher_heldout_loss']:.4g}" if key == "heldout_loss" else "0"
        shown.add_row(name, f"{result['before'][key]:.4g}", f"{result['after'][key]:.4g}", teacher)
    out.print(shown)
    print_legend("L", "held-out L")
    out.print(f"saved in {result['path']}", soft_wrap=True, markup=False)
