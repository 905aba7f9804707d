"""Does end-to-end fine-tuning (Eq. 16 of [TOC-SR]) lower the winner's L and its held-out loss, and does distillation help?

The default search on the embedded teacher, then its winner fine-tuned on the shipped `fit` latents with different weights of distillation;
L on `measure`, L and denoising loss on `verify`, neither of them trained on.

    python benchmarks/finetune.py [--eps 0.005] [--steps 1000] [--rate 1e-3] [--weights 0 0.5 1]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from dated import write_result

import nas
from nas.progress import Quiet
from nas.spaces.tocsr.finetune import finetune
from nas.spaces.tocsr.teacher import load_teacher
from nas.spaces.tocsr.trainer import TrainingSettings


def row(winner: Path, weight: float, settings: TrainingSettings) -> dict[str, Any]:
    """Figures before and after, and the curve."""
    started = time.process_time()
    result = finetune(winner, load_teacher(), settings, weight, winner.parent, "cpu", Quiet())
    kept = ("params", "before", "after", "teacher_heldout_loss", "curve")
    return {"distillation": weight, **{key: result[key] for key in kept}, "cpu_s": round(time.process_time() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=0.005)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = TrainingSettings(asked.steps, batch=64, rate=asked.rate, warmup=asked.steps // 20)
    with tempfile.TemporaryDirectory() as folder:
        nas.search("tocsr_unet", asked.eps, workdir=folder, name="run")
        rows = [row(Path(folder, "run", "winner"), weight, settings) for weight in asked.weights]
    write_result("finetune", {"eps": asked.eps, "rows": rows})


if __name__ == "__main__":
    main()
