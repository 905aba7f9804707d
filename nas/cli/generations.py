"""`nas tocsr evaluate --generations`: samples of a run's winners beside the teacher's."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas.amounts import amount, exact
from nas.cli.console import Terminal, out, print_json
from nas.errors import InputError, NothingFeasible


def compare(run: Path, n: int, steps: int, seed: int, extractor: str | None, *, json: bool, quiet: bool) -> None:
    """Samples of teacher and winners from the same noise: MSE of the latents, FID where an extractor is given."""
    from nas.run_directory import RunDirectory
    from nas.summary import summarize

    directory = RunDirectory.open(run)
    origin = directory.config()["space"]
    if origin["name"] != "tocsr_unet":
        raise InputError(f"run '{run}' searched '{origin['name']}'; samples are compared for runs of tocsr_unet")
    if n < 2 or steps < 1:
        raise InputError(f"generations need at least 2 samples and 1 step, got {n} and {steps}")
    with directory.record(read_only=True) as record:
        winners = {f"eps {exact(w['eps'])}": w["path"] for w in summarize(directory, record)["winners"] if w["path"]}
    if not winners:
        raise NothingFeasible(f"run '{run}' has no saved winner; let its search finish")
    from nas.names import function_of_file
    from nas.spaces.tocsr import CompactUNet
    from nas.spaces.tocsr.generations import compare_generations
    from nas.spaces.tocsr.teacher import EMBEDDED, companions, load_teacher

    function = None
    if extractor is not None:
        path, _, name = extractor.partition(":")
        function = function_of_file(Path(path), name or "extract")
    teacher = load_teacher(**{key: origin[key] for key in ("teacher", "data", "device") if key in origin}, progress=Terminal(quiet))
    vae = companions(origin.get("teacher", EMBEDDED), teacher.unet)[0] if function else None
    text = teacher.data.verify.inputs["text"]
    text = text[:n] if n <= len(text) else text.repeat(-(-n // len(text)), 1, 1)[:n]
    models = {name: CompactUNet.from_pretrained(folder).eval().to(text.device) for name, folder in winners.items()}
    rows = compare_generations(teacher.unet, models, text, steps=steps, seed=seed, progress=Terminal(quiet), vae=vae, extractor=function)
    if json:
        print_json(rows)
        return
    shown = Table("", "parameters", "MSE of latents", "of their variance", "FID", title=f"{n} samples, {steps} steps", title_justify="left", box=SIMPLE_HEAD)
    for row in rows:
        shown.add_row(
            row["name"], amount(row["params"]), f"{row['mse']:.4g}", f"{100 * row['relative']:.1f} %", "-" if row["fid"] is None else f"{row['fid']:.4g}"
        )
    out.print(shown)
