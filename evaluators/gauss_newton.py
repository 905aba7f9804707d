"""What each surrogate block is expected to cost alone, from a backward pass of the teacher on a few samples: nothing is measured for it.

Replacing the block of stage `s` by choice `k` changes what the stage writes by `delta`, and the network's output by `J delta` to first order. A divergence is
least at the teacher, so that to second order (`H` its Hessian by the output; Gauss-Newton)

    L = mean over samples of (J delta)' H (J delta) / 2

Every stage's surrogate blocks run on what the teacher's block reads, which gives all `delta`. For a random direction `u` of the output, with independent
signs, `E[u u'] = 1` [Hutchinson], so that

    (J delta)' H (J delta) = E[(J' u . delta) (J' H u . delta)]

and two backward passes, from `u` and from `H u`, serve all blocks of all stages. `H u` is the derivative of the divergence's own gradient along `u`; where it
is a multiple of `u`, as for a mean squared error, one pass is enough.

The same products would tell how the losses of two blocks add up or cancel; measured tables show that too little is left of it once blocks err by
more than a little (`docs/arena.md`).

Symbols: `S` stages, `K` choices, `n` samples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.data import Samples
from nas.evaluators.divergence_call import Divergence, divergence_arguments, name_of
from nas.evaluators.memory import peak_bytes
from nas.evaluators.numerics import FP32
from nas.evaluators.resident import ResidentModules
from nas.graph import StageGraph, Step
from nas.problem import Floats
from nas.progress import Progress

ROOM = 2 << 30
"""Bytes that the values kept for the backward pass may take; at least one sample at a time is run."""


LEAST = 1e-3
"""Losses are taken as at least this share of the least positive one; so are those that sampling made negative."""


class NoExpansion(Exception):
    """The divergence has no second order around the teacher, or it cannot be computed; the message says why."""


class _Probed(nn.Module):
    """The teacher's block with a zero added to all it writes, by which can be differentiated; runs the surrogate blocks beside it.

    Attributes:
        zeros: what was added, one tensor a value written.
        changes: what each surrogate block writes less what the teacher's does, in the same order.
    """

    def __init__(self, step: Step, surrogates: Sequence[nn.Module], resident: ResidentModules) -> None:
        super().__init__()
        self._teacher, self._layout, self._several = step.module, step.layout, len(step.writes) > 1
        self._surrogates, self._resident = tuple(surrogates), resident
        self.zeros: list[Tensor] = []
        self.changes: list[list[Tensor]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher's block returns."""
        written = self._written(self._teacher(*args, **kwargs))
        with torch.no_grad():
            answers = [self._written(block(*args, **kwargs)) for block in self._resident.fetch(self._surrogates)]
            self.changes = [[new - old for new, old in zip(answer, written, strict=True)] for answer in answers]
        self.zeros = [torch.zeros_like(value, requires_grad=True) for value in written]
        moved = tuple(value + zero for value, zero in zip(written, self.zeros, strict=True))
        return self._layout.result.fill(moved) if self._layout else moved if self._several else moved[0]

    def _written(self, result: Any) -> tuple[Tensor, ...]:
        if self._layout:
            return self._layout.result.take(result)
        return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True)
class _Network:
    """What is expanded: a teacher, its stages by name with their surrogate blocks, and the divergence of its output."""

    graph: StageGraph
    blocks: Mapping[str, Sequence[nn.Module]]
    divergence: Divergence
    resident: ResidentModules

    def curvature(self, samples: Samples, random: Sequence[torch.Generator]) -> Tensor:
        """Sum over samples and directions, one from each generator, of `(J' u . delta) (J' H u . delta)`, `(S, K)`; 0 for teachers and padding."""
        probed = {name: _Probed(self.graph[name], surrogates, self.resident) for name, surrogates in self.blocks.items()}
        output: Tensor = self.graph.run(samples.inputs, probed)
        slope_at = output.detach().requires_grad_()
        slope = self._slope(output.detach(), slope_at, samples)
        total = torch.zeros(())
        for source in random:
            u = torch.randint(0, 2, output.shape, generator=source).to(output) * 2 - 1
            (curved,) = torch.autograd.grad(slope, slope_at, u, retain_graph=True)
            one, multiple = self._along(probed, output, u), _multiple(u, curved)
            other = self._along(probed, output, curved) if multiple is None else one * multiple[:, :, None]
            total = total.to(one) + (one * other).sum(0)
        return total

    def _slope(self, teacher: Tensor, candidate: Tensor, samples: Samples) -> Tensor:
        """The gradient of the divergence by the candidate's output, ready to be differentiated once more."""
        outputs = (teacher, candidate, samples.target)[: divergence_arguments(self.divergence, samples)]
        (slope,) = torch.autograd.grad(self.divergence(*outputs).sum(), candidate, create_graph=True)
        if not slope.requires_grad:
            raise NoExpansion(f"divergence '{name_of(self.divergence)}' has no second derivative")
        return slope

    def _along(self, probed: dict[str, _Probed], output: Tensor, direction: Tensor) -> Tensor:
        """`J' direction . delta` of each sample and block, `(n, S, K)`; 0 for teachers and padding."""
        zeros = [zero for one in probed.values() for zero in one.zeros]
        gradients = iter(torch.autograd.grad(output, zeros, direction, retain_graph=True, allow_unused=True))
        n_choices = 1 + max(map(len, self.blocks.values()))
        found = torch.zeros(len(output), len(probed), n_choices, dtype=torch.float64, device=output.device)
        for s, one in enumerate(probed.values()):
            by_value = [next(gradients) for _ in one.zeros]
            for k, change in enumerate(one.changes, start=1):
                parts = [(g * c).flatten(1).sum(1, dtype=torch.float64) for g, c in zip(by_value, change, strict=True) if g is not None]
                found[:, s, k] = sum(parts, found[:, s, k])
        return found


def expected_losses(
    graph: StageGraph,
    blocks: Mapping[str, Sequence[nn.Module]],
    divergence: Divergence,
    samples: Samples,
    progress: Progress,
    *,
    chunk: int = 32,
    directions: int = 2,
) -> Floats:
    """The divergence that each block is expected to cost alone, `(S, K)`: 0 for the teacher's, positive for the others, NaN in the padding.

    Args:
        graph: the teacher.
        blocks: stage name -> its surrogate blocks, in the order of its choices.
        divergence: per-sample distance of two outputs; twice differentiable where they are equal.
        samples: what to run on.
        progress: told of the samples done.
        chunk: samples at a time, at most; fewer where the backward pass keeps much.
        directions: random directions a sample.

    Raises:
        NoExpansion: the teacher or the divergence cannot be differentiated, or memory does not suffice.
    """
    device = graph.device or samples.device
    network = _Network(graph, blocks, divergence, ResidentModules(device))
    total = torch.zeros((), dtype=torch.float64)
    try:
        with _frozen(graph), torch.enable_grad(), FP32.context(device):
            one, random = samples.rows(slice(0, 1)).to(device), [torch.Generator() for _ in range(directions)]
            rows = min(chunk, max(1, ROOM // max(1, peak_bytes(lambda: network.curvature(one, random)))))
            for seed, source in enumerate(random):
                source.manual_seed(seed)
            for part in progress.track(list(samples.chunks(rows)), "expected losses"):
                total = total + network.curvature(part.to(device), random).cpu()
    except NoExpansion:
        raise
    except Exception as error:  # of code that was not written to be differentiated
        raise NoExpansion(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}") from error
    losses: Floats = (total / (2 * directions * len(samples))).numpy()
    k = np.arange(losses.shape[1])
    replaced = (k > 0) & (k <= np.array([[len(surrogates)] for surrogates in blocks.values()]))
    if not np.isfinite(losses).all() or not (losses[replaced] > 0).any():
        raise NoExpansion("the divergence does not curve at the teacher, or not finitely")
    least = LEAST * losses[losses > 0].min()
    return np.where(replaced, np.maximum(losses, least), np.where(k > 0, math.nan, 0.0))


def _multiple(u: Tensor, curved: Tensor) -> Tensor | None:
    """By which number `curved` is `u`, whose entries are 1 and -1, in each sample `(n, 1)`; None where that is no one number."""
    ratio = (u * curved).flatten(1).double()
    least, most = ratio.amin(1, keepdim=True), ratio.amax(1, keepdim=True)
    return most if bool((most - least <= 1e-6 * most.abs()).all()) else None


@contextmanager
def _frozen(graph: StageGraph) -> Iterator[None]:
    """No gradients by the teacher's own weights, which would be kept for nothing."""
    trained = [p for step in graph.steps for p in step.module.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
