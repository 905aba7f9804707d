"""`nas tocsr upscale` and `nas tocsr evaluate`: pictures made four times as large, and how good that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli import options
from nas.cli.console import Terminal, err, out, print_json
from nas.errors import InputError

if TYPE_CHECKING:
    from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline

Model = Annotated[Path | None, typer.Option("--model", help="Pipeline folder; by default the small model that ships.")]
Tile = Annotated[int, typer.Option("--tile", help="Side of the tiles in pixels of the small picture; 0 is the whole picture at once.")]
Overlap = Annotated[int, typer.Option("--overlap", help="Pixels over which tiles are blended.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the noise, and of a random degradation.")]


def upscale(
    given: Annotated[Path, typer.Argument(metavar="IN", help="Picture, or folder of pictures.")],
    wanted: Annotated[Path, typer.Argument(metavar="OUT", help="File, or folder; a folder's results are PNGs with the same stems.")],
    model: Model = None,
    steps: Annotated[int, typer.Option("--steps", help="1, or more for the multi-step model.")] = 1,
    tile: Tile = 64,
    overlap: Overlap = 8,
    seed: Seed = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Make pictures four times as wide and high; the same command goes on with a folder that was interrupted."""
    options.set_threads(threads)
    from nas.spaces.tocsr.sr.batch import How, model_key, tasks_of
    from nas.spaces.tocsr.sr.batch import upscale as run_upscale

    terminal = Terminal(quiet)
    tasks = tasks_of(given, wanted, terminal)
    folder = _folder(model)
    pipeline = _load(folder, device)
    pipeline.set_progress_bar_config(disable=quiet or len(tasks) > 1 or not err.is_terminal, desc="tiles", leave=False)
    if not wanted.exists() and tasks[0].result != wanted:
        terminal.note(f"making the folder {wanted}")
    done = []
    for result in run_upscale(pipeline, tasks, How(steps, tile, overlap, seed), model_key(folder), terminal):
        done.append(str(result))
        if not json:
            out.print(str(result), soft_wrap=True)
    if json:
        print_json(done)


def evaluate(
    hr: Annotated[Path | None, typer.Option("--hr", help="Folder of large pictures.")] = None,
    lr: Annotated[Path | None, typer.Option("--lr", help="Folder of their small versions, of the same names; else they are degraded.")] = None,
    degradation: Annotated[str, typer.Option("--degradation", help="bicubic or realesrgan.")] = "bicubic",
    model: Model = None,
    steps: Annotated[list[int] | None, typer.Option("--steps", help="1, or more for the multi-step model; several give a row each.")] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="Some of psnr, psnr_y, ssim, gmsd, lpips, fid, niqe, musiq; all by default.")] = None,
    beside: Annotated[str | None, typer.Option("--beside", help="Published rows to show: DIV2K-Val, RealSR or DRealSR.")] = None,
    size: Annotated[int, typer.Option("--size", help="Side of the result that multiply-adds are counted for.")] = 512,
    tile: Tile = 64,
    overlap: Overlap = 8,
    seed: Seed = 0,
    form: Annotated[str, typer.Option("--format", help="text, json, csv or markdown.")] = "text",
    generations: Annotated[Path | None, typer.Option("--generations", help="Run whose winners are sampled beside their teacher, instead of --hr.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Samples of each network (--generations), in 25 steps unless --steps says otherwise.")] = 64,
    extractor: Annotated[str | None, typer.Option("--extractor", help="FILE.py:function, pictures to features, for FID (--generations).")] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    _: options.Config = None,
) -> None:
    """Compare a model with bicubic on pictures: PSNR, SSIM and GMSD, more where their packages are installed; parameters and MACs."""
    options.set_threads(threads)
    if generations is not None:
        from nas.cli.generations import compare

        compare(generations, samples, (steps or [25])[0], seed, extractor, json=json, quiet=quiet)
        return
    if hr is None:
        raise InputError("give pictures with --hr, or a run with --generations")
    from nas.spaces.tocsr.sr import evaluate as evaluation
    from nas.spaces.tocsr.sr.metrics import METRICS, available, check_metrics
    from nas.spaces.tocsr.sr.published import beside as published
    from nas.spaces.tocsr.sr.published import check_dataset
    from nas.spaces.tocsr.sr.tables import check_form, rendered, summary

    form = check_form("json" if json else form)
    rows = published(check_dataset(beside)) if beside else []
    check_metrics(metric or [])
    terminal = Terminal(quiet)
    pairs = list(evaluation.paired(lr, hr, terminal) if lr is not None else evaluation.degraded(hr, degradation, seed, terminal))
    there, missing = available(metric or list(METRICS))
    for name, why in missing.items():
        terminal.note(f"{name} is missing: {why}")
    pipeline = _load(_folder(model), device)
    pipeline.set_progress_bar_config(disable=True)
    systems: dict[str, evaluation.System] = {evaluation.BICUBIC: evaluation.bicubic_up}
    for n in steps or [1]:
        pipeline.model(n)
        systems[f"{n} step{'s' * (n > 1)}"] = evaluation.system_of(pipeline, n, tile=tile, overlap=overlap, seed=seed)
    counted = evaluation.parts(pipeline, size)
    found = evaluation.evaluate(systems, terminal.track(pairs, "pictures"), there)
    for name, why in found[0].failed.items():
        terminal.note(f"{name} is missing: {why}")
    content = summary(found, counted, size, missing, rows, [pair.name for pair in pairs])
    out.print(rendered(content, form), soft_wrap=True)


def _folder(model: Path | None) -> Path:
    from nas.spaces.tocsr.assets import shipped_pipeline

    return model if model is not None else shipped_pipeline()


def _load(folder: Path, device: str | None) -> "TOCSRPipeline":
    from diffusers.utils import logging

    from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
    from nas.spaces.tocsr.teacher import check_device

    logging.disable_progress_bar()
    target = check_device(device or "cpu")
    pipeline: TOCSRPipeline = TOCSRPipeline.from_pretrained(folder).to(target)
    return pipeline
