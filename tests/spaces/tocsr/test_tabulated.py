"""The shipped table says what measuring the shipped teacher's candidates says."""

from pathlib import Path

import numpy as np
import pytest

from nas.progress import Quiet
from nas.spaces.tocsr.space import tocsr_unet
from nas.spaces.tocsr.tabulated import measured_space, tocsr_table


def test_the_table_is_of_the_shipped_teacher_and_of_the_default_librarys_blocks() -> None:
    table, whole = tocsr_table(), tocsr_unet()
    assert table.fingerprint()["table"] == whole.teacher_key
    offered = {stage.name: {choice.name for choice in stage.choices} for stage in whole.space.stages}
    assert all({choice.name for choice in stage.choices} <= offered[stage.name] for stage in table.space.stages)


@pytest.mark.slow
def test_measured_again_the_candidates_have_the_tables_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HOME", str(tmp_path))
    table, task = tocsr_table().prepare(Quiet()), measured_space().prepare(Quiet())
    random = np.random.default_rng(0)
    candidates = [tuple(int(random.integers(size)) for size in task.space.sizes) for _ in range(6)]
    known = [measured.divergence for measured in table.evaluator.measure(candidates)]
    found = [measured.divergence for measured in task.evaluator.measure(candidates)]
    np.testing.assert_allclose(np.array(found, float), np.array(known, float), rtol=0.02)
