"""Features on disk, in half precision, and what is done when the disk is small."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.blocks.calibration import CalibrationSettings, Calibrator
from nas.blocks.features import FeatureBank, FeatureBudget, RecomputedFeatures, StageFeatures, collect_features, feature_bytes
from nas.blocks.shards import Shards, variance
from nas.blocks.store import BlockStore
from nas.data import Samples, Splits
from nas.errors import DamagedFile, InputError
from nas.graph import StageGraph, Step
from nas.progress import Quiet
from nas.space import Stage


class Heard(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_rows_come_back_in_half_precision_from_several_files(tmp_path: Path) -> None:
    values = torch.randn(1000, 40, 20, generator=torch.Generator().manual_seed(0)) * 3 + 1
    shards = Shards(tmp_path, "h", shard_mb=1)
    for part in values.split(33):
        shards.append(part)
    shards.close()
    rows = torch.tensor([999, 0, 655, 656, 3])
    assert torch.equal(shards[rows], values[rows].half().float())
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) == pytest.approx(values.numel() * 2, rel=1e-3)
    assert variance(shards) == pytest.approx(float(values.var()), rel=1e-3)
    assert variance(values) == float(values.var())


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.1)


@pytest.mark.parametrize("n", [7, 1000])
def test_a_constant_has_no_variance_wherever_it_is(n: int, tmp_path: Path) -> None:
    samples = Samples({"x": torch.randn(n, 7)}, torch.arange(n))
    graph = StageGraph(("x",), (Step("a", ("x",), ("y",), Constant()),), "y")
    shards = Shards(tmp_path, "y")
    shards.append(torch.full((n, 7), 0.1))
    assert variance(shards.close()) == 0
    assert collect_features(graph, ["a"], samples, Quiet())["a"].output_variances == (0.0,)
    assert RecomputedFeatures(graph, graph["a"], samples).output_variances == (0.0,)
    assert variance(torch.full((n, 7), 0.1) + 1e-5 * torch.randn(n, 7)) == pytest.approx(1e-10, rel=0.4)


def test_numbers_beyond_fp16_are_kept_as_bf16_and_integers_as_they_are(tmp_path: Path) -> None:
    large = Shards(tmp_path, "large")
    large.append(torch.tensor([[1e6], [2.0]]))
    assert torch.equal(large.close()[torch.tensor([0, 1])], torch.tensor([[1e6], [2.0]]).bfloat16().float())
    whole = Shards(tmp_path, "whole")
    whole.append(torch.tensor([[70_000], [3]]))
    assert whole.close()[torch.tensor([0])].tolist() == [[70_000]]


def test_a_lost_file_and_a_folder_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "h")
    shards.append(torch.ones(2, 2))
    shards.close()
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(DamagedFile, match="start the calibration again"):
        shards[torch.tensor([0])]
    nowhere = Shards(tmp_path / "missing", "h")
    nowhere.append(torch.ones(1, 2))
    with pytest.raises(InputError, match="free some disk"):
        nowhere.close()


def test_a_stage_beyond_memory_goes_to_disk_with_its_size_said_before(graph: StageGraph, splits: Splits, tmp_path: Path) -> None:
    heard = Heard()
    bank = FeatureBank(graph, splits.fit, ["a", "b", "c"], FeatureBudget(memory_mb=0, folder=tmp_path))
    found = bank.get("b", heard)
    assert isinstance(found, StageFeatures)
    need = feature_bytes(graph, ["b"], splits.fit, on_disk=True)["b"]
    assert need == feature_bytes(graph, ["b"], splits.fit)["b"] // 2
    assert f"{need / 1000:.4g} kB on disk" in heard.lines[0]
    (folder,) = tmp_path.iterdir()
    assert sum(file.stat().st_size for file in folder.iterdir()) < need + 1000
    bank.get("c", heard)
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_on_a_small_disk_the_teacher_recomputes_what_is_asked(graph: StageGraph, splits: Splits, tmp_path: Path) -> None:
    heard = Heard()
    found = FeatureBank(graph, splits.fit, ["a", "b", "c"], FeatureBudget(memory_mb=0, disk_mb=1e-6, folder=tmp_path)).get("b", heard)
    assert isinstance(found, RecomputedFeatures)
    assert "more than the 1B allowed" in heard.lines[0]
    assert not list(tmp_path.iterdir())
    kept = collect_features(graph, ["b"], splits.fit, Quiet())["b"]
    rows = torch.tensor([5, 0, 127])
    for a, b in zip((*found.batch(rows)[0], *found.batch(rows)[1]), (*kept.batch(rows)[0], *kept.batch(rows)[1]), strict=True):
        torch.testing.assert_close(a, b)
    assert found.output_variances == pytest.approx(kept.output_variances, rel=1e-4)


@pytest.mark.parametrize("disk_mb", [None, 1e-6])
def test_blocks_calibrate_alike_wherever_their_features_are(
    graph: StageGraph, splits: Splits, stages: tuple[Stage, ...], tmp_path: Path, disk_mb: float | None
) -> None:
    def errors(folder: Path, budget: FeatureBudget | None) -> dict[tuple[str, str], float]:
        calibrator = Calibrator(graph, "teacher", splits.fit, BlockStore(folder), CalibrationSettings(max_steps=50), budget)
        return {name: block.record.error or 0.0 for name, block in calibrator.run(stages, Quiet()).items()}

    inside = errors(tmp_path / "inside", None)
    outside = errors(tmp_path / "outside", FeatureBudget(memory_mb=0, disk_mb=disk_mb, folder=tmp_path / "features"))
    assert outside == pytest.approx(inside, rel=0.05)


def test_room_on_disk_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    budget = FeatureBudget(folder=tmp_path)
    monkeypatch.setenv("NAS_MAX_DISK", "20G")
    assert budget.disk_limit == 20e9
    monkeypatch.setenv("NAS_MAX_DISK", "lots")
    with pytest.raises(InputError, match="such as 20G or 50%"):
        _ = budget.disk_limit
    assert FeatureBudget(disk_mb=3, folder=tmp_path).disk_limit == 3e6


def test_rows_of_another_process_are_opened_again(tmp_path: Path) -> None:
    values = torch.randn(700, 400)
    shards = Shards(tmp_path, "h", shard_mb=1)
    shards.append(values)
    shards.close()
    rows = torch.tensor([0, 699, 350])
    assert torch.equal(Shards.reopen(tmp_path, "h", torch.float32)[rows], shards[rows])
    with pytest.raises(DamagedFile, match="holds no features 'x'"):
        Shards.reopen(tmp_path, "x", torch.float32)
