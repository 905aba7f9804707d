"""The gate of the embedded teachers that ship: they beat the Wiener denoiser, and their stages are at work (docs/embedded_teacher.md)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nas.blocks.features import collect_features
from nas.progress import Quiet
from nas.spaces.tocsr.assets import shipped_version
from nas.spaces.tocsr.library import library
from nas.spaces.tocsr.unet import unet_graph

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    """The benchmark that measures the gate."""
    path = Path(__file__).parents[3] / "benchmarks" / "embedded_gate.py"
    spec = importlib.util.spec_from_file_location("embedded_gate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["embedded", "embedded-tight"])
def test_a_shipped_teacher_beats_the_wiener_denoiser_at_every_noise_level(gate: ModuleType, name: str) -> None:
    unet, _, many, abar = gate.load(shipped_version(name), random=False)
    losses = gate.quarters(unet_graph(unet), many, abar)
    ratios = [ours / wiener for ours, wiener in zip(losses["teacher"], losses["wiener"], strict=True)]
    assert max(ratios) < 1
    assert max(ratios[:2]) <= 0.9


@pytest.mark.parametrize("name", ["embedded", "embedded-tight"])
def test_no_linear_projection_imitates_a_shipped_teachers_stages(gate: ModuleType, name: str) -> None:
    unet, data, _, _ = gate.load(shipped_version(name), random=False)
    graph = unet_graph(unet)
    features = collect_features(graph, [stage.name for stage in library(graph)], data.fit, Quiet())
    rows = gate.liveness_of(graph, data, {name: ("projection", gate.Projection(found)) for name, found in features.items()})
    found = gate.alive(rows)
    assert found["L >= 1e-4"] >= 8
    assert found["L >= 1e-3"] >= 4
    assert found["loss rises"] >= 7
