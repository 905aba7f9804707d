"""A space that a worker makes for itself: `--space tests/core/toy_space.py`."""

import os
from pathlib import Path

from nas.blocks.calibration import CalibrationSettings
from nas.data import Splits
from nas.evaluators.divergence import Settings
from nas.spaces.network import NetworkSpace
from tests.conftest import toy_graph, toy_samples, toy_stages


def make_space() -> NetworkSpace:
    """27 candidates of a toy network; blocks and measured values under `$NAS_HOME`."""
    splits = Splits(toy_samples(128, 1), toy_samples(128, 2, 1000), toy_samples(128, 3, 2000))
    home = Path(os.environ["NAS_HOME"])
    return NetworkSpace("toy", toy_graph(), toy_stages(), splits, calibration=CalibrationSettings(max_steps=40), evaluation=Settings(chunk=16), home=home)
