import pytest
import torch
from torch import Tensor, nn

from nas.blocks.contract import check_block, check_recipes, without_weights
from nas.errors import ContractError, InputError
from nas.graph import StageGraph, Step
from nas.space import Choice, Stage


class Copies(nn.Module):
    """`x -> n` linear images of it."""

    def __init__(self, width: int, n: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.n = n

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x),) * self.n


@pytest.fixture
def step() -> Step:
    return Step("up1", ("x",), ("h", "skip"), Copies(6))


def test_block_that_writes_what_the_teacher_writes_passes_untouched(step: Step) -> None:
    block = Copies(6)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    check_block(step, block, (torch.zeros(3, 4),))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_wrong_shape_names_stage_block_expected_and_got(step: Step) -> None:
    with pytest.raises(ContractError, match=r"^block 'up1/narrow' must write 'h' as \(3, 6\) like the teacher, wrote \(3, 5\)$"):
        check_block(step, Copies(5), (torch.zeros(3, 4),), "narrow")


def test_wrong_number_of_values_is_named(step: Step) -> None:
    with pytest.raises(ContractError, match=r"block 'up1/many' must write 2 values \('h', 'skip'\) like the teacher: .* wrote 3 values"):
        check_block(step, Copies(6, 3), (torch.zeros(3, 4),), "many")


def test_wrong_type_is_named(step: Step) -> None:
    class Half(Copies):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(value.half() for value in super().forward(x))

    with pytest.raises(ContractError, match=r"must write 'h' as torch\.float32 like the teacher, wrote torch\.float16"):
        check_block(step, Half(6), (torch.zeros(3, 4),))


def test_block_that_cannot_read_the_stages_values_is_named_with_their_shapes(step: Step) -> None:
    with pytest.raises(ContractError, match=r"block 'up1/other' cannot read 'x' \(3, 4\): "):
        check_block(step, nn.Linear(9, 6), (torch.zeros(3, 4),), "other")


def test_recipes_are_checked_on_what_their_stage_really_reads(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    check_recipes(graph, [(stage, choice) for stage in stages for choice in stage.choices[1:]], {"x": torch.zeros(2, 4)})


def test_recipe_that_breaks_the_contract_is_named(graph: StageGraph) -> None:
    class Shorter:
        spec: dict[str, int] = {}  # noqa: RUF012

        def build(self, teacher: nn.Module) -> nn.Module:
            del teacher
            return nn.Linear(8, 8)

    choice = Choice("shorter", Shorter())
    with pytest.raises(ContractError, match="block 'a/shorter' must write 2 values"):
        check_recipes(graph, [(Stage("a", (Choice("teacher"), choice)), choice)], {"x": torch.zeros(2, 4)})


def test_the_teachers_choice_has_no_recipe_to_check(graph: StageGraph, stages: tuple[Stage, ...]) -> None:
    with pytest.raises(InputError, match="choice 'a/teacher' has no recipe"):
        check_recipes(graph, [(stages[0], stages[0].choices[0])], {"x": torch.zeros(2, 4)})


def test_copy_without_weights_keeps_sharing_and_flags() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.add_module("again", module[0])
    module[0].weight.requires_grad_(False)
    twin = without_weights(module)
    assert all(tensor.is_meta for tensor in (*twin.parameters(), *twin.buffers()))
    assert twin.again is twin[0]
    assert not twin[0].weight.requires_grad
    assert not module[0].weight.is_meta
