"""Expected losses against what single swaps really cost."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.cut import cut
from nas.data import Samples
from nas.evaluators import gauss_newton
from nas.evaluators.divergence import Divergence, mean_squared_error
from nas.evaluators.divergences import cosine_distance, disagreement, kl_divergence
from nas.evaluators.gauss_newton import NoExpansion, expected_losses
from nas.graph import StageGraph, Step
from nas.progress import Quiet


class Plus(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.head(a + b)
        return out


def branches(n_outputs: int, seed: int = 0) -> StageGraph:
    """Two linear stages side by side, added and mapped."""
    torch.manual_seed(seed)
    steps = (
        Step("a", ("x",), ("u",), nn.Linear(6, 5)),
        Step("b", ("x",), ("v",), nn.Linear(6, 5)),
        Step("head", ("u", "v"), ("y",), Plus(nn.Linear(5, n_outputs))),
    )
    return StageGraph(("x",), steps, "y")


def surrogates(graph: StageGraph, spread: float, seed: int = 1) -> dict[str, tuple[nn.Module, ...]]:
    """Two blocks a stage, whose weights differ from the teacher's."""
    torch.manual_seed(seed)
    blocks: dict[str, tuple[nn.Module, ...]] = {}
    for name in ("a", "b"):
        teacher = graph[name].module
        made = [nn.Linear(6, 5) for _ in range(2)]
        for block in made:
            for own, given in zip(block.parameters(), teacher.parameters(), strict=True):
                own.data = given.data + spread * torch.randn_like(given)
        blocks[name] = tuple(made)
    return blocks


def samples(n: int = 40) -> Samples:
    return Samples({"x": torch.randn(n, 6, generator=torch.Generator().manual_seed(2))}, torch.arange(n))


def measured(graph: StageGraph, blocks: dict[str, tuple[nn.Module, ...]], divergence: Divergence = mean_squared_error) -> np.ndarray:
    """Of each block alone, `(2, 3)`."""
    x = samples().inputs
    with torch.no_grad():
        teacher = graph.run(x)
        rows = [[0.0, *(float(divergence(teacher, graph.run(x, {name: block})).mean()) for block in row)] for name, row in blocks.items()]
    return np.array(rows)


def test_they_are_exact_for_linear_stages_and_one_output() -> None:
    graph = branches(1)
    blocks = surrogates(graph, 0.3)
    found = expected_losses(graph, blocks, mean_squared_error, samples(), Quiet(), directions=1)
    np.testing.assert_allclose(found, measured(graph, blocks), rtol=1e-4)


@pytest.mark.parametrize("divergence", [mean_squared_error, kl_divergence, cosine_distance])
def test_small_errors_cost_what_they_say(divergence: Divergence) -> None:
    graph = branches(4)
    blocks = surrogates(graph, 0.02)
    found = expected_losses(graph, blocks, divergence, samples(), Quiet(), directions=200)
    np.testing.assert_allclose(found, measured(graph, blocks, divergence), rtol=0.15)


def test_nearly_certain_classes_are_told_apart_from_noise() -> None:
    graph = branches(4)
    graph["head"].module.head.weight.data *= 40  # type: ignore[union-attr, operator]
    blocks = surrogates(graph, 0.002)
    with torch.no_grad():
        assert graph.run(samples().inputs).softmax(1).amax(1).median() > 0.99
    found = expected_losses(graph, blocks, kl_divergence, samples(), Quiet(), directions=8)
    told = ~np.isnan(found[:, 1:])
    assert told.sum() >= 2
    np.testing.assert_allclose(found[:, 1:][told], measured(graph, blocks, kl_divergence)[:, 1:][told], rtol=0.7)


def test_improbable_classes_drown_nothing_in_noise() -> None:
    graph = branches(3000)
    torch.nn.init.normal_(graph["head"].module.head.weight, 0, 3)  # type: ignore[union-attr, arg-type]
    blocks = surrogates(graph, 0.005)
    found = expected_losses(graph, blocks, kl_divergence, samples(), Quiet(), directions=8)
    np.testing.assert_allclose(found, measured(graph, blocks, kl_divergence), rtol=0.35)


def weighted(teacher: Tensor, candidate: Tensor) -> Tensor:
    return ((teacher - candidate) ** 2 * torch.tensor([1.0, 1e-3, 0.0, 5.0])).sum(1)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_outputs_may_count_differently_or_not_at_all(kind: torch.dtype) -> None:
    graph, given = branches(4), Samples({"x": samples().inputs["x"].to(kind)}, torch.arange(40))
    blocks = surrogates(graph, 0.3)
    expected = expected_losses(graph, blocks, weighted, samples(), Quiet(), directions=50)
    np.testing.assert_allclose(expected, measured(graph, blocks, weighted), rtol=0.2)
    for module in (*(step.module for step in graph.steps), *(block for row in blocks.values() for block in row)):
        module.to(kind)
    np.testing.assert_allclose(expected_losses(graph, blocks, weighted, given, Quiet(), directions=50), expected, rtol=0.1)


def test_the_number_of_samples_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = branches(4)
    blocks = surrogates(graph, 0.3)
    whole, parts = (expected_losses(graph, blocks, mean_squared_error, samples(), Quiet(), chunk=chunk) for chunk in (40, 7))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-9)
    whole, parts = (expected_losses(graph, blocks, kl_divergence, samples(), Quiet(), chunk=chunk) for chunk in (40, 7))
    np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-7)
    whole = expected_losses(graph, blocks, mean_squared_error, samples(), Quiet())
    monkeypatch.setattr(gauss_newton, "ROOM", 1)
    np.testing.assert_allclose(expected_losses(graph, blocks, mean_squared_error, samples(), Quiet()), whole, rtol=1e-4, atol=1e-9)


class Inner(nn.Module):
    """Called with a keyword, returns a dictionary."""

    def __init__(self, weight: nn.Linear) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor, *, scale: float) -> dict[str, Tensor]:
        return {"value": self.weight(x) * scale}


class Model(nn.Module):
    """Writes over what its stages return."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.low = Inner(nn.Linear(6, 6))
        self.high = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, words: Tensor) -> Tensor:
        x = self.low(self.words(words), scale=2.0)["value"]
        x.clamp_(min=0)
        x = self.high(x)
        x += 1
        out: Tensor = self.head(x)
        return out


def test_a_cut_model_of_whole_numbers_that_writes_in_place_is_expanded() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    words = Samples({"words": torch.randint(0, 7, (30,), generator=torch.Generator().manual_seed(1))}, torch.arange(30))
    graph = cut(model, ["low", "high"], words)
    low, high = nn.Linear(6, 6), nn.Linear(6, 6)
    low.weight.data, low.bias.data = model.low.weight.weight * 1.001, model.low.weight.bias * 1.001
    high.weight.data, high.bias.data = model.high.weight * 0.9, model.high.bias * 0.9
    blocks: dict[str, tuple[nn.Module, ...]] = {"low": (Inner(low),), "high": (high,)}
    found = expected_losses(graph, blocks, mean_squared_error, words, Quiet(), directions=1)
    with torch.no_grad():
        teacher = graph.run(words.inputs)
        alone = [float(mean_squared_error(teacher, graph.run(words.inputs, {name: blocks[name][0]})).mean()) for name in ("low", "high")]
    assert found[:, 1].tolist() == pytest.approx(alone, rel=0.02)
    assert all(p.requires_grad for p in model.parameters())


class Halves(nn.Module):
    """Maps half of what it reads, over which it may write."""

    def __init__(self, weight: nn.Linear, in_place: bool) -> None:
        super().__init__()
        self.weight, self.in_place = weight, in_place

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.weight(x.mul_(0.5) if self.in_place else x * 0.5)
        return out


def test_blocks_that_write_over_what_they_read_change_nothing_else() -> None:
    graph, given = branches(1), samples()
    mapped = surrogates(graph, 0.3)
    plain, written_over = (
        expected_losses(graph, {name: (Halves(own[0], in_place), own[1]) for name, own in mapped.items()}, mean_squared_error, given, Quiet())  # type: ignore[arg-type]
        for in_place in (False, True)
    )
    np.testing.assert_array_equal(written_over, plain)
    assert torch.equal(given.inputs["x"], samples().inputs["x"])


def test_blocks_read_what_the_teachers_read_before_writing_over_it() -> None:
    torch.manual_seed(0)
    steps = (Step("a", ("x",), ("u",), nn.Linear(6, 5)), Step("b", ("u",), ("v",), nn.ReLU(inplace=True)), Step("head", ("v",), ("y",), nn.Linear(5, 1)))
    graph = StageGraph(("x",), steps, "y")
    blocks: dict[str, tuple[nn.Module, ...]] = {"b": (nn.Identity(),)}
    found = expected_losses(graph, blocks, mean_squared_error, samples(), Quiet())
    np.testing.assert_allclose(found, measured(graph, blocks), rtol=1e-4)


def test_a_stage_without_effect_costs_as_good_as_nothing() -> None:
    graph = branches(2)
    torch.nn.init.zeros_(graph["head"].module.head.weight)  # type: ignore[union-attr, arg-type]
    graph = StageGraph(("x",), (*graph.steps[:2], Step("head", ("u",), ("y",), nn.Linear(5, 2))), "y")
    found = expected_losses(graph, surrogates(graph, 0.3), mean_squared_error, samples(), Quiet())
    assert 0 < found[1, 1] < 0.01 * found[0, 1]


class Twice(nn.Module):
    """A stage after the other, of which the first is run without gradients."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.low, self.high = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        with {"no_grad": torch.no_grad, "inference": torch.inference_mode, "detach": torch.enable_grad}[self.how]():
            x = self.low(x)
        out: Tensor = self.high(x.detach().clone())
        return out


@pytest.mark.parametrize("how", ["no_grad", "inference", "detach"])
def test_a_stage_that_gradients_do_not_reach_is_told(how: str) -> None:
    torch.manual_seed(0)
    graph = cut(Twice(how).eval(), ["low", "high"], samples())
    with pytest.raises(NoExpansion, match="no gradient reaches stage 'low'"):
        expected_losses(graph, {"low": (nn.Linear(6, 6),), "high": (nn.Linear(6, 2),)}, mean_squared_error, samples(), Quiet())


class Ungraded(nn.Module):
    """A model that runs without gradients as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.low(x)
        return out


def test_a_model_that_runs_without_gradients_is_told() -> None:
    with pytest.raises(NoExpansion, match="the model runs without gradients"):
        expected_losses(cut(Ungraded().eval(), ["low"], samples()), {"low": (nn.Linear(6, 2),)}, mean_squared_error, samples(), Quiet())


class OneNumber(nn.Module):
    """Writes one number a sample, without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.weight(x).squeeze(1)
        return out


def squared(teacher: Tensor, candidate: Tensor) -> Tensor:
    return (teacher - candidate) ** 2


def test_stages_and_outputs_of_one_number_a_sample_are_foreseen() -> None:
    torch.manual_seed(0)
    graph = StageGraph(("x",), (Step("a", ("x",), ("u",), OneNumber()), Step("b", ("u",), ("y",), nn.Identity())), "y")
    blocks: dict[str, tuple[nn.Module, ...]] = {"a": (OneNumber(),)}
    np.testing.assert_allclose(expected_losses(graph, blocks, squared, samples(), Quiet()), measured(graph, blocks, squared), rtol=1e-4)


def refuses(teacher: Tensor, candidate: Tensor) -> Tensor:
    return torch.from_numpy(((teacher - candidate).numpy() ** 2).mean(1))


def absolute(teacher: Tensor, candidate: Tensor) -> Tensor:
    return (teacher - candidate).abs().mean(1)


@pytest.mark.parametrize("divergence", [disagreement, refuses, absolute])
def test_a_divergence_that_cannot_be_differentiated_twice_is_told(divergence: Divergence) -> None:
    graph = branches(4)
    with pytest.raises(NoExpansion):
        expected_losses(graph, surrogates(graph, 0.3), divergence, samples(), Quiet())


def test_gradients_are_asked_of_nothing_afterwards() -> None:
    graph = branches(2)
    blocks = surrogates(graph, 0.3)
    expected_losses(graph, blocks, mean_squared_error, samples(), Quiet())
    assert all(p.grad is None for step in graph.steps for p in step.module.parameters())
    assert all(p.grad is None for row in blocks.values() for block in row for p in block.parameters())


def test_where_a_stage_has_fewer_choices_nothing_is_expected() -> None:
    graph = branches(2)
    blocks = surrogates(graph, 0.3)
    found = expected_losses(graph, {"a": blocks["a"], "b": blocks["b"][:1]}, mean_squared_error, samples(), Quiet())
    assert np.isnan(found).tolist() == [[False] * 3, [False, False, True]]
