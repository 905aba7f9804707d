"""How long does it take to check a library of 8 recipes on a model of 12 stages? The offer (shapes on the meta device), and the whole contract suite.

python benchmarks/contract_check.py
"""

import os
import time

import torch
from dated import write_result
from torch import nn

from nas.blocks.offer import offer
from nas.blocks.recipe import BlockRecipe
from nas.blocks.reductions.attention import FewerHeads, PooledAttention, SharedAttention
from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import FeedForward
from nas.blocks.suite import check_library
from nas.cut import cut
from nas.data import Samples

STAGES, WIDTH = 12, 64
RECIPES: list[BlockRecipe] = [
    LowRank(0.5), LowRank(0.25), FeedForward(0.5), FeedForward(0.25), FewerHeads(0.5), SharedAttention(), PooledAttention(2), Bypass()
]  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True) for _ in range(STAGES))).eval()
    samples = Samples({"x": torch.randn(4, 16, WIDTH)}, torch.arange(4))
    graph = cut(model, [str(k) for k in range(STAGES)], samples)
    load, wall, cpu = os.getloadavg()[0], time.monotonic(), time.process_time()
    stages = offer(graph, RECIPES, samples.inputs).stages
    offered_wall, offered_cpu = time.monotonic(), time.process_time()
    checked = check_library(graph, stages, samples.inputs)
    seconds = {
        "offer": {"wall": offered_wall - wall, "cpu": offered_cpu - cpu},
        "suite": {"wall": time.monotonic() - offered_wall, "cpu": time.process_time() - offered_cpu},
    }
    write_result("contract_check", {"stages": STAGES, "recipes": len(RECIPES), "blocks_checked": checked, "seconds": seconds, "load": load})


if __name__ == "__main__":
    main()
