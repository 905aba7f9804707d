"""A function of tensors that is recorded once as a CUDA graph and replayed: a small network's step is launch overhead otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 5  # calls that run as written, on the stream the recording will use


class Graphed:
    """Calls `function`, whose work must be the same for every input of the first one's shapes; after `WARM_UP` calls, replays it.

    What the function leaves in memory (gradients, say) stays at the same place from then on. On a CPU it is the function itself.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not inputs[0].is_cuda:
            return self.function(*inputs)
        if self._graph is None and self._calls < WARM_UP:
            return self._warm(*inputs)
        if self._graph is None:
            self._record(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        assert self._graph is not None
        self._graph.replay()
        return self._output

    def _warm(self, *inputs: Tensor) -> Tensor:
        self._calls += 1
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def _record(self, *inputs: Tensor) -> None:
        self._inputs = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self.function(*self._inputs)
        self._graph = graph
