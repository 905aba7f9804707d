"""What a search on a network will take, from a short probe: seconds, memory and disk, before anything is calibrated."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from nas.blocks.features import StageFeatures, collect_features, feature_bytes
from nas.blocks.fit import relative_errors
from nas.evaluators.memory import peak_activation_mb, weight_mb
from nas.progress import Quiet
from nas.protocols import Forecast
from nas.space import Choice, Stage

if TYPE_CHECKING:
    from nas.spaces.network import NetworkSpace

_QUICK_S = 0.5  # a probe of two samples that takes longer is not repeated on a whole batch


def forecast(network: "NetworkSpace") -> Forecast:
    """The forecast of a search on this space as its block store stands."""
    missing = network.calibrator().missing(network.stages)
    built = network.uncalibrated()
    chunk = min(network.evaluation.chunk, len(network.data.measure))
    fit, measure = network.data.fit, network.data.measure
    forward = _seconds(lambda n: network.graph.run(measure.rows(slice(0, n)).to(network.device).inputs), chunk)
    calibrate = sum(_stage_seconds(network, stage, [c for s, c in missing if s.name == stage.name], built) for stage in network.stages)
    features = sum(feature_bytes(network.graph, list(dict.fromkeys(s.name for s, _ in missing)), fit).values()) / 1e6 if missing else 0.0
    teacher = sum(weight_mb(step.module) for step in network.graph.steps)
    return Forecast(
        blocks=len(built),
        missing=len(missing),
        samples={"fit": len(fit), "measure": len(measure), "verify": len(network.data.verify)},
        calibrate_s=calibrate + (forward * len(fit) / chunk if missing else 0.0),
        measure_s=forward * len(measure) / chunk,
        weights_mb=teacher + sum(map(weight_mb, built.values())),
        features_mb=features,
        activation_mb=peak_activation_mb(lambda: network.graph.run(network.example)) * chunk,
        disk_mb=sum(weight_mb(built[stage.name, choice.name]) for stage, choice in missing) + teacher,
    )


def _stage_seconds(network: "NetworkSpace", stage: Stage, missing: list[Choice], built: dict[tuple[str, str], nn.Module]) -> float:
    """Seconds to calibrate the missing blocks of a stage if none stops early: the largest is timed, the others by their multiply-adds."""
    trained = [choice for choice in missing if any(p.requires_grad for p in built[stage.name, choice.name].parameters())]
    if not trained:
        return 0.0
    macs, s = network.counted.by_choice["macs"], network.stages.index(stage)
    size = {choice.name: float(macs[s, stage.index(choice.name)]) for choice in trained}
    largest = max(size, key=lambda name: size[name])
    settings = network.calibration
    step = _seconds(_training_step(network, stage, built[stage.name, largest]), min(settings.batch_size, len(network.data.fit)))
    return settings.max_steps * step * sum(size.values()) / max(size[largest], 1.0)


def _training_step(network: "NetworkSpace", stage: Stage, block: nn.Module) -> Callable[[int], object]:
    """Forward and backward pass of a block on so many samples; the teacher runs at the first call of each number."""
    features: dict[int, StageFeatures] = {}

    def step(n: int) -> None:
        if n not in features:
            features[n] = collect_features(network.graph, [stage.name], network.data.fit.rows(slice(0, n)), Quiet())[stage.name]
        with torch.enable_grad():
            batch, found = features[n].batch(torch.arange(n)), features[n]
            relative_errors(block, found.step, found.output_variances, batch).mean().backward()  # type: ignore[no-untyped-call]
        block.zero_grad(set_to_none=True)

    return step


def _seconds(call: Callable[[int], object], n: int) -> float:
    """Seconds of a call on `n` samples: timed after a warm-up, or from two samples where those take long already."""
    few = min(2, n)
    with torch.no_grad():
        call(few)
        quick = _once(call, few)
        if quick > _QUICK_S:
            return quick * n / few
        call(n)
        return _once(call, n)


def _once(call: Callable[[int], object], n: int) -> float:
    started = time.perf_counter()
    call(n)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
