"""The paper's recipe in BoTorch as written: GPs of objective and constraint, constrained log expected improvement ([TOC-SR], Sec. 3.2.3).

One run per eps: with several eps each run sees its own trials only. The paper names neither kernel nor initial design nor acquisition; here they
are BoTorch's categorical (exponential Hamming) kernel with a lengthscale a stage, `n_initial` random candidates, and, while nothing is
feasible, the log probability of feasibility [logEI]. The teacher is known from the start.

Symbols: `n` trials, `S` stages, `m` candidates.
"""

import warnings
from typing import Final, final

import torch
from botorch.acquisition.analytic import AnalyticAcquisitionFunction, LogConstrainedExpectedImprovement, LogProbabilityOfFeasibility
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.kernels.categorical import CategoricalKernel
from botorch.models.transforms.outcome import Standardize
from gpytorch.kernels import ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from nas.optimizers.pool import Turn, TurnTaking, neighbours
from nas.problem import Problem
from nas.space import Candidate
from nas.trial import Trial

EXHAUSTIVE: Final = 20_000
"""Up to this many allowed candidates the acquisition is evaluated on all of them, above by local search from random ones."""

FIT_TOLERANCE: Final = 1e-6
"""Relative change of the likelihood at which a fit ends; scipy's default spends most steps on lengthscales whose likelihood is flat."""


@final
class PaperGP(TurnTaking):
    """Constrained Bayesian optimization that models the known cost as well, as the paper does.

    Args:
        n_initial: random candidates before the first GP; the paper does not say how many.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, n_initial: int = 10) -> None:
        super().__init__(problem, seed)
        self._n_initial = n_initial

    def _suggest(self, turn: Turn) -> Candidate | None:
        own = self._own(turn)
        if sum(trial.number >= 0 for trial in own) < self._n_initial or len(own) < 2:
            return next(iter(self.pool.draw(turn.taken, turn.rng)), None)
        try:
            return self._maximise(self._acquisition(own, turn), turn)
        except (ModelFittingError, NanError, NotPSDError):
            return None  # a random candidate instead

    def _own(self, turn: Turn) -> list[Trial]:
        """The complete trials of this eps's run, and the teacher."""
        runs = len(self.problem.eps)
        return [trial for trial in turn.log if trial.number < 0 or self.problem.eps[trial.number % runs] == turn.eps]

    def _acquisition(self, own: list[Trial], turn: Turn) -> AnalyticAcquisitionFunction:
        """Constrained log expected improvement, or the log probability of feasibility while nothing is feasible."""
        x = torch.tensor([trial.candidate for trial in own], dtype=torch.float64)
        rows = [(trial.costs[self.problem.objective], float(trial.divergence or 0.0)) for trial in own]
        y = torch.tensor(rows, dtype=torch.float64)
        model = ModelListGP(*(_gp(x, y[:, output, None]) for output in range(2)))
        within: dict[int, tuple[float | None, float | None]] = {1: (None, turn.eps)}
        feasible = [cost for cost, divergence in rows if divergence <= turn.eps]
        if not feasible:
            return LogProbabilityOfFeasibility(model, within)
        return LogConstrainedExpectedImprovement(model, min(feasible), 0, within, maximize=False)

    def _maximise(self, acquisition: AnalyticAcquisitionFunction, turn: Turn) -> Candidate | None:
        """The best candidate that is left: over all of them in small spaces, by ascent from the best of 1024 random ones in large."""
        listed = self.pool.listed
        if listed is not None and len(listed) <= EXHAUSTIVE:
            left = turn.open(listed)
            return left[int(_scores(acquisition, left).argmax())] if left else None
        starts = self.pool.draw(turn.taken, turn.rng, 1024)
        tops = _scores(acquisition, starts).argsort(descending=True, stable=True)[:4] if starts else ()
        peaks = [self._ascend(acquisition, starts[int(i)], turn) for i in tops]
        return max(peaks, key=lambda peak: peak[0])[1] if peaks else None

    def _ascend(self, acquisition: AnalyticAcquisitionFunction, candidate: Candidate, turn: Turn) -> tuple[float, Candidate]:
        """Steepest ascent over single swaps: the peak's acquisition and the peak."""
        score = float(_scores(acquisition, [candidate])[0])
        while near := turn.open(neighbours(self.problem, candidate)):
            scores = _scores(acquisition, near)
            if not float(scores.max()) > score:
                break
            score, candidate = float(scores.max()), near[int(scores.argmax())]
        return score, candidate


def _gp(x: Tensor, y: Tensor) -> SingleTaskGP:
    """A fitted GP of one output: `x (n, S)` choices, `y (n, 1)` values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # botorch warns of constant values and of inputs outside the unit cube
        gp = SingleTaskGP(x, y, covar_module=ScaleKernel(CategoricalKernel(ard_num_dims=x.shape[-1])), outcome_transform=Standardize(m=1))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(gp.likelihood, gp), optimizer_kwargs={"options": {"ftol": FIT_TOLERANCE}})
    return gp


def _scores(acquisition: AnalyticAcquisitionFunction, candidates: list[Candidate], chunk: int = 4096) -> Tensor:
    """The acquisition of each candidate, `(m,)`."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # variances of told candidates' twins round below 0
        rows = torch.tensor(candidates, dtype=torch.float64)[:, None, :]
        return torch.cat([acquisition(part) for part in torch.split(rows, chunk)])
