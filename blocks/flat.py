"""Parameters side by side in one vector, so that an optimizer has one tensor to work on instead of many small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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

    def clip(self, most: float) -> Tensor:
        """Scales all gradients down together to a norm of at most `most`: `nn.utils.clip_grad_norm_` in four operations. The norm before, `()`."""
        gradients = [vector.grad for vector in self.vectors if vector.grad is not None]
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([one.to(norms[0]) for one in norms]))
        scale = (most / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient))
        return norm

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
