"""`tocsr_table`: a part of `tocsr_unet` on the embedded teacher, every candidate of it measured; and how the table was made.

    python -m nas.spaces.tocsr.tabulated [--to FILE.npz]      measures all candidates again, resumably

The table holds what `nas.table` describes and the hash of the teacher it was measured on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.evaluators.divergence import Settings
from nas.progress import Progress
from nas.space import TEACHER, Choice, SearchSpace, Stage
from nas.spaces.network import NetworkSpace
from nas.spaces.table import TableSpace
from nas.table import read_table

TEACHER_VERSION = "embedded-v2"
N_SAMPLES = 128  # each of another picture
FILE = Path(__file__).parent / "assets" / f"tocsr_table-{TEACHER_VERSION}.npz"

SURROGATES: dict[str, tuple[str, ...]] = {
    "down0": ("B4", "P+plain"),
    "down1": ("B4", "P+plain"),
    "down2": ("B4", "P+plain"),
    "down3": ("B2", "P"),
    "mid": ("R", "id"),
    "up0": ("catR", "catD+separable", "catP+plain"),
    "up1": ("B4B4", "catP+plain"),
    "up2": ("B4B4", "catP+plain"),
    "up3": ("B4B4", "catP"),
}
"""The choices of the default library that are in the table, beside the teacher's: 3^8 x 4 = 26,244 candidates."""


def tocsr_table() -> TableSpace:
    """The shipped table as a space: parameters and MACs, L_gen on 128 samples, calibration errors."""
    table = read_table(FILE)
    stages = tuple(Stage(stage, (Choice(TEACHER), *map(Choice, names))) for stage, names in SURROGATES.items())
    with np.load(FILE, allow_pickle=False) as stored:
        teacher = str(stored["teacher"])
    return TableSpace(SearchSpace("tocsr_table", stages), table, teacher)


def measured_space() -> NetworkSpace:
    """The part of `tocsr_unet` that the table covers, with its embedded teacher."""
    from nas.blocks.calibration import CalibrationSettings
    from nas.spaces.tocsr.space import tocsr_unet

    whole = tocsr_unet(TEACHER_VERSION)
    data = replace(whole.data, measure=whole.data.measure.rows(slice(0, N_SAMPLES)))
    stages = tuple(replace(stage, choices=tuple(c for c in stage.choices if c.name in (TEACHER, *SURROGATES[stage.name]))) for stage in whole.stages)
    unfinished = CalibrationSettings(finish=False)  # as its blocks were calibrated, by version 1 of the fit
    return replace(whole, name="tocsr_table", stages=stages, data=data, calibration=unfinished, evaluation=Settings(chunk=N_SAMPLES, min_chunks=1))


def make_table(path: Path, progress: Progress) -> None:
    """Measures every candidate and writes the table with its teacher's hash; goes on from `path.part`.

    Raises:
        InputError: the file exists or cannot be written.
    """
    from nas.tabulate import tabulate

    space = measured_space()
    tabulate(space.prepare(progress), path, progress)
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name in ("divergence", "stderr"):
        arrays[name] = arrays[name].astype(np.float32)
    np.savez_compressed(path, **arrays, teacher=np.array(space.teacher_key), version=np.array(TEACHER_VERSION))


def main() -> None:
    """Writes the table."""
    import torch

    from nas.cli.console import Terminal

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=FILE)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    try:
        make_table(asked.to, Terminal(quiet=False))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
