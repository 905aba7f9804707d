"""A block of one's own in the reference space: saved and loaded to the bit, though no CompactUNet can hold it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nas.blocks.recipe import BlockRecipe
from nas.blocks.saved import load_graph
from nas.space import Choice
from nas.spaces.tocsr.space import tocsr_unet
from nas.spaces.tocsr.teacher import load_teacher
from nas.spaces.tocsr.unet import unet_graph


class Own(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor, *rest: Tensor) -> Tensor:
        result: Tensor = h + self.body(h)
        return result


@dataclass(frozen=True)
class OwnRecipe(BlockRecipe):
    recipe: ClassVar[str] = "own_block_for_tests"

    def build(self, teacher: nn.Module) -> nn.Module:
        return Own(len(next(p for p in teacher.parameters() if p.ndim == 4)))


def test_a_winner_with_a_block_of_ones_own_is_saved_as_a_graph_and_loaded_to_the_bit(home: Path, tmp_path: Path) -> None:
    space, recipe = tocsr_unet(), OwnRecipe()
    torch.manual_seed(0)
    block = recipe.build(space.graph["mid"].module).eval()
    space.write_model({"mid": (Choice("own", recipe), block)}, tmp_path / "model")
    loaded = load_graph(tmp_path / "model", unet_graph(load_teacher("embedded").unet), [recipe])
    inputs = {name: value[:2] for name, value in space.data.verify.inputs.items()}
    with torch.no_grad():
        assert torch.equal(loaded.run(inputs), space.graph.run(inputs, {"mid": block}))
