"""Where what outlives a run is kept: calibrated blocks and measured values."""

import os
from pathlib import Path

import platformdirs


def nas_home() -> Path:
    """`$NAS_HOME`, by default the platform's cache folder for this toolkit."""
    return Path(os.environ.get("NAS_HOME") or platformdirs.user_cache_dir("stage-nas", appauthor=False)).expanduser()
