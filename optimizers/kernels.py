"""Covariance functions over candidates, each a weighted sum of parts without parameters of their own.

A kernel here is `k(a, a') = sum_c scale_c^2 part_c(a, a')`. Only the scales are fitted, so the parts of the trials are computed once and the
marginal likelihood has a closed-form gradient (`nas.optimizers.scales`). Every kernel is an ordinary gpytorch kernel as well.

Symbols: `n` candidates, `S` stages, `K` choices, `C` parts; inputs are candidates as choice indices `(n, S)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.priors import LogNormalPrior
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One summand of a kernel: its name, the prior centre of its scale, and the prior's log-sd (0 = the scale is fixed)."""

    name: str
    centre: float
    spread: float = 0.0


class SumOfParts(gpytorch.kernels.Kernel):  # type: ignore[misc]  # gpytorch ships no types
    """Base of the kernels below; a subclass lists its parts and computes them in `parts`."""

    def __init__(self, layout: Sequence[Part]) -> None:
        super().__init__()
        self.layout = tuple(layout)
        for part in self.layout:
            raw = torch.tensor(part.centre, dtype=torch.float64).log()
            self.register_parameter(f"log_{part.name}", torch.nn.Parameter(raw, requires_grad=part.spread > 0))
            if part.spread > 0:
                self._register_scale_prior(part)

    def _register_scale_prior(self, part: Part) -> None:
        def scale(kernel: "SumOfParts") -> Tensor:
            return torch.as_tensor(getattr(kernel, f"log_{part.name}")).exp()

        prior = LogNormalPrior(torch.tensor(part.centre).log().item(), part.spread)
        self.register_prior(f"{part.name}_prior", prior, scale)

    def parts(self, x1: Tensor, x2: Tensor) -> Tensor:
        """All parts between two sets of candidates, `(n1, S), (n2, S) -> (C, n1, n2)`."""
        raise NotImplementedError

    def diagonal(self, x: Tensor) -> Tensor:
        """All parts between each candidate and itself, `(n, S) -> (C, n)`."""
        raise NotImplementedError

    @property
    def variances(self) -> Tensor:
        """The squared scales, `(C,)`."""
        return torch.stack([getattr(self, f"log_{part.name}") for part in self.layout]).mul(2).exp()

    def set_scales(self, scales: Sequence[float]) -> None:
        """Takes over fitted scales, in the order of the parts."""
        with torch.no_grad():
            for part, scale in zip(self.layout, scales, strict=True):
                getattr(self, f"log_{part.name}").fill_(float(torch.tensor(float(scale), dtype=torch.float64).log()))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        """The covariance itself, as gpytorch calls it; candidates may come as floats and in batches."""
        x1, x2 = x1.long(), x2.long()
        if x1.dim() > 2:
            blocks = [self.forward(a, b, diag) for a, b in zip(x1, x2.expand(*x1.shape[:-2], *x2.shape[-2:]), strict=True)]
            return torch.stack(blocks)
        if diag:
            return torch.einsum("c,cn->n", self.variances, self.diagonal(x1))
        return torch.einsum("c,cij->ij", self.variances, self.parts(x1, x2))


def one_hot(x: Tensor, weights: Tensor, n_choices: int) -> Tensor:
    """Row `n` holds `weights[n, s]` at position `(s, x[n, s])`, `(n, S), (n, S) -> (n, S * K)`."""
    n, n_stages = x.shape
    rows = torch.zeros(n, n_stages * n_choices, dtype=weights.dtype)
    return rows.scatter_(1, x + n_choices * torch.arange(n_stages), weights)


@dataclass(frozen=True, slots=True)
class Shares:
    """How log L of each candidate moves with the coefficients of the compounding model, at the linearisation point.

    `value` `(n,)`: log M + h(Q); `share` `(n, S)`: by log loss of a stage's block; `loss_share` `(n, S)`: w, of the plain sum M; `root` `(n, S)`: sqrt(w);
    `gain` `(n,)`: by Q; `slope` `(n,)`: by the exponent of the calibration errors; `interaction` `(n,)`: Q;
    `traits` `(n, T)`: by the weight of each trait; `kinds` `(n, J)`: by the effect of each kind of block.
    """

    value: Tensor
    share: Tensor
    loss_share: Tensor
    root: Tensor
    gain: Tensor
    slope: Tensor
    interaction: Tensor
    traits: Tensor
    kinds: Tensor


class CompoundingKernel(SumOfParts):
    """Covariance of log L under the compounding-additive model (`nas.optimizers.compounding`), linearised at given coefficients.

    Args:
        losses: losses of single blocks `(S, K)`, 0 for the teacher's.
        log_errors: centred log calibration errors `(S, K)`, 0 where unknown.
        expected_pairs: pair coefficients expected before any trial, `(S, S, K, K)`, symmetric, without its diagonal.
        centre: the log divergence around which the exponent turns.
        traits: what log losses may follow besides, weights of one sd in common, `(T, S, K)`.
        kinds: number of each block's kind `(S, K)`; blocks of a kind have an effect in common.
        scales: parts in place of those of the same name.
    """

    LAYOUT = (
        Part("intercept", 2.0),
        Part("exponent", 0.08),
        Part("interaction", 0.1),
        Part("slope", 0.5),
        Part("traits", 0.35, 0.7),
        Part("kind", 0.1, 0.8),
        Part("stage", 1.0, 0.6),
        Part("choice", 0.5, 0.6),
        Part("pair", 0.2, 0.6),
        Part("pair_choice", 0.1, 0.6),
    )

    def __init__(
        self,
        losses: Tensor,
        log_errors: Tensor,
        expected_pairs: Tensor,
        centre: float,
        traits: Tensor | None = None,
        kinds: Tensor | None = None,
        scales: Sequence[Part] = (),
    ) -> None:
        others = {part.name: part for part in scales}
        super().__init__([others.get(part.name, part) for part in self.LAYOUT])
        n_stages, k = losses.shape
        self.log_errors = log_errors
        self.expected_pairs = expected_pairs
        self.centre = centre
        self.traits = losses.new_zeros(0, n_stages, k) if traits is None else traits
        self.kinds = torch.arange(n_stages * k).reshape(n_stages, k) if kinds is None else kinds
        self.linearise(losses, expected_pairs, 0.0)

    def linearise(self, losses: Tensor, pairs: Tensor, exponent: float) -> None:
        """Moves the linearisation point: losses `(S, K)`, pair coefficients `(S, S, K, K)` (symmetric, no diagonal), exponent beyond 1."""
        self.losses = losses
        self.pairs = pairs
        self.exponent = exponent

    def shares(self, x: Tensor) -> Shares:
        """Derivatives at candidates, none of which may be the teacher, `(n, S)`."""
        stages = torch.arange(x.shape[1])
        loss = self.losses[stages, x]
        total = loss.sum(1)
        w = loss / total[:, None]
        root = w.sqrt()
        by_stage = interactions(self.pairs, x, root)
        q = by_stage.sum(1) / 2
        slope = compounding_slope(q)
        n_kinds = int(self.kinds.max()) + 1
        share = (1 + self.exponent) * (w + slope[:, None] * (by_stage / 2 - w * q[:, None]))
        return Shares(
            value=total.log() + compounding(q),
            share=share,
            loss_share=w,
            root=root,
            gain=(1 + self.exponent) * slope,
            slope=(share * self.log_errors[stages, x]).sum(1),
            interaction=q,
            traits=torch.einsum("ns,tns->nt", share, self.traits[:, stages, x]),
            kinds=share.new_zeros(len(x), n_kinds).scatter_add_(1, self.kinds[stages, x], share),
        )

    def parts(self, x1: Tensor, x2: Tensor) -> Tensor:
        f1, f2 = self.shares(x1), self.shares(x2)
        k = self.losses.shape[1]
        stage = f1.share @ f2.share.T
        choice = one_hot(x1, f1.share, k) @ one_hot(x2, f2.share, k).T
        gain = torch.outer(f1.gain, f2.gain) / 2
        pair = (f1.root @ f2.root.T).square() - f1.loss_share @ f2.loss_share.T
        agreeing = (one_hot(x1, f1.root, k) @ one_hot(x2, f2.root, k).T).square() - one_hot(x1, f1.loss_share, k) @ one_hot(x2, f2.loss_share, k).T
        return torch.stack(
            [
                torch.ones_like(stage),
                torch.outer(f1.value - self.centre, f2.value - self.centre),
                torch.outer(f1.gain * all_pairs(f1.root), f2.gain * all_pairs(f2.root)),
                torch.outer(f1.slope, f2.slope),
                f1.traits @ f2.traits.T,
                f1.kinds @ f2.kinds.T,
                stage,
                choice,
                gain * pair,
                gain * agreeing,
            ]
        )

    def diagonal(self, x: Tensor) -> Tensor:
        f = self.shares(x)
        stage = f.share.square().sum(1)
        pair = f.gain.square() * (1 - f.loss_share.square().sum(1)) / 2
        crossing = (f.gain * all_pairs(f.root)).square()
        traits, kinds = f.traits.square().sum(1), f.kinds.square().sum(1)
        value = (f.value - self.centre).square()
        return torch.stack([torch.ones_like(pair), value, crossing, f.slope.square(), traits, kinds, stage, stage, pair, pair])


def interactions(pairs: Tensor, x: Tensor, root: Tensor) -> Tensor:
    """Every stage's part sqrt(w_s) sum_t c_st sqrt(w_t) in Q, which counts each pair twice, `(S, S, K, K), (n, S), (n, S) -> (n, S)`."""
    stages = torch.arange(x.shape[1])
    coefficient = pairs[stages[:, None], stages[None, :], x[:, :, None], x[:, None, :]]
    return torch.einsum("nst,nt->ns", coefficient, root) * root


def all_pairs(root: Tensor) -> Tensor:
    """Sum of sqrt(w_s w_t) over all pairs of stages, `(n, S) -> (n,)`."""
    return (root.sum(1).square() - root.square().sum(1)) / 2


LEAST = -0.7
"""Interactions below this are continued along the tangent: the logarithm would run to minus infinity."""


def compounding(q: Tensor) -> Tensor:
    """h(Q): log(1 + Q), and its tangent below `LEAST`."""
    tangent = math.log1p(LEAST) + (q - LEAST) / (1 + LEAST)
    return torch.where(q > LEAST, q.clamp(min=LEAST).log1p(), tangent)


def compounding_slope(q: Tensor) -> Tensor:
    """h'(Q)."""
    return 1 / (1 + q.clamp(min=LEAST))


class AdditiveKernel(SumOfParts):
    """Covariance of a sum of signed stage effects and pair effects that vanish at the teacher."""

    LAYOUT = (
        Part("intercept", 0.05),
        Part("count", 1.0, 0.7),
        Part("stage", 1.0, 0.7),
        Part("choice", 1.0, 0.7),
        Part("pair", 0.3, 0.7),
    )

    def __init__(self, n_choices: int) -> None:
        super().__init__(self.LAYOUT)
        self.n_choices = n_choices

    def parts(self, x1: Tensor, x2: Tensor) -> Tensor:
        r1, r2 = (x1 > 0).double(), (x2 > 0).double()
        choice = one_hot(x1, r1, self.n_choices) @ one_hot(x2, r2, self.n_choices).T
        one = torch.ones_like(choice)
        return torch.stack([one, torch.outer(r1.sum(1), r2.sum(1)), r1 @ r2.T, choice, choice * (choice - 1) / 2])

    def diagonal(self, x: Tensor) -> Tensor:
        count = (x > 0).double().sum(1)
        return torch.stack([torch.ones_like(count), count.square(), count, count, count * (count - 1) / 2])


class HammingKernel(SumOfParts):
    """Covariance of categorical inputs: decays with the number of differing stages at two rates; linear in choices, linear and quadratic in counts of kinds.

    Args:
        n_stages, n_choices: `S`, `K`.
        kinds: number of each block's kind `(S, K)`; candidates with as many blocks of each kind are alike, wherever these are.
    """

    RATES = (0.5, 0.85)
    KINDS = (Part("kinds", 0.3, 1.0), Part("kind_pairs", 0.3, 1.0))

    def __init__(self, n_stages: int, n_choices: int, kinds: Tensor | None = None) -> None:
        rates = [Part(f"rate{i}", 0.6, 0.7) for i in range(len(self.RATES))]
        super().__init__([Part("constant", 2.0), *rates, *(Part(f"stage{s}", 0.4, 1.0) for s in range(n_stages)), *self.KINDS])
        self.n_choices = n_choices
        self.kinds = torch.arange(n_stages * n_choices).reshape(n_stages, n_choices) if kinds is None else kinds

    def gained(self, x: Tensor) -> Tensor:
        """How many blocks of each kind more than the teacher has, on the scale of `counts`, `(n, S) -> (n, J)`."""
        return self.counts(x) - self.counts(torch.zeros_like(x[:1]))

    def counts(self, x: Tensor) -> Tensor:
        """How many blocks of each kind, over the root of twice the number of stages, `(n, S) -> (n, J)`."""
        n, n_stages = x.shape
        number = self.kinds[torch.arange(n_stages), x]
        one = torch.full((n, n_stages), (2 * n_stages) ** -0.5, dtype=torch.float64)
        return one.new_zeros(n, int(self.kinds.max()) + 1).scatter_add_(1, number, one)

    def parts(self, x1: Tensor, x2: Tensor) -> Tensor:
        same = (x1[:, None, :] == x2[None, :, :]).double()
        differing = same.shape[2] - same.sum(2)
        decays = [torch.ones_like(differing), *(rate**differing for rate in self.RATES)]
        kinds = [self.counts(x1) @ self.counts(x2).T, (self.gained(x1) @ self.gained(x2).T).square()]
        return torch.cat([torch.stack(decays), same.permute(2, 0, 1), torch.stack(kinds)])

    def diagonal(self, x: Tensor) -> Tensor:
        plain = torch.ones(len(self.layout) - len(self.KINDS), x.shape[0], dtype=torch.float64)
        kinds = [self.counts(x).square().sum(1), self.gained(x).square().sum(1).square()]
        return torch.cat([plain, torch.stack(kinds)])
