"""What does the cost table of SD1.5's true size cost: counted cold, all metrics of one candidate looked up, one metric of ten million at once?

Processor seconds of one thread, imports apart; the lookup is the mean of 10,000.

    python benchmarks/full_size_costs.py [--library default] [--out FOLDER]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from dated import FOLDER, write_result

from nas.spaces.tocsr.counts import full_size_costs, full_size_table

MANY, LOOKUPS = 10_000_000, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="default")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        full_size_table(asked.library, cache=Path(folder))
        cold = time.process_time() - begun
        begun = time.process_time()
        full_size_table(asked.library, cache=Path(folder))
        cached = time.process_time() - begun
    stages, table = full_size_costs(asked.library)
    random = np.random.default_rng(0)
    candidates = np.stack([random.integers(0, len(stage.choices), MANY) for stage in stages], 1)
    picked = [tuple(row) for row in candidates[:LOOKUPS].tolist()]
    begun = time.process_time()
    for candidate in picked:
        table.of(candidate)
    lookup = (time.process_time() - begun) / LOOKUPS
    begun = time.process_time()
    table.totals(candidates, "params")
    many = time.process_time() - begun
    figures = {"table_cold_s": cold, "table_cached_s": cached, "lookup_us": lookup * 1e6, "ten_million_s": many}
    write_result("full_size_costs", {"library": asked.library, "metrics": table.metrics, "threads": 1, **figures}, asked.out)


if __name__ == "__main__":
    main()
