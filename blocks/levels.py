"""Where along the noise levels a block errs: the held-out error of Eq. (8) of [TOC-SR], a quarter of the samples at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas.blocks.features import Features
from nas.blocks.fit import held_out_errors

_PARTS = 4


def errors_by_level(block: nn.Module, features: Features, heldout: Tensor, levels: Tensor) -> Mapping[str, float]:
    """`"LOW-HIGH"` -> mean over outputs of MSE / variance (of all samples) on the held-out samples with such a level.

    Args:
        block: as it will be used.
        features: of its stage.
        heldout: the samples that it was not fitted to.
        levels: of all samples, `(n,)`, such as the timestep of each; parts hold a quarter of the samples each.
    """
    known = levels.detach().cpu().double()
    part = torch.bucketize(known, torch.quantile(known, torch.linspace(0, 1, _PARTS + 1).double()[1:-1]), right=True)
    found = {}
    for k in range(_PARTS):
        inside, rows = known[part == k], heldout[part[heldout] == k]
        if len(rows):
            found[f"{inside.min():g}-{inside.max():g}"] = float(held_out_errors(block, features, rows).mean())
    return found
