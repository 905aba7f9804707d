"""Modules as they are called: on the device, in the numerics asked for; those unused for longest leave it when a budget of memory is reached."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nas.devices import moved


@dataclass(frozen=True, slots=True)
class _Held:
    given: nn.Module
    called: nn.Module
    nbytes: int


class ResidentModules:
    """What is called in place of modules that may lie elsewhere; the modules given are never changed.

    Args:
        device: where is computed; None for modules that stay where they are.
        adapt: what a module becomes once it is there, such as a compiled one.
        budget: bytes of copies that stay on the device; the modules of one call stay together even if they take more.
    """

    def __init__(self, device: torch.device | None, adapt: Callable[[nn.Module], nn.Module] = lambda module: module, budget: float = float("inf")) -> None:
        self._device, self._adapt, self._budget = device, adapt, budget
        self._held: OrderedDict[int, _Held] = OrderedDict()  # by the id of the module given, least recently used first
        self.nbytes = 0

    def fetch(self, modules: Sequence[nn.Module]) -> list[nn.Module]:
        """What to call in place of each; nobody waits for what is copied."""
        called = [self._one(module) for module in modules]
        if self.nbytes > self._budget:
            self._shrink({id(module) for module in modules})
        return called

    def clear(self) -> None:
        """Lets go of everything."""
        self._held.clear()
        self.nbytes = 0

    def _one(self, module: nn.Module) -> nn.Module:
        held = self._held.get(id(module))
        if held is None:
            here = self._on_device(module)
            called = self._adapt(here)
            held = _Held(module, called, 0 if called is module else _own_bytes(called, module))
            self._held[id(module)] = held
            self.nbytes += held.nbytes
        else:
            self._held.move_to_end(id(module))
        return held.called

    def _shrink(self, needed: set[int]) -> None:
        """Lets go of copies, those unused for longest first, down to the budget or to what is needed now."""
        for key in [key for key, held in self._held.items() if held.nbytes and key not in needed]:
            if self.nbytes <= self._budget:
                return
            self.nbytes -= self._held.pop(key).nbytes

    def _on_device(self, module: nn.Module) -> nn.Module:
        """The module itself if it is there, else a copy whose weights are on their way."""
        tensors = [*module.parameters(), *module.buffers()]
        if self._device is None or all(_same(tensor.device, self._device) for tensor in tensors):
            return module
        memo: dict[int, object] = {id(buffer): moved(buffer, self._device) for buffer in module.buffers()}
        memo |= {id(parameter): nn.Parameter(moved(parameter.detach(), self._device), requires_grad=False) for parameter in module.parameters()}
        return copy.deepcopy(module, memo)


def _same(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (None in (one.index, other.index) or one.index == other.index)


def _own_bytes(called: nn.Module, given: nn.Module) -> int:
    """Bytes of the weights that the copy does not share with the module it stands for."""
    theirs = {tensor.data_ptr() for tensor in (*given.parameters(), *given.buffers())}
    own = {tensor.data_ptr(): tensor.nbytes for tensor in (*called.parameters(), *called.buffers())}
    return sum(nbytes for place, nbytes in own.items() if place not in theirs)
