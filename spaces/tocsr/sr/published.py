"""What [TOC-SR] reports in Tables 1, 2, 3 and S7, with all its baselines, so that a new row can stand among it.

Published numbers, not measured here. PSNR in dB; None is a dash in the paper. GMACs as the paper gives them; it does not state the resolution.
"""

from dataclasses import dataclass

from nas.errors import InputError


@dataclass(frozen=True, slots=True)
class Published:
    """A row of a table."""

    table: str
    dataset: str
    method: str
    psnr: float | None = None
    lpips: float | None = None
    fid: float | None = None
    niqe: float | None = None
    musiq: float | None = None
    steps: int | None = None
    gmacs: float | None = None
    params_m: float | None = None


_TABLE_1 = (
    ("StableSR", 23.26, 0.311, 24.44, 4.75, 65.92, 200, 79940, 1410),
    ("DiffBIR", 23.64, 0.352, 30.72, 4.70, 65.81, 50, 24234, 1717),
    ("SeeSR", 23.68, 0.319, 25.90, 4.81, 68.67, 50, 65857, 2524),
    ("ResShift", 24.65, 0.334, 36.11, 6.82, 61.09, 15, 5491, 119),
    ("SinSR", 24.41, 0.324, 35.57, 6.02, 62.82, 1, 2649, 119),
    ("OSEDiff", 23.72, 0.294, 26.32, 4.71, 67.97, 1, 2265, 1775),
    ("S3Diff", 23.52, 0.258, 19.66, 4.74, 68.01, 1, 2621, 1327),
    ("TinySR", None, 0.279, 22.94, 4.15, 69.90, 1, 427, 341),
    ("Edge-SD-SR", 24.10, 0.249, 25.37, None, 69.58, 1, None, 169),
    ("PocketSR", 23.85, 0.280, 25.25, 4.41, 66.38, 1, 225, 146),
    ("Chen et al.", 23.74, 0.285, 25.52, 4.36, 68.00, 1, 496, 456),
    ("TOC-SR", 24.26, 0.242, 22.36, 4.56, 70.14, 1, 273, 130),
)
_TABLE_2 = (
    ("SinSR", (28.36, 0.366, 170.5, 55.33), (26.28, 0.318, 135.9, 60.80)),
    ("OSEDiff", (27.92, 0.296, 135.3, 64.65), (25.15, 0.292, 123.4, 69.09)),
    ("S3Diff", (27.39, 0.312, 119.2, 64.16), (25.19, 0.270, 110.3, 67.92)),
    ("Edge-SD-SR", (None, 0.292, None, 55.66), (None, 0.278, None, 65.20)),
    ("Chen et al.", (28.10, 0.304, 134.0, 66.26), (25.47, 0.288, 118.4, 69.90)),
    ("TinySR", (27.48, 0.311, 146.7, 65.36), (24.79, 0.280, 118.0, 69.78)),
    ("PocketSR", (28.05, 0.296, None, 63.85), (25.47, 0.271, None, 67.07)),
    ("TOC-SR", (28.91, 0.301, 129.7, 66.92), (25.73, 0.286, 115.4, 70.31)),
)
_TABLE_3 = (("TOC-SR", 24.26, 0.242, 22.36, 4.56, 70.14, 1), ("4-channel model", 23.24, 0.291, 27.37, 5.10, 66.53, 1))
_TABLE_S7 = (
    ("300M U-Net, 16-channel VAE", 24.73, 0.257, 24.44, 4.32, 71.65, 1, 4234),
    ("130M U-Net, 16-channel VAE", 24.26, 0.242, 22.36, 4.56, 70.14, 1, 4145),
    ("300M U-Net, 4-channel VAE", 23.75, 0.302, 23.90, 4.73, 65.67, 1, 1960),
    ("130M U-Net, 4-channel VAE", 23.24, 0.291, 27.37, 5.1, 66.53, 1, 1871),
)


def _real(dataset: str, method: str, row: tuple[float | None, ...]) -> Published:
    psnr, lpips, fid, musiq = row
    return Published("2", dataset, method, psnr, lpips, fid, None, musiq)


ROWS: tuple[Published, ...] = (
    *(Published("1", "DIV2K-Val", *row) for row in _TABLE_1),
    *(_real("DRealSR", method, row) for method, row, _ in _TABLE_2),
    *(_real("RealSR", method, row) for method, _, row in _TABLE_2),
    *(Published("3", "DIV2K-Val", *row) for row in _TABLE_3),
    *(Published("S7", "DIV2K-Val", *row) for row in _TABLE_S7),
)


DATASETS = ("DIV2K-Val", "RealSR", "DRealSR")


def check_dataset(name: str) -> str:
    """The data set as the paper writes it, or an `InputError` that names those there are."""
    known = {dataset.casefold(): dataset for dataset in DATASETS}
    if name.casefold() not in known:
        raise InputError(f"nothing is published on '{name}'; there are rows on {', '.join(DATASETS)}")
    return known[name.casefold()]


def beside(dataset: str) -> list[Published]:
    """The rows of Tables 1 and 2 on a data set."""
    return [row for row in ROWS if row.dataset == dataset and row.table in ("1", "2")]
