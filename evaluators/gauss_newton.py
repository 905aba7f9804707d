"""What each surrogate block is expected to cost alone, from a backward pass of the teacher on a few samples: nothing is measured for it.

Replacing the block of stage `s` by choice `k` changes what the stage writes by `delta`, and the network's output by `J delta` to first order. A divergence is
least at the teacher, so that to second order (`H` its Hessian by the output; Gauss-Newton; for weights in place of blocks [OBD])

    L = mean over samples of (J delta)' H (J delta) / 2

Every stage's surrogate blocks run on what the teacher's block reads, which gives all `delta`. For a random direction `u = D^(1/2) e` of the output, `e` of
independent signs and `D` diagonal and positive, `E[u (D^-1 u)'] = 1` [Hutchinson], so that

    (J delta)' H (J delta) = E[(J' u . delta) (J' H D^-1 u . delta)]

and two backward passes, from `u` and from `H D^-1 u`, serve all blocks of all stages. Any `D` will do; sizes of the rows of `H` keep the outputs that hardly
count, such as the many improbable ones of thousands of classes, from drowning the others in noise. `H` times a direction is the derivative of the
divergence's own gradient along it; where `H` is diagonal, as for a mean squared error, one pass is enough.

The same products would tell how the losses of two blocks add up or cancel; but blocks err by so much that on measured tables too little is left of it.

Symbols: `S` stages, `K` choices, `n` samples.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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
PROBES = 16
"""Random directions that tell the sizes of the rows of `H`: so many that no row is missed because its entries cancel."""
LEAST_SIZE = 1e-9
"""Rows of `H` are taken to be at least this large, relative to the largest of the sample."""


LEAST = 1e-3
"""Blocks that the output does not depend on are expected to cost this share of the least positive loss."""
SURE = 1.5
"""Standard errors that an expected loss must lie above 0 to be known."""


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
        with torch.no_grad():
            answers = [self._answer(block, args, kwargs) for block in self._resident.fetch(self._surrogates)]
        written = self._written(self._teacher(*args, **kwargs))
        with torch.no_grad():
            self.changes = [[new - old for new, old in zip(answer, written, strict=True)] for answer in answers]
        self.zeros = [torch.zeros_like(value, requires_grad=True) for value in written]
        moved = tuple(value + zero for value, zero in zip(written, self.zeros, strict=True))
        return self._layout.result.fill(moved) if self._layout else moved if self._several else moved[0]

    def _answer(self, block: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
        """What a block writes; on copies, since it may write over what it reads, and so may the teacher's."""
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        return self._written(block(*args, **kwargs))

    def _written(self, result: Any) -> tuple[Tensor, ...]:
        if self._layout:
            return self._layout.result.take(result)
        return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True)
class _Network:
    """A teacher, its stages by name with their surrogate blocks, and the divergence of its output."""

    graph: StageGraph
    blocks: Mapping[str, Sequence[nn.Module]]
    divergence: Divergence
    resident: ResidentModules

    def check_reached(self, samples: Samples) -> None:
        """Raises where the output depends on a stage, but gradients do not reach it: the model computes without them, or detaches."""
        probed, output = self._probed(samples)
        if not output.requires_grad:
            raise NoExpansion("the model runs without gradients")
        for name, gradients in zip(probed, _gradients(probed, output, torch.ones_like(output)), strict=True):
            if all(gradient is None for gradient in gradients) and self._acts(name, samples, output):
                raise NoExpansion(f"no gradient reaches stage '{name}', which the model runs without gradients or detaches")

    def _acts(self, stage: str, samples: Samples, output: Tensor) -> bool:
        """Whether some surrogate block of a stage changes the output."""
        with torch.no_grad():
            return any(not torch.equal(self.graph.run(samples.inputs, {stage: block}), output) for block in self.resident.fetch(self.blocks[stage]))

    def _probed(self, samples: Samples) -> tuple[dict[str, _Probed], Tensor]:
        """The stages after a pass of the teacher, and its output."""
        probed = {name: _Probed(self.graph[name], surrogates, self.resident) for name, surrogates in self.blocks.items()}
        return probed, self.graph.run(samples.inputs, probed)

    def curvature(self, samples: Samples, random: Sequence[torch.Generator]) -> Tensor:
        """Sums over samples and directions of `(J' u . delta) (J' H D^-1 u . delta)` and of its square, `(2, S, K)`; the last `PROBES` generators tell `D`."""
        probed, output = self._probed(samples)
        slope, slope_at = self._slope(output.detach(), samples)

        def curved_along(direction: Tensor) -> Tensor:
            return torch.autograd.grad(slope, slope_at, direction, retain_graph=True)[0]

        root = _sizes(curved_along(_signs(output, source)) for source in random[-PROBES:]).sqrt()
        total = torch.zeros(())
        for source in random[:-PROBES]:
            signs = _signs(output, source)
            u, curved = signs * root, curved_along(signs / root)
            one, multiple = self._along(probed, output, u.to(output)), _multiple(u, curved)
            product = one * (self._along(probed, output, curved.to(output)) if multiple is None else one * multiple[:, :, None])
            total = total.to(one) + torch.stack([product.sum(0), product.square().sum(0)])
        return total

    def _slope(self, teacher: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """The gradient of the divergence by the candidate's output, ready to be differentiated once more, and where it was taken.

        In double precision if the divergence can be computed so: the rows of `H` of a nearly certain class cancel to nothing in single precision.
        """
        n_arguments = divergence_arguments(self.divergence, samples)
        for kind in (torch.float64, teacher.dtype):
            at = teacher.to(kind, copy=True).requires_grad_()
            try:
                (slope,) = torch.autograd.grad(self.divergence(*(teacher.to(kind), at, samples.target)[:n_arguments]).sum(), at, create_graph=True)
            except Exception as error:  # of code that was not written to be differentiated
                reason = next(iter(str(error).splitlines()), "")
                continue
            if slope.requires_grad:
                return slope, at
            reason = "it has no second derivative"
        raise NoExpansion(f"divergence '{name_of(self.divergence)}' cannot be differentiated twice ({reason})")

    def _along(self, probed: dict[str, _Probed], output: Tensor, direction: Tensor) -> Tensor:
        """`J' direction . delta` of each sample and block, `(n, S, K)`; 0 for teachers and padding."""
        n_choices = 1 + max(map(len, self.blocks.values()))
        found = torch.zeros(len(output), len(probed), n_choices, dtype=torch.float64, device=output.device)
        for s, (one, by_value) in enumerate(zip(probed.values(), _gradients(probed, output, direction), strict=True)):
            for k, change in enumerate(one.changes, start=1):
                parts = [_by_sample(g * c).sum(1, dtype=torch.float64) for g, c in zip(by_value, change, strict=True) if g is not None]
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
    budget: float = float("inf"),
) -> Floats:
    """The divergence that each block is expected to cost alone, `(S, K)`: 0 for the teacher's, NaN in the padding and where too few directions tell it.

    Args:
        graph: the teacher.
        blocks: stage name -> its surrogate blocks, in the order of its choices.
        divergence: per-sample distance of two outputs; twice differentiable where they are equal.
        samples: what to run on.
        progress: told of the samples done.
        chunk: samples at a time, at most; fewer where the backward pass keeps much.
        directions: random directions a sample.
        budget: bytes of surrogate blocks that stay on the device, where they wait elsewhere; those of one stage are there together.

    Raises:
        NoExpansion: the teacher or the divergence cannot be differentiated, or memory does not suffice.
    """
    device = graph.device or samples.device
    network = _Network(graph, blocks, divergence, ResidentModules(device, budget=budget))
    total = torch.zeros((), dtype=torch.float64)
    try:
        with _frozen(graph), torch.enable_grad(), FP32.context(device):
            one, random = samples.rows(slice(0, 1)).to(device), [torch.Generator() for _ in range(directions + PROBES)]
            network.check_reached(one)
            rows = min(chunk, max(1, ROOM // max(1, peak_bytes(lambda: network.curvature(one, random)))))
            for seed, source in enumerate(random):
                source.manual_seed(seed)
            for part in progress.track(list(samples.chunks(rows)), "expected losses"):
                total = total + network.curvature(part.to(device), random).cpu()
    except NoExpansion:
        raise
    except Exception as error:  # of code that was not written to be differentiated
        raise NoExpansion(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}") from error
    n = directions * len(samples)
    mean, square = (total / n).numpy()
    k = np.arange(mean.shape[1])
    replaced = (k > 0) & (k <= np.array([[len(surrogates)] for surrogates in blocks.values()]))
    if not np.isfinite(square).all() or not square.any():
        raise NoExpansion(f"divergence '{name_of(divergence)}' does not curve at the teacher, or not finitely")
    known = mean > SURE * np.sqrt(np.maximum(square - np.square(mean), 0.0) / n)
    if known.sum() < replaced.sum() / 2:
        raise NoExpansion(f"random directions tell the losses of {known.sum()} of {replaced.sum()} blocks only")
    losses = np.where(square > 0, np.where(known, mean, math.nan) / 2, LEAST * mean[known].min() / 2)
    return np.where(replaced, losses, np.where(k > 0, math.nan, 0.0))


def _gradients(probed: Mapping[str, _Probed], output: Tensor, direction: Tensor) -> list[list[Tensor | None]]:
    """`J' direction` by all that each stage writes, None where the output does not depend on it."""
    zeros = [zero for one in probed.values() for zero in one.zeros]
    found = iter(torch.autograd.grad(output, zeros, direction, retain_graph=True, allow_unused=True))
    return [[next(found) for _ in one.zeros] for one in probed.values()]


def _by_sample(values: Tensor) -> Tensor:
    """One row a sample, `(n, ...) -> (n, elements)`."""
    return values.reshape(len(values), -1)


def _signs(like: Tensor, source: torch.Generator) -> Tensor:
    """Random entries 1 and -1."""
    return torch.randint(0, 2, like.shape, generator=source).to(like) * 2 - 1


def _sizes(products: Iterable[Tensor]) -> Tensor:
    """Sizes of the rows of `H`, from its products with random signs; relative to the largest of each sample, 1 where all are 0."""
    size = torch.as_tensor(sum(product.float().square() for product in products)).sqrt()
    largest = _by_sample(size).amax(1).reshape(-1, *[1] * (size.ndim - 1))
    return torch.where(largest > 0, (size / largest).clamp(min=LEAST_SIZE), 1.0)


def _multiple(u: Tensor, curved: Tensor) -> Tensor | None:
    """By which number `curved` is `u` in each sample, `(n, 1)`; None where that is no one number."""
    u, curved = _by_sample(u).double(), _by_sample(curved).double()
    number = (u * curved).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
    off, most = (curved - number * u).abs().amax(1), (number * u).abs().amax(1)
    return number if bool((off <= 1e-6 * most).all()) else None


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
