"""The paper's recipe, `recipes/sd15.toml`, from SD1.5 and FLUX's autoencoder to a judged one-step model: the same steps on a tenth of the widths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
def test_the_papers_recipe_runs_from_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 112, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    folders = [f"--{name}={tmp_path / folder}" for name, folder in (("photographs", "pictures"), ("work", "work"), ("out", "out"))]
    command = [sys.executable, "benchmarks/sd15_rehearsal.py", "--width", "32", "--latent", "4", *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NAS_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert [step["step"] for step in result["steps"]] == ["expand", "search", "finetune", "adapt", "distill", "evaluate"]
    assert [row["system"] for row in result["evaluation"]["rows"]] == ["bicubic", "1 step", "2 steps"]
    assert result["evaluation"]["row"] == "Eq. 23"
    (leg,) = result["legs"]
    assert leg["command"] == result["command"]
    assert str(tmp_path) not in leg["command"]
    assert leg["peak_rss_gb"] == result["peak_rss_gb"] > 0
