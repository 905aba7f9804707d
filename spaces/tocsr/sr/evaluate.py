"""Super-resolution systems compared on pictures: metrics, a paired test against bicubic, parameters and MACs part by part."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from scipy.stats import ttest_rel
from torch import nn

from nas.errors import InputError
from nas.evaluators.costs import count_macs, count_params
from nas.progress import Progress
from nas.spaces.tocsr.data import eight_bits, picture_files
from nas.spaces.tocsr.sr.degradation import degradation
from nas.spaces.tocsr.sr.images import FACTOR, MOST_LARGE_PIXELS, read_picture, split, to_picture
from nas.spaces.tocsr.sr.metrics import BORDER, METRICS
from nas.spaces.tocsr.sr.photographs import Picture
from nas.spaces.tocsr.sr.pipeline import OVERLAP, TILE, TOCSRPipeline

BICUBIC = "bicubic"

_Value = TypeVar("_Value")

System = Callable[[Picture], Picture]
"""Small picture `(h, w, 3)` uint8 -> large one `(4 h, 4 w, 3)` uint8."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A small picture and what it should become."""

    name: str
    low: Picture
    high: Picture


@dataclass(frozen=True)
class Row:
    """What one system did: metric -> value over all pictures, metric -> value of each picture, seconds a picture.

    `failed` are the metrics of other packages that could not be computed of these pictures, with the reason; no row of the evaluation has them.
    """

    system: str
    values: Mapping[str, float]
    each: Mapping[str, Sequence[float]]
    seconds: float
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters and multiply-adds (`macs` convolutions and linear layers; `macs_with_attention` also attention's products) of a part of a pipeline."""

    name: str
    params: int
    macs: int
    macs_with_attention: int


def paired(low: Path, high: Path, progress: Progress | None = None) -> Iterator[Pair]:
    """Pictures of two folders that go by the same stem; a large one may have up to 3 pixels more than four times the small one's.

    Raises:
        InputError: a picture without its partner, two of one stem, or one of the wrong size.
    """
    small, large = _by_stem(low, progress), _by_stem(high, progress)
    if odd := sorted(small.keys() ^ large.keys()):
        raise InputError(f"'{low}' and '{high}' must hold pictures of the same names, '{odd[0]}' is in one only ({len(odd)} such)")
    for name in sorted(small):
        picture = _colours(large[name])
        _check_size(large[name], picture)
        yield _pair(name, _colours(small[name]), picture)


def _by_stem(folder: Path, progress: Progress | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in picture_files(folder, progress):
        if path.stem in found:
            raise InputError(f"'{found[path.stem]}' and '{path}' go by one name, '{path.stem}'; rename one of them, or leave it out")
        found[path.stem] = path
    return found


def _check_size(path: Path, picture: Picture) -> None:
    """Raises unless there is something within the border that metrics leave out."""
    least = 4 * BORDER + FACTOR
    if min(picture.shape[:2]) < least:
        raise InputError(f"{path} must have sides of at least {least} pixels to be compared, got {picture.shape[1]} x {picture.shape[0]}")


def degraded(high: Path, how: str, seed: int, progress: Progress | None = None) -> Iterator[Pair]:
    """The pictures of a folder, cropped to multiples of 4 pixels, degraded; each by a generator of its own (seed and its place in the folder)."""
    degrade = degradation(how)
    for number, path in enumerate(picture_files(high, progress)):
        picture = _colours(path)
        _check_size(path, picture)
        height, width = (side // FACTOR * FACTOR for side in picture.shape[:2])
        picture = np.ascontiguousarray(picture[:height, :width])
        yield Pair(path.stem, degrade(picture, np.random.default_rng((seed, number))), picture)


def bicubic_up(low: Picture) -> Picture:
    """The baseline: Pillow's bicubic x4."""
    return np.asarray(Image.fromarray(low).resize((FACTOR * low.shape[1], FACTOR * low.shape[0]), Image.Resampling.BICUBIC))


def system_of(pipeline: TOCSRPipeline, steps: int, *, tile: int = TILE, overlap: int = OVERLAP, seed: int = 0) -> System:
    """The pipeline as a system."""

    def enlarge(low: Picture) -> Picture:
        colours, _ = split(Image.fromarray(low))
        return to_picture(pipeline.enlarge(colours, steps, tile=tile, overlap=overlap, seed=seed))

    return enlarge


def evaluate(systems: Mapping[str, System], pairs: Iterable[Pair], metrics: Sequence[str]) -> list[Row]:
    """A row a system, in their order; every picture is degraded once for all of them."""
    meters = {name: {metric: METRICS[metric].make() for metric in metrics} for name in systems}
    each: dict[str, dict[str, list[float]]] = {name: {metric: [] for metric in metrics} for name in systems}
    seconds = dict.fromkeys(systems, 0.0)
    failed: dict[str, str] = {}
    n = 0
    for pair in pairs:
        n += 1
        for name, system in systems.items():
            begun = time.perf_counter()
            found = system(pair.low)
            seconds[name] += time.perf_counter() - begun
            for metric, meter in _without(meters[name], failed).items():
                with _noting(failed, metric, f"picture '{pair.name}'"):
                    value = meter.add(_inner(found), _inner(pair.high))
                    if value is not None:
                        each[name][metric].append(_finite(value))
    if not n:
        raise InputError("there must be at least one picture to evaluate on, got none")
    values: dict[str, dict[str, float]] = {name: {} for name in systems}
    for name in systems:
        for metric, meter in _without(meters[name], failed).items():
            with _noting(failed, metric, f"{n} picture{'s' * (n > 1)}"):
                values[name][metric] = _finite(meter.value())
    return [Row(name, _without(values[name], failed), _without(each[name], failed), seconds[name] / n, failed) for name in systems]


@contextmanager
def _noting(failed: dict[str, str], metric: str, where: str) -> Iterator[None]:
    """Notes why a metric of another package cannot be computed, once; the others go on. Ours fail loudly."""
    try:
        yield
    except Exception as error:
        if not METRICS[metric].install:
            raise
        failed.setdefault(metric, f"cannot be computed of {where}: {(str(error).splitlines() or [type(error).__name__])[0][:160]}")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"it became {value}")
    return value


def _without(values: Mapping[str, _Value], failed: Mapping[str, str]) -> dict[str, _Value]:
    return {metric: value for metric, value in values.items() if metric not in failed}


def gain(row: Row, baseline: Row, metric: str = "psnr") -> tuple[float, float]:
    """Mean difference of a metric picture by picture, and the two-sided p of a paired t-test (1 for fewer than 2 pictures or no difference)."""
    difference = np.asarray(row.each[metric]) - np.asarray(baseline.each[metric])
    if len(difference) < 2 or not difference.any():
        return float(difference.mean()), 1.0
    return float(difference.mean()), float(ttest_rel(row.each[metric], baseline.each[metric]).pvalue)


def parts(pipeline: TOCSRPipeline, size: int = 512) -> list[Part]:
    """U-Net (one call), encoder, decoder and their total, for a result of `size` x `size` pixels at once; counted on the meta device."""
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    if size % factor:
        raise InputError(f"the size to count at must be a multiple of {factor}, got {size}")
    unet = pipeline.unet or pipeline.multistep
    channels = int(pipeline.vae.config.latent_channels)
    side = size // factor
    z = torch.zeros(1, 2 * channels, side, side, device="meta")
    text = torch.zeros(1, 1, int(unet.config.cross_attention_dim), device="meta")
    found = [
        _part("U-Net", unet, (z, torch.zeros(1, device="meta"), text)),
        _part("encoder", pipeline.vae.encoder, (torch.zeros(1, 3, size, size, device="meta"),)),
        _part("decoder", pipeline.vae.decoder, (z[:, :channels],)),
    ]
    total = Part("total", *(sum(getattr(part, name) for part in found) for name in ("params", "macs", "macs_with_attention")))
    return [*found, total]


def _part(name: str, module: nn.Module, arguments: tuple[object, ...]) -> Part:
    counted = copy.deepcopy(module).to("meta")
    macs = count_macs(counted, arguments, where=name, strict=False)
    return Part(name, count_params(module), macs.linear, macs.linear + macs.attention)


def _pair(name: str, low: Picture, high: Picture) -> Pair:
    height, width = (FACTOR * side for side in low.shape[:2])
    more = (high.shape[0] - height, high.shape[1] - width)
    if not all(0 <= extra < FACTOR for extra in more):
        raise InputError(f"'{name}': the large picture must be {width} x {height}, four times the small one, got {high.shape[1]} x {high.shape[0]}")
    return Pair(name, low, np.ascontiguousarray(high[:height, :width]))


def _colours(path: Path) -> Picture:
    return np.asarray(eight_bits(read_picture(path, MOST_LARGE_PIXELS)))


def _inner(picture: Picture) -> Picture:
    return picture[BORDER:-BORDER, BORDER:-BORDER]
