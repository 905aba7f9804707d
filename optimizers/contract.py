"""What every optimizer must do, as checks that anyone can run on their own.

    from nas.optimizers.contract import check_optimizer

    check_optimizer(MyOptimizer)

Each check makes problems, runs the optimizer on them and raises `ContractError` with what it did wrong.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from nas.errors import ContractError, InputError, NasError
from nas.names import check_is_optimizer, check_makes_optimizers
from nas.problem import Bound, CostTable, Problem
from nas.protocols import Optimizer, OptimizerFactory
from nas.space import Candidate, Rule, SearchSpace
from nas.trial import Trial
from nas.user_code import user_code

Measure = Callable[[Candidate], float | None]
Check = Callable[[OptimizerFactory], None]


def check_optimizer(factory: OptimizerFactory) -> None:
    """Runs every check of `CHECKS`.

    Raises:
        ContractError: the first thing that the optimizer did wrong: which rule it broke, and how to try that rule alone.
    """
    name = getattr(factory, "__name__", type(factory).__name__)
    check_makes_optimizers(factory, f"optimizer {name}")

    def make(problem: Problem, seed: int = 0) -> Optimizer:
        return check_is_optimizer(factory(problem, seed=seed), f"optimizer {name}")

    for check in CHECKS:
        try:
            with user_code(f"optimizer {name}"):
                check(make)
        except NasError as error:
            rule = check.__name__
            raise ContractError(f"{name} breaks the rule '{rule}': {error}; once mended, try it alone: nas.optimizers.contract.{rule}({name})") from error


def make_problem(
    sizes: Sequence[int], eps: Sequence[float] = (0.5,), *, rules: tuple[Rule, ...] = (), macs_at_most: float | None = None, errors: bool = True
) -> Problem:
    """A small problem whose surrogate blocks get cheaper and worse with their index; `macs_at_most` is a share of the teacher's."""
    rng = np.random.default_rng(7)
    k = np.arange(max(sizes))
    padding = k >= np.array(sizes)[:, None]
    by_choice = {metric: np.where(padding, np.nan, np.round(rng.uniform(50, 100, (len(sizes), 1)) / (1 + k))) for metric in ("params", "macs")}
    costs = CostTable(by_choice, {"params": 10.0, "macs": 10.0})
    stages = SearchSpace.of_sizes("contract", sizes).stages
    teacher = costs.of((0,) * len(sizes))
    bounds = () if macs_at_most is None else (Bound("macs", macs_at_most * teacher["macs"]),)
    calibration = np.where(padding, np.nan, 0.1 * k * np.ones((len(sizes), 1))) if errors else None
    return Problem(SearchSpace("contract", stages, rules), costs, tuple(eps), "params", bounds, calibration)


def additive_divergence(candidate: Candidate) -> float:
    """A divergence that grows with every swap, differently in each stage."""
    return sum(0.1 * k * (1 + s % 3) for s, k in enumerate(candidate))


def drive(optimizer: Optimizer, problem: Problem, measure: Measure, count: int, n: int = 1) -> list[Trial]:
    """The log after at most `count` calls, each proposal checked; shorter when the optimizer stopped."""
    trials: list[Trial] = []
    for _ in range(count):
        proposed = checked(optimizer.propose(trials, n=n), problem, trials, (), n)
        if not proposed:
            break
        trials += [trial(len(trials) + i, candidate, problem, measure(candidate)) for i, candidate in enumerate(proposed)]
    return trials


def trial(number: int, candidate: Candidate, problem: Problem, divergence: float | None, stderr: float = 0.0) -> Trial:
    """One row of a log."""
    costs = problem.costs.of(candidate)
    if divergence is None:
        return Trial(number, candidate, costs, None, state="failed", reason="made to fail")
    return Trial(number, candidate, costs, divergence, stderr, n_samples=1)


def checked(proposed: list[Candidate], problem: Problem, trials: Sequence[Trial], pending: Sequence[Candidate], n: int) -> list[Candidate]:
    """The proposals, if they are allowed candidates that are new and differ."""
    taken = {t.candidate for t in trials} | set(pending)
    for candidate in _inside(proposed, problem, n):
        if candidate in taken:
            raise ContractError(f"proposed {candidate}, which was told, is pending or was proposed in the same call")
        if broken := problem.broken(candidate):
            raise ContractError(f"proposed {candidate}: {broken}; problem.allowed(candidates) says which may be proposed")
        taken.add(candidate)
    return proposed


def _inside(proposed: list[Candidate], problem: Problem, n: int) -> list[Candidate]:
    """The proposals, if they are at most `n` candidates of the space."""
    if not isinstance(proposed, Sequence):
        raise ContractError(f"propose must return a list of candidates, empty when it is done, got {_shown(proposed)}")
    if len(proposed) > n:
        raise ContractError(f"asked for at most {n} candidates, {len(proposed)} were proposed")
    for candidate in proposed:
        if not isinstance(candidate, tuple) or not all(type(k) is int for k in candidate):
            raise ContractError(f"a candidate must be a tuple of ints, got {_shown(candidate)}")
        try:
            problem.space.check(candidate)
        except InputError as error:
            raise ContractError(f"proposed {candidate}: {error}") from None
    return proposed


def _shown(value: object) -> str:
    """The value with its type, cut where it is long."""
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:80] + '...'} ({type(value).__name__})"


def stays_inside_the_space(factory: OptimizerFactory) -> None:
    """Proposals are candidates of the space, with stages of different sizes, one with a single choice."""
    problem = make_problem((4, 1, 3, 2, 3))
    optimizer = factory(problem, seed=1)
    trials: list[Trial] = []
    for number in range(14):
        proposed = _inside(optimizer.propose(trials), problem, 1)
        if not proposed:
            break
        trials.append(trial(number, proposed[0], problem, additive_divergence(proposed[0])))


def repeats_nothing(factory: OptimizerFactory) -> None:
    """No candidate comes twice in a search."""
    problem = make_problem((4, 1, 3, 2, 3))
    drive(factory(problem, seed=1), problem, additive_divergence, 14)


def is_a_pure_function(factory: OptimizerFactory) -> None:
    """The same log gives the same proposals, whatever was asked before, and leaves the log alone."""
    problem = make_problem((3, 3, 2, 3))
    used = factory(problem, seed=3)
    trials = drive(used, problem, additive_divergence, 13)
    for count in (0, 1, 5, 12):
        log = trials[:count]
        again, fresh = used.propose(log), factory(problem, seed=3).propose(log)
        if again != fresh:
            raise ContractError(f"a used instance proposed {again} after {count} trials, a fresh one {fresh}")
        if count < len(trials) and fresh != [trials[count].candidate]:
            raise ContractError(f"replaying the log proposed {fresh} after {count} trials, the run had {trials[count].candidate}")
        if log != trials[:count]:
            raise ContractError("propose changed the log")


def exhausts_a_small_space(factory: OptimizerFactory) -> None:
    """It ends with an empty list, and what it left unmeasured is not better: the winners of all eps are optimal."""
    problem = make_problem((2, 3, 1, 2), eps=(0.35, 0.15))
    trials = drive(factory(problem, seed=0), problem, additive_divergence, problem.space.n_candidates + 1)
    if len(trials) > problem.space.n_candidates:
        raise ContractError("did not end although every candidate was told")
    everything = [tuple(row) for row in problem.space.enumerate().tolist()]
    for eps in problem.eps:
        best = min(problem.costs.of(c)["params"] for c in everything if additive_divergence(c) <= eps)
        found = min([t.costs["params"] for t in trials if (t.divergence or 0.0) <= eps], default=math.inf)
        if min(found, problem.costs.of(problem.space.teacher)["params"]) > best:
            raise ContractError(f"stopped at eps {eps} with a winner of {found} params; {best} was to be had")


def ends_on_a_space_of_one_candidate(factory: OptimizerFactory) -> None:
    """With the teacher alone there is at most the teacher to propose."""
    problem = make_problem((1, 1))
    if len(drive(factory(problem, seed=0), problem, additive_divergence, 3)) > 1:
        raise ContractError("proposed more than once on a space of one candidate")


def survives_failed_measurements(factory: OptimizerFactory) -> None:
    """Failed trials have no divergence; one in three, then all."""
    problem = make_problem((3, 3, 3))
    drive(factory(problem, seed=2), problem, lambda c: None if sum(c) % 3 == 1 else additive_divergence(c), 14)
    drive(factory(problem, seed=2), problem, lambda _: None, 13)


def survives_odd_values(factory: OptimizerFactory) -> None:
    """All infeasible, all feasible, constant, zero, negative and widely spread divergences."""
    problem = make_problem((3, 3, 3))
    landscapes: tuple[Measure, ...] = (
        lambda c: 1e3 + additive_divergence(c),
        lambda c: 1e-6 * additive_divergence(c),
        lambda _: 0.25,
        lambda _: 0.0,
        lambda c: 0.3 - additive_divergence(c),
        lambda c: 10.0 ** (sum(c) * 3 - 12),
    )
    for measure in landscapes:
        drive(factory(problem, seed=4), problem, measure, 12)


def takes_standard_errors(factory: OptimizerFactory) -> None:
    """Measurements with standard errors, some larger than the value."""
    problem = make_problem((3, 3, 3))
    optimizer = factory(problem, seed=5)
    trials: list[Trial] = []
    for number in range(13):
        proposed = checked(optimizer.propose(trials), problem, trials, (), 1)
        if not proposed:
            break
        noisy = additive_divergence(proposed[0]) - 0.2 + 0.1 * (number % 3)
        trials.append(trial(number, proposed[0], problem, noisy, stderr=0.2 * (number % 2)))


def takes_an_eps_of_zero(factory: OptimizerFactory) -> None:
    """Nothing but an exact copy is feasible then."""
    problem = make_problem((3, 2, 3), eps=(0.0,))
    drive(factory(problem, seed=6), problem, additive_divergence, 12)


def takes_unknown_calibration_errors(factory: OptimizerFactory) -> None:
    """None at all, and some NaN."""
    problem = make_problem((3, 2, 3), errors=False)
    drive(factory(problem, seed=6), problem, additive_divergence, 11)
    partly = np.array([[0.0, 0.1, np.nan], [0.0, np.nan, np.nan], [0.0, 0.2, 0.3]])
    with_holes = Problem(problem.space, problem.costs, problem.eps, calibration_errors=partly)
    drive(factory(with_holes, seed=6), with_holes, additive_divergence, 11)


def takes_expected_losses(factory: OptimizerFactory) -> None:
    """Some NaN, with and without calibration errors; all far too small."""
    problem = make_problem((3, 2, 3), errors=False)
    losses = np.array([[0.0, 0.1, np.nan], [0.0, 0.2, np.nan], [0.0, np.nan, 0.3]])
    for known in (replace(problem, expected_losses=losses), replace(problem, expected_losses=1e-30 * losses, calibration_errors=losses[::-1])):
        drive(factory(known, seed=6), known, additive_divergence, 11)


def respects_bounds_and_rules(factory: OptimizerFactory) -> None:
    """Known bounds and rules hold for every proposal; `drive` checks them."""
    problem = make_problem((3, 3, 3), macs_at_most=0.7, rules=(_no_equal_neighbours,))
    trials = drive(factory(problem, seed=8), problem, additive_divergence, problem.space.n_candidates + 1)
    if len(trials) > problem.space.n_candidates:
        raise ContractError("did not end although every allowed candidate was told")


def _no_equal_neighbours(candidate: Candidate) -> bool:
    return candidate[0] == 0 or candidate[0] != candidate[1]


def proposes_several_at_once(factory: OptimizerFactory) -> None:
    """`n` above 1 gives distinct candidates, pending ones are avoided, and asking for more than there are gives what there is."""
    problem = make_problem((3, 2, 3))
    optimizer = factory(problem, seed=9)
    trials = drive(optimizer, problem, additive_divergence, 3, n=3)
    pending: list[Candidate] = []
    for _ in range(3):
        pending += checked(optimizer.propose(trials, pending, 2), problem, trials, pending, 2)
    checked(optimizer.propose(trials, pending, 40), problem, trials, pending, 40)


def shares_turns_between_several_eps(factory: OptimizerFactory) -> None:
    """Several eps, one log."""
    problem = make_problem((3, 3, 3), eps=(0.2, 0.6, 1.0))
    drive(factory(problem, seed=10), problem, additive_divergence, 12)


def scales_to_a_trillion_candidates(factory: OptimizerFactory) -> None:
    """Proposals on 4^20 candidates, with and without a bound that random candidates rarely satisfy."""
    for share in (None, 0.4):
        problem = make_problem((4,) * 20, macs_at_most=share)
        drive(factory(problem, seed=11), problem, additive_divergence, 3)


CHECKS: Final[tuple[Check, ...]] = (
    stays_inside_the_space,
    repeats_nothing,
    is_a_pure_function,
    exhausts_a_small_space,
    ends_on_a_space_of_one_candidate,
    survives_failed_measurements,
    survives_odd_values,
    takes_standard_errors,
    takes_an_eps_of_zero,
    takes_unknown_calibration_errors,
    takes_expected_losses,
    respects_bounds_and_rules,
    proposes_several_at_once,
    shares_turns_between_several_eps,
    scales_to_a_trillion_candidates,
)
