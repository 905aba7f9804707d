"""Reports of runs in every state, read as text."""

import html
import itertools
import json
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

import nas
from nas.data import Samples, Splits
from nas.errors import InputError
from nas.findings import read_run
from nas.problem import CostTable, Problem
from nas.report import render, write_report
from nas.report.stagemap import layout
from nas.report.tables import level_table
from nas.run_directory import RunDirectory
from nas.space import Choice, SearchSpace, Stage
from nas.trial import Trial
from tests.core.test_cli import nas as command
from tests.core.toy_space import make_space


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a synthetic space with two eps."""
    workdir = tmp_path_factory.mktemp("runs")
    nas.search("synthetic:3", (0.005, 0.02), workdir=workdir, name="demo", trials=8)
    return workdir / "demo"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def edit(run: Path, *statements: str) -> None:
    """Changes the record as an older or another program would have written it, so that its checksums do not apply."""
    with sqlite3.connect(run / "study.db") as db:
        for statement in statements:
            db.execute(statement)
        db.execute("UPDATE trials SET checksum = ''")
        db.execute("UPDATE facts SET checksum = ''")
    db.close()


def page(run: Path) -> str:
    return render(read_run(run))


def test_a_search_leaves_a_report_with_the_winners_numbers_and_one_mark_a_trial(run: Path) -> None:
    text = html.unescape((run / "report.html").read_text())
    findings = read_run(run)
    assert text.count('class="mark trial') == len(findings.trials) == 8
    for winner in findings.winners:
        assert winner.trial is not None
        assert f"{winner.trial.divergence:.3g} ±" in text
        for choice in findings.problem.space.decode(winner.trial.candidate).values():  # type: ignore[union-attr]
            assert f"<td>{choice}</td>" in text
    assert "within the 90 % interval stated before them" in text
    assert findings.command in text


def test_a_report_and_an_explanation_say_where_along_the_noise_levels_blocks_err(home: Path, tmp_path: Path) -> None:
    def noisy(samples: Samples) -> Samples:
        return Samples({**samples.inputs, "t": torch.arange(len(samples)) * 17 % 100}, samples.groups)

    toy = make_space()
    data = Splits(noisy(toy.data.fit), noisy(toy.data.measure), noisy(toy.data.verify))
    graph = replace(toy.graph, inputs=("x", "t"))
    nas.search(replace(toy, graph=graph, data=data, levels="t"), (0.3, 1.0), workdir=tmp_path, name="run", trials=6)
    findings = read_run(tmp_path / "run")
    table = level_table(findings)
    assert table is not None
    assert len(table.ranges) == 4
    assert {name for name, _, _ in table.rows} == {f"{stage}/{choice}" for stage in "abc" for choice in ("half", "tiny")}
    inside = [bool(eps) for _, eps, _ in table.rows]
    assert inside == sorted(inside, reverse=True)
    text = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert "calibration error by noise level" in text
    for name, _, errors in table.rows:
        assert errors == tuple(f"{error:.3g}" for error in findings.by_level[name].values())
        assert all(f'<td class="n">{error}</td>' in text for error in errors)
    result = command("explain", str(tmp_path / "run"), "--eps", "1", "--json")
    (explained,) = json.loads(result.stdout)
    replaced = {stage: choice for stage, choice in explained["candidate"].items() if choice != "teacher"}
    assert replaced
    assert explained["by_level"] == {stage: findings.by_level[f"{stage}/{choice}"] for stage, choice in replaced.items()}
    assert all(f" {name} " in command("explain", str(tmp_path / "run"), "--eps", "1").stdout for name in table.ranges)


def test_a_run_without_noise_levels_has_no_table_of_them(run: Path) -> None:
    assert level_table(read_run(run)) is None
    assert "by noise level" not in page(run)


def test_a_report_names_nothing_that_would_be_fetched(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text


def test_the_report_of_an_unfinished_run_says_so(copy: Path) -> None:
    edit(copy, "DELETE FROM facts WHERE name = 'result'", "DELETE FROM trials WHERE number > 3")
    text = page(copy)
    assert "has not come to its end" in text
    assert text.count('class="mark trial') == 4
    assert "not verified yet" in text


def test_the_report_of_a_run_without_trials_says_how_to_go_on(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create({"space": {"name": "demo"}, "search": {"eps": [0.1]}})
    directory.record()
    text = page(directory.path)
    assert "No candidate has been measured yet" in text
    assert "stopped before its space was ready" in text
    assert "nothing measured yet" in text


def test_the_report_of_a_damaged_record_shows_the_configuration_and_names_the_damage(copy: Path) -> None:
    for file in copy.glob("study.db*"):
        file.write_bytes(b"no database at all" * 300)
    text = page(copy)
    assert "The record could not be read" in text
    assert "synthetic:3" in text


def test_a_missing_or_damaged_configuration_leaves_the_trials(copy: Path) -> None:
    (copy / "run.toml").write_text("= not toml")
    assert "configuration is unreadable" in page(copy)
    (copy / "run.toml").unlink()
    text = page(copy)
    assert text.count('class="mark trial') == 8
    assert "the record&#39;s copy is shown" in text
    assert "eps 0.02" in text


def test_the_report_of_an_older_run_without_costs_of_blocks_shows_its_trials(copy: Path) -> None:
    edit(copy, "DELETE FROM facts WHERE name IN ('table', 'flow', 'seconds', 'scale', 'trials_asked')")
    text = page(copy)
    assert "made by another version" in text
    assert text.count('class="mark trial') == 8


def test_trials_of_another_space_are_left_out_and_counted(copy: Path) -> None:
    edit(copy, "UPDATE trials SET candidate = '[0, 1]' WHERE number = 2")
    assert "1 trials do not belong to the recorded space" in html.unescape(page(copy))


def test_an_infeasible_run_shows_the_least_divergent_candidate_and_its_failures(tmp_path: Path) -> None:
    nas.search("synthetic:3", 0.0, workdir=tmp_path, name="none", trials=4, optimizer="random")
    edit(tmp_path / "none", "UPDATE trials SET divergence = NULL, state = 'failed', reason = 'not finite' WHERE number = 1")
    write_report(tmp_path / "none")
    text = (tmp_path / "none" / "report.html").read_text()
    assert "nothing feasible" in text
    assert "failed: not finite" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        write_report(tmp_path)


def test_names_cannot_write_into_the_page(copy: Path) -> None:
    evil = "<script>alert(1)</script>\"'"
    edit(copy, "UPDATE trials SET state = 'failed', divergence = NULL, reason = '" + evil.replace("'", "''") + "' WHERE number = 1")
    table = json.dumps(read_run(copy).facts["table"]).replace('"s1"', json.dumps(evil)).replace("'", "''")
    edit(copy, f"UPDATE facts SET value = '{table}' WHERE name = 'table'", "DELETE FROM facts WHERE name = 'result'")
    assert "<script>alert" not in page(copy)


def test_two_thousand_trials_stay_under_three_megabytes(run: Path) -> None:
    findings = read_run(run)
    assert findings.problem is not None
    rng = np.random.default_rng(0)
    candidates = [tuple(row) for row in rng.integers(0, 4, (2000, 7)).tolist()]
    trials = tuple(
        Trial(i, c, findings.problem.costs.of(c), float(rng.lognormal(-5)), 1e-4, 128, 0.1, attrs={"predicted": [1e-3, 2e-3, 4e-3]})
        for i, c in enumerate(candidates)
    )
    text = render(type(findings)(findings.path, findings.config, trials, findings.problem, findings.facts))
    assert text.count('class="mark trial') == 2000
    assert len(text.encode()) < 3_000_000


def test_skips_bend_the_stage_map_into_a_u() -> None:
    graph = nx.DiGraph([("in", "a"), ("a", "b"), ("b", "c"), ("c", "out"), ("a", "c")])
    graph.add_edges_from(("time", name) for name in ("a", "b", "c", "out", "in"))
    placed = layout(graph, frozenset("abc"))
    assert placed.everywhere == ("time",)
    assert placed.at["b"][1] > placed.at["a"][1] > placed.at["in"][1]
    assert placed.at["a"][1] == placed.at["c"][1]


def test_the_boxes_of_a_wide_u_overlap_sideways_only_where_they_stand_in_different_rows() -> None:
    names = [f"n{i}" for i in range(11)]
    graph = nx.DiGraph([*itertools.pairwise(names), *((names[i], names[10 - i]) for i in range(4))])
    at = layout(graph, frozenset(names)).at
    assert max(x for x, _ in at.values()) < 7
    assert all(abs(a[0] - b[0]) >= 1 or abs(a[1] - b[1]) >= 1 for a, b in itertools.combinations(at.values(), 2))
    even = nx.DiGraph([*itertools.pairwise(names[:10]), (names[1], names[8])])
    assert max(x for x, _ in layout(even, frozenset(names[:10])).at.values()) == 9


def test_a_space_whose_blocks_cost_nothing_is_drawn(tmp_path: Path) -> None:
    space = SearchSpace("free", (Stage("only", (Choice("teacher"), Choice("other"))),))
    problem = Problem(space, CostTable({"params": np.zeros((1, 2))}), (0.1,))
    findings = read_run_like(problem, tmp_path)
    assert "only" in render(findings)


def read_run_like(problem: Problem, path: Path):  # type: ignore[no-untyped-def]
    from nas.findings import Findings

    return Findings(path, {"search": {"eps": [0.1]}}, (Trial(0, (1,), {"params": 0.0}, 0.05),), problem)
