import json
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nas
from nas.blocks import calibration
from nas.blocks.calibration import CalibrationSettings
from nas.data import Samples, Splits
from nas.errors import ContractError, InputError
from nas.evaluators.divergence import Settings
from nas.evaluators.gauss_newton import NoExpansion
from nas.evaluators.numerics import Numerics
from nas.graph import StageGraph
from nas.progress import Quiet
from nas.space import Choice, Stage
from nas.spaces.network import NetworkSpace
from nas.spaces.rules import Forbid
from tests.conftest import Narrow, toy_graph, toy_samples, toy_stages


def save(chosen: Mapping[str, tuple[Choice, nn.Module]], folder: Path) -> None:
    folder.mkdir()
    (folder / "chosen.json").write_text(json.dumps({stage: choice.name for stage, (choice, _) in chosen.items()}))


def loss(output: Tensor, samples: Samples) -> float:
    del samples
    return float(output.square().mean())


@pytest.fixture
def network(graph: StageGraph, stages: tuple[Stage, ...], splits: Splits, home: Path) -> NetworkSpace:
    return NetworkSpace("toy", graph, stages, splits, loss=loss, save=save, calibration=CalibrationSettings(max_steps=60), home=home)


def test_prepare_makes_a_task_that_is_calibrated_counted_and_measurable(network: NetworkSpace) -> None:
    task = network.prepare(Quiet())
    assert task.space.sizes == (3, 3, 3)
    assert task.calibration_errors is not None
    assert (task.calibration_errors[:, 1:] > 0).all()
    teacher, tiny = task.evaluator.measure([(0, 0, 0), (2, 2, 2)])
    assert teacher.divergence == 0.0
    assert tiny.divergence is not None
    assert tiny.divergence > 0
    with torch.no_grad():
        assert task.scale == pytest.approx(float(network.graph.run(network.data.measure.inputs).var()), rel=1e-5)
    assert task.verifier is not None
    assert task.verifier.measure([(2, 2, 2)])[0].divergence != tiny.divergence
    assert task.heldout_loss is not None
    assert task.heldout_loss(task.space.teacher) != task.heldout_loss((2, 2, 2))


def test_a_candidates_cost_is_the_count_of_the_assembled_modules(network: NetworkSpace) -> None:
    costs = network.prepare(Quiet()).costs
    assert costs.by_choice.keys() == network.costs().by_choice.keys()
    for metric, table in network.costs().by_choice.items():
        np.testing.assert_array_equal(table, costs.by_choice[metric])
    whole = sum(p.numel() for step in network.graph.steps for p in step.module.parameters())
    assert costs.of((0, 0, 0))["params"] == whole


def test_the_second_prepare_calibrates_nothing(network: NetworkSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = network.prepare(Quiet())
    monkeypatch.setattr(calibration, "calibrate_block", lambda *_: pytest.fail("calibrated again"))
    again = replace(network, graph=toy_graph()).prepare(Quiet())
    assert again.evaluator.measure([(2, 1, 0)])[0].divergence == first.evaluator.measure([(2, 1, 0)])[0].divergence


def test_the_fingerprint_follows_teacher_library_and_data(network: NetworkSpace, splits: Splits) -> None:
    before = network.fingerprint()
    assert replace(network, graph=toy_graph(), stages=toy_stages()).fingerprint() == before
    changed = toy_graph()
    with torch.no_grad():
        next(changed["a"].module.parameters()).add_(1e-6)
    assert replace(network, graph=changed).fingerprint()["teacher"] != before["teacher"]
    assert replace(network, stages=network.stages[:2]).fingerprint()["library"] != before["library"]
    other = Splits(splits.fit, splits.measure, toy_samples(128, 9, 3000))
    assert replace(network, data=other).fingerprint()["data"] != before["data"]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("divergence", lambda a, b: ((a - b) ** 2).flatten(1).mean(1), lambda a, b: 9 * ((a - b) ** 2).flatten(1).mean(1)),
        ("rules", (Forbid({"a": "half", "b": "half"}),), (Forbid({"a": "half", "b": "tiny"}),)),
        ("extra_costs", {"bytes": lambda block: 4.0 * sum(p.numel() for p in block.parameters())}, {"bytes": lambda block: 1.0}),
        ("evaluation", Settings(numerics=Numerics.parse("bf16")), Settings(numerics=Numerics.parse("bf16,channels_last"))),
    ],
)
def test_what_was_measured_otherwise_is_another_run(network: NetworkSpace, name: str, first: Any, second: Any) -> None:
    prints = [replace(network, **{name: value}).fingerprint() for value in (first, second)]
    assert prints[0] == replace(network, **{name: first}).fingerprint()
    for one, other in (prints, (prints[0], network.fingerprint()), (prints[1], network.fingerprint())):
        assert one != other


def test_a_search_saves_the_winner_and_the_same_call_goes_on_with_it(network: NetworkSpace, tmp_path: Path) -> None:
    result = nas.search(network, 0.05, workdir=tmp_path / "runs", trials=26, optimizer="random")
    winner = result.winners[0]
    assert winner.feasible
    assert winner.trial is not None
    chosen = json.loads((tmp_path / "runs" / Path(result.paths[0.05]).parent.name / "winner" / "chosen.json").read_text())
    assert {**dict.fromkeys("abc", "teacher"), **chosen} == result.study.problem.space.decode(winner.trial.candidate)
    again = nas.search(network, 0.05, workdir=tmp_path / "runs", trials=26, optimizer="random")
    assert again.study.trials == result.study.trials


def test_a_model_for_which_the_disk_has_no_room_is_one_line_and_leaves_nothing(network: NetworkSpace, tmp_path: Path) -> None:
    def large(chosen: Mapping[str, tuple[Choice, nn.Module]], folder: Path) -> None:
        folder.mkdir()
        save_file({"w": torch.zeros(100_000)}, folder / "model.safetensors")  # as diffusers does

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write the model to .*winner: .*File too large.*; nothing else is lost"):
            replace(network, save=large).write_model({}, tmp_path / "winner")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.glob("*winner*")) == []


def test_sets_that_share_a_group_are_refused(splits: Splits) -> None:
    with pytest.raises(InputError, match="sets 'fit' and 'measure' share 64 groups"):
        Splits(splits.fit, splits.fit, splits.verify)


def test_a_stage_that_is_no_step_is_refused(graph: StageGraph, splits: Splits) -> None:
    with pytest.raises(InputError, match="graph has no step 'stemm'; did you mean 'stem'"):
        NetworkSpace("toy", graph, (Stage("stemm", (Choice("teacher"),)),), splits)


def test_levels_that_are_no_input_are_refused_before_anything_is_calibrated(graph: StageGraph, stages: tuple[Stage, ...], splits: Splits) -> None:
    with pytest.raises(InputError, match="levels must name an input of the samples, got 'sigma'; known: x"):
        NetworkSpace("toy", graph, stages, splits, levels="sigma")


def test_a_spec_that_makes_no_key_is_refused(graph: StageGraph, splits: Splits) -> None:
    class Odd:
        spec = {"weights": Path("w.bin")}  # noqa: RUF012

        def build(self, teacher: nn.Module) -> nn.Module:
            return teacher

    with pytest.raises(ContractError, match="block 'b/odd': the spec must be JSON values: Object of type PosixPath"):
        NetworkSpace("toy", graph, (Stage("b", (Choice("teacher"), Choice("odd", Odd()))),), splits)


def test_a_recipe_that_breaks_the_contract_is_named_before_anything_is_calibrated(network: NetworkSpace) -> None:
    class Wide(Narrow):
        def build(self, teacher: nn.Module) -> nn.Module:
            built = super().build(teacher)
            built.layers[-1] = nn.Linear(self.hidden, 5, device=next(teacher.parameters()).device)  # type: ignore[operator]
            return built

    broken = replace(network, stages=(Stage("b", (Choice("teacher"), Choice("wide", Wide(4)))),))
    with pytest.raises(ContractError, match=r"block 'b/wide' must write 'h' as \(1, 8\) like the teacher, wrote \(1, 5\)"):
        broken.prepare(Quiet())


def test_a_cost_that_is_unknown_to_a_table_is_refused_by_name(network: NetworkSpace) -> None:
    with pytest.raises(InputError, match="unknown metric 'flops'"):
        nas.search(network, 0.05, workdir=None, minimize="flops")


def test_losses_are_foreseen_once_and_kept(network: NetworkSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    task = network.prepare(Quiet())
    alone = task.evaluator.measure([(2, 0, 0)])[0].divergence
    assert task.expected_losses is not None
    assert alone is not None
    assert 0.3 < task.expected_losses[0, 2] / alone < 3
    monkeypatch.setattr("nas.spaces.network.expected_losses", None)
    np.testing.assert_array_equal(network.prepare(Quiet()).expected_losses, task.expected_losses)


def test_no_more_blocks_stay_on_the_device_while_losses_are_foreseen_than_while_measuring(network: NetworkSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def foresee(*_: object, **settings: Any) -> None:
        told.update(settings)
        raise NoExpansion("asked for")

    monkeypatch.setattr("nas.spaces.network.expected_losses", foresee)
    replace(network, evaluation=Settings(chunk=16, resident_mb=7)).prepare(Quiet())
    assert told == {"chunk": 16, "budget": 7 << 20}


def test_a_divergence_without_second_derivative_is_noted_and_searched_all_the_same(network: NetworkSpace) -> None:
    task = replace(network, divergence=steps).prepare(Quiet())
    assert task.expected_losses is None
    assert any("cannot be foreseen" in note for note in task.notes)
    assert task.evaluator.measure([(2, 2, 2)])[0].divergence is not None


def steps(teacher: Tensor, candidate: Tensor) -> Tensor:
    return ((teacher - candidate).abs() > 0.1).float().flatten(1).mean(1)
