"""Explanations of a run, against the landscape they speak of."""

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nas
from nas.errors import InputError
from nas.explain import Explanation, explain
from nas.findings import Findings, read_run
from nas.names import resolve_space
from nas.problem import CostTable, Problem
from nas.progress import Quiet
from nas.report.forecast import Estimate, Forecast, forecast, references
from nas.report.interactions import Interaction, heat_map, interactions
from nas.space import Candidate, Choice, SearchSpace, Stage
from tests.core.test_cli import nas as cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs")
    nas.search("synthetic:3", 0.01, workdir=workdir, name="demo", trials=12, where=("macs<=90%",))
    return workdir / "demo"


@pytest.fixture(scope="module")
def explained(run: Path) -> tuple[Explanation, Forecast]:
    findings = read_run(run)
    known = forecast(findings)
    assert known is not None
    return explain(findings, known)[0], known


def test_every_one_swap_neighbour_is_listed_once_with_its_exact_cost(explained: tuple[Explanation, Forecast]) -> None:
    explanation, known = explained
    space = known.problem.space
    assert len(explanation.neighbours) == sum(size - 1 for size in space.sizes)
    for n in explanation.neighbours:
        candidate = space.encode({**explanation.candidate, n.stage: n.after})
        assert n.cost == known.problem.costs.of(candidate)["params"]
        assert n.saves == explanation.cost - n.cost


def test_most_predicted_neighbours_lie_within_their_interval(explained: tuple[Explanation, Forecast]) -> None:
    explanation, known = explained
    task = resolve_space("synthetic:3").prepare(Quiet())
    predicted = [n for n in explanation.neighbours if n.divergence is not None and n.divergence.source == "predicted"]
    inside = 0
    for n in predicted:
        true = task.evaluator.measure([known.problem.space.encode({**explanation.candidate, n.stage: n.after})])[0].divergence
        assert true is not None
        assert n.divergence is not None
        inside += n.divergence.low <= true <= n.divergence.high
    assert inside >= 0.8 * len(predicted)


def test_the_bound_on_l_binds_and_says_how_many_neighbours_it_keeps_out(explained: tuple[Explanation, Forecast]) -> None:
    bounds = {bound.bound.split()[0]: bound for bound in explained[0].bounds}
    assert bounds["L"].binds
    assert bounds["L"].value <= bounds["L"].limit
    assert bounds["macs"].value <= bounds["macs"].limit


def test_a_larger_eps_never_costs_more(explained: tuple[Explanation, Forecast]) -> None:
    smaller, same, larger = explained[0].other_eps
    assert smaller.middle >= same.middle >= larger.middle
    assert all(other.low <= other.middle <= other.high for other in explained[0].other_eps)
    assert same.high <= explained[0].cost


def test_a_bound_that_binds_says_at_which_limit_the_first_cheaper_network_comes_in_and_what_it_saves(tmp_path: Path) -> None:
    costs = {"cost_params": np.array([[10.0, 8.0, 5.0, 6.0]]), "cost_macs": np.array([[10.0, 6.0, 9.0, 7.0]])}
    np.savez(tmp_path / "t.npz", sizes=np.array([4]), divergence=np.array([0.0, 0.001, 0.002, 0.003]), **costs)
    nas.search(f"table:{tmp_path / 't.npz'}", 0.01, workdir=tmp_path, name="run", where=("macs<=6",))
    findings = read_run(tmp_path / "run")
    divergence, macs = explain(findings, forecast(findings))[0].bounds
    assert (divergence.keeps_out, divergence.opens_at, divergence.saves) == (0, None, None)
    assert (macs.keeps_out, macs.opens_at, macs.saves) == (2, 7.0, 2.0)
    assert (
        "2 cheaper networks one swap away break only this; at 7 the first of them comes in and saves 2 params" in cli("explain", str(tmp_path / "run")).stdout
    )


def test_what_a_relaxed_bound_would_give_is_told_also_where_no_single_swap_breaks_it_alone(tmp_path: Path) -> None:
    nas.search("synthetic:3", 0.02, workdir=tmp_path, name="run", trials=30, where=("macs<=30%",))
    findings = read_run(tmp_path / "run")
    known = forecast(findings)
    assert known is not None
    explanation = explain(findings, known)[0]
    (other,) = explanation.other_bounds
    relaxed = replace(known.problem, bounds=(replace(known.problem.bounds[0], limit=other.limit),))
    truth = relaxed.costs.of(resolve_space("synthetic:3").prepare(Quiet()).evaluator.optimum(relaxed, 0.02))["params"]  # type: ignore[attr-defined]
    assert not explanation.bounds[1].binds
    assert (other.metric, other.limit) == ("macs", pytest.approx(1.1 * explanation.bounds[1].limit))
    assert other.low <= truth <= other.high < explanation.cost
    assert re.search(r"with 10 % more macs \(2.823 G\): cheapest network about .* params \(-3\d", cli("explain", str(tmp_path / "run")).stdout)


@pytest.fixture(scope="module")
def refused(run: Path) -> Findings:
    """The run with every feasible candidate cheaper than one neighbour of its winner refused by held-out samples, the winner among them."""
    findings = read_run(run)
    space, eps = findings.problem.space, findings.eps[0]  # type: ignore[union-attr]
    first = findings.winners[0].trial
    assert first is not None
    feasible = [t for t in findings.trials if t.divergence is not None and t.divergence <= eps]
    near = [t for t in feasible if sum(k != a for k, a in zip(t.candidate, first.candidate, strict=True)) == 1]
    held = min(near, key=lambda t: t.costs["params"])
    cheaper = [t for t in feasible if t.costs["params"] < held.costs["params"]]
    result = dict(findings.facts["result"])
    rejected = [{"candidate": space.decode(t.candidate), "divergence": t.divergence, "heldout_divergence": 1.3 * eps} for t in cheaper]
    result["winners"] = [{**result["winners"][0], "candidate": space.decode(held.candidate), "rejected": rejected}]
    return replace(findings, facts={**findings.facts, "result": result})


def test_candidates_that_held_out_samples_refused_are_not_feasible_neighbours(refused: Findings) -> None:
    explanation = explain(refused, forecast(refused))[0]
    marked = [n for n in explanation.neighbours if n.rejected]
    assert marked
    assert not any(n.feasible for n in marked)
    assert all(n.divergence is not None and n.divergence.value <= explanation.eps and n.saves > 0 for n in marked)
    assert not any(n.feasible and n.saves > 0 and n.divergence and n.divergence.source == "measured" for n in explanation.neighbours)
    assert explanation.bounds[0].keeps_out >= len(marked)
    assert not {(n.stage, n.after) for n in marked} & {(price.stage, price.cheaper) for price in explanation.prices}


def test_a_smaller_eps_never_promises_a_cheaper_network_than_the_winner(refused: Findings) -> None:
    explanation = explain(refused, forecast(refused))[0]
    smaller, same, larger = explanation.other_eps
    assert smaller.low >= explanation.cost
    assert smaller.middle >= same.middle >= larger.middle


def test_a_predicted_part_of_l_has_an_interval_that_mostly_holds_the_truth(explained: tuple[Explanation, Forecast]) -> None:
    explanation, known = explained
    evaluator = resolve_space("synthetic:3").prepare(Quiet()).evaluator
    parts = [b.part for b in explanation.new_blocks if b.part is not None and b.part.source == "predicted"]
    stages = [b.stage for b in explanation.new_blocks if b.part is not None and b.part.source == "predicted"]
    inside = 0
    for stage, part in zip(stages, parts, strict=True):
        without = evaluator.measure([known.problem.space.encode({**explanation.candidate, stage: "teacher"})])[0].divergence
        assert without is not None
        assert explanation.divergence is not None
        assert 0 <= part.low <= part.value <= part.high <= explanation.divergence
        inside += part.low <= explanation.divergence - without <= part.high
    assert parts
    assert inside >= 0.8 * len(parts)


def test_a_block_that_no_other_trial_has_adds_an_unknown_amount(run: Path) -> None:
    findings = read_run(run)
    winner = findings.winners[0].trial
    assert winner is not None
    s = max(s for s, k in enumerate(winner.candidate) if k)
    lonely = replace(findings, trials=tuple(t for t in findings.trials if t is winner or t.candidate[s] != winner.candidate[s]))
    known = forecast(lonely)
    assert known is not None
    taken_back = (*winner.candidate[:s], 0, *winner.candidate[s + 1 :])
    assert taken_back not in {t.candidate for t in lonely.trials}
    block = next(b for b in explain(lonely, known)[0].new_blocks if b.stage == known.problem.space.stages[s].name)
    assert block.unknown
    assert block.part_of_divergence is None
    assert block.half_error_saves is None


def test_pairs_and_prices_cover_the_replaced_stages(explained: tuple[Explanation, Forecast]) -> None:
    explanation, _ = explained
    replaced = [stage for stage, choice in explanation.candidate.items() if choice != "teacher"]
    assert explanation.additivity is not None
    assert len(explanation.additivity.pairs) == len(replaced) * (len(replaced) - 1) // 2
    assert {price.stage for price in explanation.prices} == set(explanation.candidate)
    assert explanation.new_blocks[0].half_cost_saves > 0
    json.dumps(explanation.to_json())


def test_the_heat_map_holds_every_pair_once_in_the_order_of_the_stages(explained: tuple[Explanation, Forecast]) -> None:
    explanation, _ = explained
    assert explanation.additivity is not None
    heat = heat_map(explanation.additivity.pairs, explanation.eps)
    assert heat is not None
    replaced = [stage for stage, choice in explanation.candidate.items() if choice != "teacher"]
    assert (*heat.columns, heat.rows[-1][0]) == tuple(replaced)
    assert heat.n_pairs == sum(len(row) for _, row in heat.rows) == len(explanation.additivity.pairs)


def test_the_heat_map_draws_known_pairs_alone_and_the_strongest_in_full_colour() -> None:
    pairs = (
        Interaction("a", "c", -0.009, "predicted", -0.02, 0.002, False),
        Interaction("a", "b", -0.004, "measured", -0.005, -0.003, True),
        Interaction("b", "c", 0.002, "predicted", 0.001, 0.003, True),
    )
    heat = heat_map(pairs, 0.01)
    assert heat is not None
    assert (heat.n_known, heat.n_pairs) == (2, 3)
    (_, (first,)), (_, (empty, last)) = heat.rows
    assert first is not None
    assert last is not None
    assert empty is None
    assert (first.heat, last.heat) == (-3, 2)
    assert first.percent == pytest.approx(-40)


def test_a_pair_is_known_only_if_its_interval_leaves_0_out_and_a_swap_was_measured_alone() -> None:
    def among(joint: Estimate, *alone: Estimate) -> Interaction:
        known: dict[Candidate, Estimate] = {(1, 1): joint, (1, 0): alone[0], (0, 1): alone[1]}
        space = SearchSpace("two", tuple(Stage(s, (Choice("teacher"), Choice("b"))) for s in ("s", "t")))
        problem = Problem(space, CostTable({"params": np.ones((2, 2))}, {"params": 0.0}), (0.1,), "params")
        return interactions(problem, (1, 1), Forecast(problem, (), None, known))[0]

    exact, noisy = Estimate(0.01, 0.01, 0.01, "measured"), Estimate(0.05, 0.03, 0.07, "measured")
    said = Estimate(0.01, 0.009, 0.011, "predicted")
    assert among(Estimate(0.05, 0.05, 0.05, "measured"), exact, exact).known
    uncertain = among(noisy, exact, exact)
    assert (uncertain.excess, uncertain.low) == pytest.approx((0.03, 0.03 - 1.645 * 0.02))
    assert not uncertain.known
    assert among(Estimate(0.05, 0.04, 0.06, "predicted"), said, exact).known
    assert not among(Estimate(0.05, 0.04, 0.06, "predicted"), said, said).known


def test_references_offer_the_same_block_everywhere(explained: tuple[Explanation, Forecast]) -> None:
    assert references(explained[1].problem)["all c2"] == (2,) * 7


def test_an_unfinished_run_is_explained_with_a_note(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "run.toml").write_text((run / "run.toml").read_text())
    with sqlite3.connect(run / "study.db") as source, sqlite3.connect(copy / "study.db") as target:
        source.backup(target)
        target.execute("DELETE FROM facts WHERE name = 'result'")
        target.execute("DELETE FROM trials WHERE number > 0")
    findings = read_run(copy)
    explanation = explain(findings, forecast(findings))[0]
    assert any("not come to its end" in note for note in explanation.notes)
    assert any("Too few trials" in note for note in explanation.notes)
    assert explanation.other_eps == ()


def test_a_run_without_costs_cannot_be_explained(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[search]\neps = [0.1]\n")
    findings = read_run(tmp_path)
    with pytest.raises(InputError, match="cannot be explained"):
        explain(findings, forecast(findings))


def test_where_nothing_is_feasible_none_is_expected_and_none_is_called_cheaper(tmp_path: Path) -> None:
    result = nas.search("synthetic:3", 0.0002, workdir=tmp_path, name="none", trials=12, where=("params<=40%",))
    assert not result.winners[0].feasible
    (statement,) = result.to_json()["statements"]
    assert statement.startswith("P(any candidate is feasible at 0.0002) = ")
    assert "cheaper" not in statement
    findings = read_run(tmp_path / "none")
    explanation = explain(findings, forecast(findings))[0]
    assert [other.middle for other in explanation.other_eps] == [None] * 3
