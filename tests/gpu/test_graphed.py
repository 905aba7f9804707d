"""Steps recorded as CUDA graphs: the values of steps as written, and a way out for what cannot be recorded."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nas.blocks import fit as fitting
from nas.blocks.calibration import CalibrationSettings, calibrate_block
from nas.blocks.features import collect_features
from nas.blocks.fit import Fit
from nas.graphed import WARM_UP, Graphed
from nas.progress import Quiet
from nas.spaces.tocsr.space import tocsr_unet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = "cuda"


def calls(graphed: Graphed, count: int = WARM_UP + 3) -> list[float]:
    return [float(graphed(torch.full((4,), float(k), device=DEVICE))) for k in range(count)]


def test_replays_take_the_new_inputs() -> None:
    graphed = Graphed(lambda x: (x * 2).sum())
    assert calls(graphed) == [8.0 * k for k in range(WARM_UP + 3)]
    assert graphed.recorded


def test_outputs_stay_as_they_were() -> None:
    first, second = Graphed(lambda x: (x + 1).sum()), Graphed(lambda x: (x - 1).sum())
    kept = [one(torch.full((4,), float(k), device=DEVICE)) for k in range(WARM_UP + 3) for one in (first, second)]
    assert [float(value) for value in kept] == [4.0 * (k + sign) for k in range(WARM_UP + 3) for sign in (1, -1)]


def waiting(x: Tensor) -> Tensor:
    return x.sum() * (2.0 if float(x[0]) > 1 else 1.0)


def unrecordable(x: Tensor) -> Tensor:
    torch.cuda.synchronize()
    return x.sum() * 2


@pytest.mark.parametrize("function", [waiting, unrecordable])
def test_what_cannot_be_recorded_is_called_as_it_is(function: object) -> None:
    graphed = Graphed(function)  # type: ignore[arg-type]
    assert calls(graphed) == [float(function(torch.full((4,), float(k), device=DEVICE))) for k in range(WARM_UP + 3)]  # type: ignore[operator]
    assert not graphed.recorded
    assert torch.rand(3, device=DEVICE).shape == (3,)
    other = Graphed(lambda x: x.sum())
    assert calls(other) == [4.0 * k for k in range(WARM_UP + 3)]
    assert other.recorded


@pytest.mark.parametrize("stage", [1, 4, 8])
def test_blocks_fitted_by_replays_are_those_fitted_as_written(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    space = tocsr_unet(device=DEVICE)
    chosen, settings = space.stages[stage], CalibrationSettings(max_steps=50)
    features = collect_features(space.graph, [chosen.name], space.data.fit, Quiet())[chosen.name]
    made = [space.uncalibrated()[chosen.name, chosen.choices[1].name] for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    errors = [calibrate_block(made[0], features, settings)]
    monkeypatch.setattr(fitting, "Graphed", lambda function: function)
    errors.append(calibrate_block(made[1], features, settings))
    assert errors[0] == errors[1]
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


class Reading(nn.Module):
    """Looks at what it computed, as no graph can."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *values: Tensor) -> Tensor:
        written: Tensor = self.inner(*values)
        return written * (1.0 if float(written.detach().abs().max()) < 1e9 else 0.0)


def test_a_block_that_waits_for_the_device_is_fitted_all_the_same() -> None:
    space = tocsr_unet(device=DEVICE)
    stage = next(s for s in space.stages if s.name == "mid")
    features = collect_features(space.graph, [stage.name], space.data.fit, Quiet())[stage.name]
    plain = space.uncalibrated()[stage.name, stage.choices[1].name]
    reading = Reading(space.uncalibrated()[stage.name, stage.choices[1].name])
    reading.inner.load_state_dict(plain.state_dict())
    settings = replace(space.calibration, max_steps=25)
    assert calibrate_block(reading, features, settings)[0] == pytest.approx(calibrate_block(plain, features, settings)[0], rel=1e-3)
    fit = Fit(reading, features.step, features.output_variances, settings)
    for _ in range(WARM_UP + 1):
        fit.advance(features.batch(torch.arange(8)))
    assert not fit._descend.recorded
