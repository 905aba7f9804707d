"""How good enlarged pictures are. PSNR, SSIM and GMSD always; LPIPS, FID, NIQE and MUSIQ when the user has them.

Pictures are compared as 8-bit files would be, without a border of `BORDER` pixels. Y is BT.601's luma in 16..235, as in MATLAB and the
literature. SSIM (11 x 11 Gaussian window of 1.5 pixels) and GMSD (gradient magnitude similarity deviation [GMSD]: an edge metric) are of Y.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import InputError, did_you_mean
from nas.spaces.tocsr.sr.photographs import Picture

BORDER = 4

Plane = NDArray[np.float64]


class Metric(Protocol):
    """A number of a set of pictures, fed one by one."""

    def add(self, found: Picture, wanted: Picture) -> float | None:
        """Takes a picture and its reference, without borders; its own value, None for a metric of whole sets."""
        ...

    def value(self) -> float:
        """Of all pictures so far."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A metric: which way is better, how it is made, what to install when that fails."""

    make: Callable[[], Metric]
    higher: bool
    decimals: int
    install: str = ""


class Mean:
    """The mean of a number of each picture."""

    def __init__(self, of: Callable[[Picture, Picture], float]) -> None:
        self._of = of
        self._values: list[float] = []

    def add(self, found: Picture, wanted: Picture) -> float | None:
        """The picture's own value."""
        self._values.append(self._of(found, wanted))
        return self._values[-1]

    def value(self) -> float:
        """The mean."""
        return float(np.mean(self._values))


def luma(picture: Picture) -> Plane:
    """Y of BT.601, `(H, W)` in 16..235."""
    found: Plane = 16 + picture.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
    return found


def psnr(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """In dB, of 255; at most 100 (for equal pictures)."""
    error = float(np.square(found.astype(np.float64) - wanted).mean())
    return float(min(100.0, 10 * np.log10(255**2 / max(error, 1e-12))))


def psnr_y(found: Picture, wanted: Picture) -> float:
    """PSNR of Y in dB."""
    return psnr(luma(found), luma(wanted))


def ssim(found: Picture, wanted: Picture) -> float:
    """Structural similarity of Y."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, other = (torch.from_numpy(luma(picture))[None, None] for picture in (found, wanted))
    return float(structural_similarity_index_measure(one, other, data_range=255.0))


def gmsd(found: Picture, wanted: Picture) -> float:
    """Gradient magnitude similarity deviation of Y (0 for equal pictures), constants as in [GMSD]."""
    one, other = (_gradient(luma(picture)) for picture in (found, wanted))
    similarity = (2 * one * other + 170) / (one**2 + other**2 + 170)
    return float(similarity.std())


def _gradient(plane: Plane) -> Plane:
    """Magnitude of Prewitt's gradient of the picture halved by 2 x 2 means."""
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(plane)[None, None], 2)
    across = torch.tensor([[1.0, 0.0, -1.0]], dtype=x.dtype).expand(3, 3) / 3
    kernels = torch.stack([across, across.T])[:, None]
    found: Plane = torch.nn.functional.conv2d(x, kernels, padding=1)[0].square().sum(0).sqrt().numpy()
    return found


class _Perceptual:
    """LPIPS (AlexNet) through the package lpips."""

    def __init__(self) -> None:
        import lpips

        self._model = lpips.LPIPS(net="alex", verbose=False).eval()
        self._values: list[float] = []

    def add(self, found: Picture, wanted: Picture) -> float | None:
        with torch.no_grad():
            self._values.append(float(self._model(_signed(found), _signed(wanted))))
        return self._values[-1]

    def value(self) -> float:
        return float(np.mean(self._values))


class _Frechet:
    """FID (Inception, 2048 features) through torchmetrics and torch-fidelity."""

    def __init__(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._model = FrechetInceptionDistance(feature=2048)

    def add(self, found: Picture, wanted: Picture) -> float | None:
        self._model.update(_bytes(wanted), real=True)
        self._model.update(_bytes(found), real=False)
        return None

    def value(self) -> float:
        return float(self._model.compute())


def _without_reference(name: str) -> Callable[[], Metric]:
    """A no-reference metric of pyiqa."""

    def make() -> Metric:
        import pyiqa

        with redirect_stdout(sys.stderr):  # it prints what it loads; stdout is for the result
            model = pyiqa.create_metric(name)
        return Mean(lambda found, _: float(model((_signed(found) + 1) / 2)))

    return make


def _install(package: str, weights: str) -> str:
    return f"pip install {package}; without internet put its weights at {weights} in torch's hub folder, by default ~/.cache/torch/hub"


METRICS: dict[str, Kind] = {
    "psnr": Kind(lambda: Mean(psnr), True, 2),
    "psnr_y": Kind(lambda: Mean(psnr_y), True, 2),
    "ssim": Kind(lambda: Mean(ssim), True, 4),
    "gmsd": Kind(lambda: Mean(gmsd), False, 4),
    "lpips": Kind(_Perceptual, False, 4, _install("lpips", "checkpoints/alexnet-owt-7be5be79.pth")),
    "fid": Kind(_Frechet, False, 2, _install("torch-fidelity", "checkpoints/weights-inception-2015-12-05-6726825d.pth")),
    "niqe": Kind(_without_reference("niqe"), False, 2, _install("pyiqa", "pyiqa/niqe_modelparameters.mat")),
    "musiq": Kind(_without_reference("musiq"), True, 2, _install("pyiqa", "pyiqa/musiq_koniq_ckpt-e95806b9.pth")),
}
ALWAYS = tuple(name for name, kind in METRICS.items() if not kind.install)


def check_metrics(names: Sequence[str]) -> None:
    """Raises an `InputError` that names the nearest known metric for one that is not known."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"unknown metric '{name}'{did_you_mean(name, METRICS)}")


def available(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the metrics that can be computed here, and for the others why not and what to do."""
    check_metrics(names)
    there, missing = [], {}
    for name in names:
        try:
            METRICS[name].make()
            there.append(name)
        except Exception as error:  # a package that is missing, of another version, or cannot fetch its weights
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            missing[name] = f"{reason}; {METRICS[name].install}"
    return there, missing


def _signed(picture: Picture) -> Tensor:
    """`(1, 3, H, W)` in [-1, 1]."""
    return _bytes(picture).float() / 127.5 - 1


def _bytes(picture: Picture) -> Tensor:
    return torch.tensor(picture).permute(2, 0, 1)[None]
