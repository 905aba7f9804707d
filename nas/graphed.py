"""A function of tensors on CUDA, recorded once as a graph and replayed: the steps of a small network take longer to launch than to compute."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from weakref import WeakSet

import torch
from torch import Tensor

WARM_UP = 3  # calls as written, on the stream that is recorded afterwards


class Graphed:
    """Calls `function`, whose work must be the same whatever its inputs hold, always with inputs of the same shapes; after `WARM_UP` calls replays it.

    What the function leaves in memory (gradients, say) stays at the same place from then on. A function that waits for the device, or cannot be recorded
    for another reason, is called as it is, and so is every function elsewhere than on CUDA. Recordings share their memory: replay them one after another.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._calls = 0
        self._plain = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)

    @property
    def recorded(self) -> bool:
        """Whether further calls are replays."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function returns for the inputs, of which the first says where is computed."""
        if self._graph is None and inputs[0].is_cuda and not self._plain:
            if self._calls < WARM_UP:
                return self._warm(inputs)
            self._record(inputs)
        if self._graph is None:
            return self._function(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _warm(self, inputs: tuple[Tensor, ...]) -> Tensor:
        self._calls += 1
        with _aside(inputs[0].device):
            if self._calls < WARM_UP:
                return self._function(*inputs)
            with _waits() as seen:
                output = self._function(*inputs)
            self._plain = bool(seen)
            return output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        generator = torch.cuda.default_generators[inputs[0].device.index or 0]
        before = generator.clone_state()
        held = tuple(value.clone() for value in inputs)
        graph = torch.cuda.CUDAGraph()
        pools = [one._graph.pool() for one in _recordings if one._graph is not None]
        with _aside(inputs[0].device):
            try:
                graph.capture_begin(pools[0] if pools else None, capture_error_mode="thread_local")
                try:
                    output = self._function(*held)
                finally:
                    graph.capture_end()
            except RuntimeError:
                self._plain = True
                generator.graphsafe_set_state(before)  # the present one takes itself for one that is being recorded
                return
        self._graph, self._inputs, self._output = graph, held, output
        _recordings.add(self)


_recordings: WeakSet[Graphed] = WeakSet()
"""Whose memory a further recording shares."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On a stream of our own, between what was queued before and what will be afterwards."""
    stream, present = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        yield
    present.wait_stream(stream)


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Collects what made the host wait for the device."""
    seen: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    seen += [str(one.message) for one in caught if "synchronizing CUDA operation" in str(one.message)]
