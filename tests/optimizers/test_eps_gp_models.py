"""The models behind eps_gp against slow obvious versions, gpytorch and botorch."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from nas.optimizers.alternatives import fit_additive, fit_categorical, soft_log, soft_log_slope, soft_root, soft_root_slope
from nas.optimizers.beliefs import Belief, Record, standard_deviation
from nas.optimizers.botorch_model import as_botorch
from nas.optimizers.compounding import Compounding, fit_compounding
from nas.optimizers.enumeration import PairTable, Region
from nas.optimizers.expected import Expected
from nas.optimizers.hints import Hints
from nas.optimizers.kernels import AdditiveKernel, CompoundingKernel, HammingKernel, SumOfParts
from nas.optimizers.selection import pooled_weights
from nas.problem import Floats

SIZES = (3, 4, 2, 3)
K = max(SIZES)


def present() -> np.ndarray:
    k = np.arange(K)
    return ((k[None] > 0) & (k[None] < np.array(SIZES)[:, None])).astype(float)


def whole_space() -> np.ndarray:
    return np.indices(SIZES).reshape(len(SIZES), -1).T.astype(np.int64)[1:]


def landscape(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    loss = present() * np.exp(rng.normal(-6, 1, (len(SIZES), K)))
    total = loss[np.arange(len(SIZES)), x].sum(1)
    return total**1.1 * np.exp(rng.normal(0, 0.05, len(x)))


def record(n: int = 14, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    x = whole_space()
    y = landscape(rng, x)
    rows = rng.choice(len(x), n, replace=False)
    return Record(x[rows], y[rows], np.zeros(n), 0.003)


def compounded(log_errors: Floats, record: Record, hints: Hints | None = None) -> Compounding:
    return fit_compounding(Expected.from_errors(log_errors, present(), record.scale, hints.expected if hints else 0.0), record, hints)


def fitted(n: int = 14, seed: int = 0) -> list[Belief]:
    log_errors = np.random.default_rng(seed + 1).normal(size=(len(SIZES), K)) * present()
    hints = Hints(log_errors[None] ** 2, np.tile(np.arange(K), (len(SIZES), 1)), np.zeros_like(log_errors))
    return [compounded(log_errors, record(n, seed), hints), fit_additive(record(n, seed), K), fit_categorical(record(n, seed), K, hints.kinds)]


def kernels() -> list[SumOfParts]:
    rng = np.random.default_rng(3)
    losses = torch.from_numpy(present() * np.exp(rng.normal(size=(len(SIZES), K))))
    traits, kinds = torch.from_numpy(rng.normal(size=(2, *losses.shape)) * present()), torch.arange(K).expand(losses.shape)
    compounding = CompoundingKernel(
        losses, torch.from_numpy(rng.normal(size=losses.shape) * present()), torch.zeros(len(SIZES), len(SIZES), K, K).double(), -5.0, traits, kinds
    )
    pairs = rng.normal(0, 0.2, (len(SIZES), len(SIZES), K, K))
    pairs = pairs + pairs.transpose(1, 0, 3, 2)
    pairs[np.arange(len(SIZES)), np.arange(len(SIZES))] = 0
    compounding.linearise(losses, torch.from_numpy(pairs), 0.1)
    return [compounding, AdditiveKernel(K), HammingKernel(len(SIZES), K, kinds)]


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: type(kernel).__name__)
def test_every_part_of_a_kernel_is_positive_semidefinite_and_has_its_diagonal(kernel: SumOfParts) -> None:
    x = torch.from_numpy(whole_space())
    parts = kernel.parts(x, x)
    for part, diagonal in zip(parts, kernel.diagonal(x), strict=True):
        assert torch.linalg.eigvalsh((part + part.T) / 2).min() > -1e-9
        assert torch.allclose(part.diagonal(), diagonal, atol=1e-12)


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: type(kernel).__name__)
def test_a_kernel_works_as_a_gpytorch_kernel(kernel: SumOfParts) -> None:
    x = torch.from_numpy(whole_space()).double()
    expected = torch.tensordot(kernel.variances, kernel.parts(x.long(), x.long()), dims=1)
    assert torch.allclose(kernel(x, x).to_dense(), expected)
    assert torch.allclose(kernel(x, x, diag=True), expected.diagonal())


def test_the_shares_of_the_compounding_kernel_are_derivatives_of_log_l() -> None:
    kernel = kernels()[0]
    assert isinstance(kernel, CompoundingKernel)
    x = torch.from_numpy(whole_space())
    losses, step, choice = kernel.losses, 1e-6, (1, 2)
    before, shares = kernel.shares(x).value, kernel.shares(x)
    moved = losses.clone()
    moved[choice] *= math.exp(step)
    kernel.linearise(moved, kernel.pairs, kernel.exponent)
    slope = (1 + kernel.exponent) * (kernel.shares(x).value - before) / step
    expected = torch.where(x[:, choice[0]] == choice[1], shares.share[:, choice[0]], 0.0)
    assert torch.allclose(slope, expected, atol=1e-5)


@pytest.mark.parametrize("belief", fitted(), ids=lambda belief: belief.name)
def test_a_fitted_model_agrees_with_botorch(belief: Belief) -> None:
    x = whole_space()
    with torch.no_grad():
        posterior = as_botorch(belief).posterior(torch.from_numpy(x).double())
    assert np.allclose(belief.mean(x), posterior.mean[:, 0].numpy(), atol=2e-3)
    sd = np.sqrt(posterior.variance[:, 0].numpy() + belief.gp.noise_sd**2)
    assert np.allclose(standard_deviation(belief, x), sd, atol=1e-4)


@pytest.mark.parametrize("n", [0, 14])
def test_the_variance_that_the_compounding_model_tells_is_that_of_its_single_blocks(n: int) -> None:
    belief = fitted(n)[0] if n else compounded(np.zeros((len(SIZES), K)), record(0))
    assert isinstance(belief, Compounding)
    x = whole_space()
    told_sd = np.sqrt(belief.told_variance([form.at(x) for form in belief.forms if isinstance(form, PairTable)]))
    exact = standard_deviation(belief, x)
    assert np.corrcoef(told_sd, exact)[0, 1] > 0.8
    if not n:  # of a single swap nothing else is in doubt but the exponent
        single = (x > 0).sum(1) == 1
        rest = belief.gp.noise_sd**2 + 0.15**2 * np.square(np.log(belief.base[np.nonzero(x[single])[1], x[single].max(1)]) - belief.kernel.centre)
        assert np.allclose(np.square(exact[single]), np.square(told_sd[single]) + rest)


@pytest.mark.parametrize("belief", fitted(), ids=lambda belief: belief.name)
def test_the_mean_of_the_whole_space_by_halves_equals_the_mean_of_listed_candidates(belief: Belief) -> None:
    kept = [np.arange(size) for size in SIZES]
    costs = np.random.default_rng(5).uniform(size=(len(SIZES), K))
    for base, free in [((0, 0, 0, 0), None), ((1, 2, 0, 2), (0, 2, 3)), ((2, 1, 1, 0), (1,))]:
        region = Region(kept, costs, base, free)
        halved = [form.halved(region) for form in belief.forms]
        i, j = (axis.ravel() for axis in np.indices((len(region.left), len(region.right))))
        x = region.candidates(i, j)
        surrogate = x.any(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            blocks = belief.combine([form.block(slice(0, len(region.left)), len(region.right)) for form in halved]).ravel()
        assert np.allclose(blocks[surrogate], belief.mean(x[surrogate]), atol=1e-10)
        assert np.allclose([form.at(i, j) for form in halved], [form.block(slice(0, len(region.left)), len(region.right)).ravel() for form in halved])


@pytest.mark.parametrize("belief", fitted(), ids=lambda belief: belief.name)
def test_leave_one_out_equals_leaving_one_out(belief: Belief) -> None:
    gp = belief.gp
    mean, variance = gp.leave_one_out()
    K_all = gp.chol @ gp.chol.T
    for i in range(len(gp.z)):
        rest = np.arange(len(gp.z)) != i
        weights = np.linalg.solve(K_all[np.ix_(rest, rest)], K_all[rest, i])
        assert mean[i] == pytest.approx(weights @ gp.z[rest], abs=1e-6)
        assert variance[i] == pytest.approx(K_all[i, i] - weights @ K_all[rest, i], abs=1e-6)


def test_the_compounding_model_learns_a_compounding_landscape() -> None:
    rng = np.random.default_rng(0)
    x = whole_space()
    y = landscape(rng, x)
    rows = np.random.default_rng(1).choice(len(x), 40, replace=False)
    belief = compounded(np.zeros((len(SIZES), K)), Record(x[rows], y[rows], np.zeros(40), 0.003))
    others = np.setdiff1d(np.arange(len(x)), rows)
    assert np.sqrt(np.mean((belief.mean(x[others]) - np.log(y[others])) ** 2)) < 0.15


def test_calibration_errors_that_say_nothing_lose_their_exponent() -> None:
    told = record(40)
    rng = np.random.default_rng(0)
    truth = np.log(present() * np.exp(rng.normal(-6, 1, (len(SIZES), K))) + 1e-300) * present()
    informed = compounded((truth + 6) * present(), told)
    misled = compounded(-(truth + 6) * present(), told)
    assert informed.error_exponent > 0.8
    assert misled.error_exponent < 0.3


def test_losses_that_follow_a_trait_are_expected_of_untried_blocks() -> None:
    trait = np.tile([-2.0, -1.0, 1.0, 2.0][: len(SIZES)], (K, 1)).T * present()
    x = np.eye(len(SIZES), dtype=np.int64)[:3]
    told = Record(x, 0.003 * np.exp(2 * trait[np.arange(3), 1]), np.zeros(3), 0.003)
    untried = np.array([[0, 0, 0, 1]])
    plain = compounded(np.zeros_like(trait), told).mean(untried)
    hints = Hints(trait[None], np.arange(trait.size).reshape(trait.shape), np.zeros_like(trait))
    hinted = compounded(np.zeros_like(trait), told, hints).mean(untried)
    assert hinted[0] > plain[0] + 1


@pytest.mark.parametrize("values", [[0.0] * 8, [-0.001] * 8, [0.002] * 8, [0.01, 0.0, -0.002, 0.003, 0.0, 0.5, -0.1, 0.002]])
def test_zero_negative_and_constant_divergences_give_finite_models(values: list[float]) -> None:
    x = whole_space()[::8][:8]
    told = Record(x, np.array(values), np.full(8, 1e-4), 0.003)
    for belief in [compounded(np.zeros((len(SIZES), K)), told), fit_additive(told, K), fit_categorical(told, K)]:
        assert np.isfinite(belief.mean(whole_space())).all()
        assert np.isfinite(standard_deviation(belief, whole_space())).all()
        assert np.isfinite(belief.log_scores()).all()


def test_a_noisy_trial_pulls_the_model_less() -> None:
    surprise = {}
    for stderr in (0.0, 0.02):
        told = record(12)
        y, noise = told.y.copy(), told.stderr.copy()
        y[0], noise[0] = 0.05, stderr
        belief = compounded(np.zeros((len(SIZES), K)), Record(told.x, y, noise, told.scale))
        surprise[stderr] = belief.mean(told.x[:1])[0]
    assert surprise[0.02] < surprise[0.0]


@pytest.mark.parametrize(("warp", "slope"), [(soft_root, soft_root_slope), (soft_log, soft_log_slope)])
def test_warps_have_the_stated_slopes(warp: Callable[[Floats, float], Floats], slope: Callable[[Floats, float], Floats]) -> None:
    y = np.array([-0.3, -0.001, 0.002, 0.01, 4.0])
    step = 1e-7
    assert np.allclose((warp(y + step, 0.003) - warp(y - step, 0.003)) / (2 * step), slope(y, 0.003), rtol=1e-4)


def test_weights_go_to_the_model_that_foresees_and_stay_with_the_prior_before() -> None:
    prior = np.array([0.7, 0.3])
    assert np.allclose(pooled_weights([np.zeros(0), np.zeros(0)], prior), prior)
    assert pooled_weights([np.full(40, -3.0), np.zeros(40)], prior)[1] > 0.9


def test_a_prior_model_without_trials_predicts_from_calibration_errors() -> None:
    log_errors = np.random.default_rng(2).normal(size=(len(SIZES), K)) * present()
    empty = Record(np.zeros((0, len(SIZES)), dtype=np.int64), np.zeros(0), np.zeros(0), 0.003)
    belief = compounded(log_errors, empty)
    assert isinstance(belief, Compounding)
    single = np.array([[2, 0, 0, 0]])
    assert belief.mean(single)[0] == pytest.approx(math.log(0.003) + log_errors[0, 2])
