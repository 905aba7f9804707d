"""Every Python snippet of the tutorial, in order, in one session."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import flop_registry

TUTORIAL = Path(__file__).parents[2] / "docs" / "own_library.md"


def test_every_snippet_of_the_tutorial_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 11
    state = torch.random.get_rng_state()
    (tmp_path / "tutorial_snippets.py").write_text("\n".join(snippets), encoding="utf-8")
    import tutorial_snippets  # type: ignore[import-not-found]  # written a line above

    assert tutorial_snippets.winner["feasible"]
    torch.random.set_rng_state(state)
    del flop_registry[torch.ops.aten._cdist_forward]  # the page teaches torch a count, for all of this process
