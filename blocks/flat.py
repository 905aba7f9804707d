"""Parameters side by side in one vector, so that an optimizer has one tensor to work on instead of many small ones."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

_ALIGNED = 16  # numbers; each parameter starts on a boundary that vector instructions like


class FlatParameters:
    """The parameters' values and gradients as views of one vector for each device and type, until `release`.

    Attributes:
        vectors: what to hand to an optimizer; their gradients are the parameters'.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        kinds = dict.fromkeys((p.device, p.dtype) for p in self._parameters)
        self.vectors = [self._flattened([p for p in self._parameters if (p.device, p.dtype) == kind]) for kind in kinds]

    def zero_grad(self) -> None:
        """All gradients to zero, in place."""
        for vector in self.vectors:
            assert vector.grad is not None
            vector.grad.zero_()

    def norm(self) -> Tensor:
        """The norm of all gradients together, `()`."""
        norms: list[Tensor] = [torch.linalg.vector_norm(vector.grad) for vector in self.vectors if vector.grad is not None]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([one.to(norms[0]) for one in norms]))

    def release(self) -> None:
        """Gives every parameter memory of its own again, and no gradient."""
        for parameter in self._parameters:
            parameter.data, parameter.grad = parameter.data.clone(), None

    @staticmethod
    def _flattened(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
        sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in parameters]
        vector = nn.Parameter(torch.zeros(sum(sizes), device=parameters[0].device, dtype=parameters[0].dtype))
        vector.grad = torch.zeros_like(vector)
        for p, values, gradient in zip(parameters, torch.split(vector.data, sizes), torch.split(vector.grad, sizes), strict=True):
            values[: p.numel()].copy_(p.data.flatten())
            p.data, p.grad = _shaped(values, p), _shaped(gradient, p)
        return vector


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    return part[: like.numel()].view(like.shape)


class FlatAdam:
    """Adam on flat parameters, gradients scaled down together to a norm of at most `most` before each step.

    The functional form: what `torch.optim.Adam` does around it takes longer than the arithmetic of a small block.
    """

    def __init__(self, flat: FlatParameters, most: float) -> None:
        self._flat, self._most = flat, most
        self._means, self._squares = ([torch.zeros_like(vector) for vector in flat.vectors] for _ in range(2))
        self._steps = [torch.zeros((), device=vector.device) for vector in flat.vectors]

    def rate(self, lr: float) -> Tensor:
        """A learning rate as `step` takes it, `()`: on CUDA where the parameters are, so that nobody waits for it."""
        device = self._steps[0].device if self._steps else torch.device("cpu")
        return torch.full((), lr, device=device, dtype=torch.float32 if device.type == "cuda" else torch.float64)

    @torch.no_grad()
    def step(self, lr: Tensor) -> Tensor:
        """One step at a `rate`; the gradients' norm before it, `()`."""
        norm = self._flat.norm()
        gradients = [vector.grad for vector in self._flat.vectors if vector.grad is not None]
        adam(
            list(self._flat.vectors), gradients, self._means, self._squares, [], self._steps, fused=True, grad_scale=(norm / self._most).clamp(min=1.0).float(),
            amsgrad=False, beta1=0.9, beta2=0.999, lr=lr, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
        return norm

    def state(self) -> dict[str, list[Tensor]]:
        """What further steps depend on."""
        return {"means": self._means, "squares": self._squares, "steps": self._steps}

    def restore(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Goes on from where `state` was taken."""
        for name, own in self.state().items():
            for mine, value in zip(own, state[name], strict=True):
                mine.copy_(value)
