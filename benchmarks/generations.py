"""How far do same-seed samples of the winners end from the teacher's, eps by eps?

The grid of [TOC-SR] on the embedded teacher, then 64 samples of each network in 25 DDIM steps from the same noise; captions of `verify`.

    python benchmarks/generations.py [--eps 0.001 0.003 0.005 0.007] [--samples 64]
"""

import argparse
import tempfile

import torch
from dated import write_result

import nas
from nas.progress import Quiet
from nas.spaces.tocsr import CompactUNet
from nas.spaces.tocsr.generations import compare_generations
from nas.spaces.tocsr.teacher import load_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.001, 0.003, 0.005, 0.007])
    parser.add_argument("--trials", type=int, default=160)
    parser.add_argument("--samples", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher()
    with tempfile.TemporaryDirectory() as folder:
        found = nas.search("tocsr_unet", asked.eps, workdir=folder, name="run", trials=asked.trials)
        winners = {f"eps {eps:g}": CompactUNet.from_pretrained(path).eval() for eps, path in found.paths.items()}
    text = teacher.data.verify.inputs["text"][: asked.samples]
    write_result("generations", {"samples": asked.samples, "rows": compare_generations(teacher.unet, winners, text, steps=25, seed=0, progress=Quiet())})


if __name__ == "__main__":
    main()
