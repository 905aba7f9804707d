"""A fitted model of the divergence as an ordinary botorch model, for whoever wants to go on with botorch's own tools."""

import gpytorch
import numpy as np
import torch
from botorch.models import SingleTaskGP
from botorch.settings import validate_input_scaling
from torch import Tensor

from nas.optimizers.beliefs import Belief
from nas.optimizers.scales import JITTER


class PriorMean(gpytorch.means.Mean):  # type: ignore[misc]  # gpytorch ships no types
    """What a model expects before any trial, as a gpytorch mean."""

    def __init__(self, belief: Belief) -> None:
        super().__init__()
        self.belief = belief

    def forward(self, x: Tensor) -> Tensor:
        """Expected value on the model's scale, `(..., n, S) -> (..., n)`."""
        rows = x.reshape(-1, x.shape[-1]).long()
        return self.belief.prior_mean(rows).reshape(x.shape[:-1])


def as_botorch(belief: Belief) -> SingleTaskGP:
    """A `SingleTaskGP` over choice indices with the model's kernel, prior mean, MAP scales and known noise.

    Its posterior with no observation noise has the model's mean; the model's sd adds each candidate's own deviation (`belief.gp.noise_sd`).
    """
    gp = belief.gp
    with torch.no_grad():
        target = torch.from_numpy(gp.z) + belief.prior_mean(gp.x)
    noise = torch.from_numpy(np.asarray(gp.known_noise + gp.noise_sd**2 + JITTER))
    with validate_input_scaling(False):
        model = SingleTaskGP(gp.x.double(), target[:, None], noise[:, None], covar_module=gp.kernel, mean_module=PriorMean(belief), outcome_transform=None)
    return model.eval()
