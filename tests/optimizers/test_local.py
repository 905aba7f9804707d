"""Hill climbing."""

from nas.optimizers.contract import additive_divergence, make_problem, trial
from nas.optimizers.local import LocalSearch
from nas.space import Candidate


def _distance(a: Candidate, b: Candidate) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_it_moves_to_a_cheaper_neighbour_of_the_incumbent() -> None:
    problem = make_problem((4, 4, 4))
    log = [trial(i, c, problem, additive_divergence(c)) for i, c in enumerate([(1, 0, 0), (1, 1, 0)])]
    candidate = LocalSearch(problem).propose(log)[0]
    assert _distance(candidate, (1, 1, 0)) == 1
    assert problem.cost([candidate])[0] < problem.cost([(1, 1, 0)])[0]


def test_once_all_neighbours_are_told_it_moves_two_swaps_away() -> None:
    problem = make_problem((2, 2, 2))
    log = [trial(i, c, problem, 9.0) for i, c in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)])]
    assert _distance(LocalSearch(problem).propose(log)[0], (0, 0, 0)) == 2


def test_while_nothing_is_feasible_it_moves_from_the_least_divergent_candidate_within_the_bounds() -> None:
    problem = make_problem((3, 3, 3), macs_at_most=0.6)
    log = [trial(0, (2, 2, 2), problem, 5.0), trial(1, (2, 1, 2), problem, 3.0), trial(2, (1, 0, 0), problem, 1.0)]
    assert problem.allowed([t.candidate for t in log]).tolist() == [True, True, False]
    assert _distance(LocalSearch(problem).propose(log)[0], (2, 1, 2)) == 1
