"""Memory: weights of a module, an additive cost; and the most that intermediate values take at once, which is not additive."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def weight_mb(module: nn.Module) -> float:
    """Megabytes (1e6) of all parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes of the tensors made during a call that are alive at once, at most; workspaces inside an operator do not show.

    The call may run on the meta device.
    """
    with _Alive() as alive:
        call()
    return int(alive.peak)


def peak_activation_mb(call: Callable[[], Any]) -> float:
    """`peak_bytes` in megabytes (1e6) without gradients."""
    with torch.no_grad():
        return peak_bytes(call) / 1e6


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no room for a tensor, on whichever device."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in ("not enough memory", "_ALLOC_FAILED"))


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that some tensor still holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor, known)
        return result

    def _hold(self, tensor: Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in known and key not in self._holders:
            return  # a view of what was there before the call
        if key not in self._holders:
            self._holders[key] = 0
            self._now += nbytes
            self.peak = max(self.peak, self._now)
        self._holders[key] += 1
        weakref.finalize(tensor, self._release, key, nbytes)

    def _release(self, key: int, nbytes: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self._now -= nbytes
