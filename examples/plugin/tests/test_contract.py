import torch
from nas_plugin_example.block import Scale
from nas_plugin_example.optimizer import CheapestFirst
from nas_plugin_example.space import Layer

from nas.blocks.suite import check_recipe
from nas.optimizers.contract import check_optimizer


def test_the_block_keeps_the_contract() -> None:
    check_recipe(Scale(16), Layer(), torch.randn(4, 16))


def test_the_optimizer_keeps_the_contract() -> None:
    check_optimizer(CheapestFirst)
