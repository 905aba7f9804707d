"""How much smaller does the winner get at the same eps when blocks are recalibrated in order on their real inputs?

For each eps the default search on the embedded teacher, then `nas cascade`: the search goes on with multiples of eps, and its winners are
recalibrated from the cheapest on until one is within eps on `measure` and within 1.2 eps on `verify`.

    python benchmarks/cascade.py [--eps 0.001 0.003 0.005 0.007] [--trials 160]
"""

import argparse
import sys
import time
from typing import Any

import torch
from dated import write_result

import nas
from nas.names import resolve_space
from nas.progress import Quiet
from nas.spaces.cascade import CascadeSearch, Recalibrated
from nas.spaces.network import NetworkSpace
from nas.study import Winner


def figures(row: Recalibrated) -> dict[str, Any]:
    """A recalibrated candidate's numbers."""
    return {"params": row.costs["params"], "L_before": row.before, "L": row.after, "heldout": row.heldout}


def compared(network: NetworkSpace, search: CascadeSearch, winner: Winner) -> dict[str, Any]:
    """The winner of a search, itself recalibrated, and what takes its place."""
    started = time.process_time()
    trial = winner.trial
    assert trial is not None
    same = search.recalibrated(trial.candidate, trial.divergence)
    tried, found = search.smaller(winner.eps)
    seconds = time.process_time() - started
    for row in tried:
        print(winner.eps, figures(row), file=sys.stderr, flush=True)
    heldout = winner.heldout.divergence if winner.heldout else None
    return {
        "eps": winner.eps,
        "winner": {"candidate": network.space.decode(trial.candidate), "params": trial.costs["params"], "L": trial.divergence, "heldout": heldout},
        "winner_recalibrated": {"L": same.after, "heldout": same.heldout},
        "cascade": None if found is None else {"candidate": network.space.decode(found.candidate), **figures(found)},
        "smaller_by": 0.0 if found is None else 1 - found.costs["params"] / trial.costs["params"],
        "tried": [figures(row) for row in tried],
        "cpu_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.001, 0.003, 0.005, 0.007])
    parser.add_argument("--trials", type=int, default=160)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = resolve_space("tocsr_unet")
    assert isinstance(network, NetworkSpace)
    result = nas.search(network, asked.eps, workdir=None, trials=asked.trials)
    search = CascadeSearch(network, Quiet())
    rows = [compared(network, search, winner) for winner in result.winners]
    write_result("cascade", {"teacher_params": network.counted.of(network.space.teacher)["params"], "trials": asked.trials, "rows": rows})


if __name__ == "__main__":
    main()
