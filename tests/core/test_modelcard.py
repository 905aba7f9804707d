import numpy as np

from nas.modelcard import card
from nas.problem import CostTable, Problem
from nas.space import SearchSpace
from nas.study import Winner
from nas.trial import Measurement, Trial
from tests.core.test_cli import nas as command


def test_a_card_says_what_was_replaced_what_it_costs_and_where_it_comes_from() -> None:
    space = SearchSpace.of_sizes("demo", [2, 2])
    problem = Problem(space, CostTable({"params": np.array([[100.0, 10.0], [100.0, 50.0]])}), (0.1,))
    trial = Trial(0, (1, 0), {"params": 110.0}, 0.05, 0.01, 128)
    text = card(problem, Winner(0.1, True, trial, Measurement(0.06)), {"search": {"seed": 3}}, 'model = load_model("FOLDER", Net())')
    assert '```python\nmodel = load_model("FOLDER", Net())\n```' in text
    assert "| parameters | 200 | 110 | 55.0 % |" in text
    assert "0.05 ± 0.01 on 128 samples" in text
    assert "| s0 | c1 |" in text
    assert "| search.seed | `3` |" in text
    assert text.startswith("---\n")


def test_cite_prints_entries_for_what_a_search_uses() -> None:
    assert "BoTorch" in command("cite").stdout
    assert command("cite").stdout.count("@") == 4
