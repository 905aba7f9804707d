"""Distances of two outputs, sample by sample; any function `(teacher, candidate[, target]) -> (B,)` may stand beside them."""

import torch
from torch import Tensor
from torch.nn import functional

from nas.evaluators.divergence import mean_squared_error
from nas.evaluators.divergence_call import of_classes

__all__ = ["cosine_distance", "disagreement", "kl_divergence", "lost_accuracy", "mean_squared_error"]


@of_classes
def kl_divergence(teacher: Tensor, candidate: Tensor) -> Tensor:
    """KL(teacher || candidate) in nats of the distributions that logits `(B, ..., classes)` give, mean over positions, `(B,)`."""
    log_p, log_q = _wide(teacher).log_softmax(-1), _wide(candidate).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).reshape(len(teacher), -1).mean(1)


def cosine_distance(teacher: Tensor, candidate: Tensor) -> Tensor:
    """One minus the cosine of the flattened outputs, `(B,)` in [0, 2]."""
    return 1 - functional.cosine_similarity(_wide(teacher).flatten(1), _wide(candidate).flatten(1), dim=1)


def _wide(output: Tensor) -> Tensor:
    """In single precision at least."""
    return output if output.dtype == torch.float64 else output.float()


@of_classes
def disagreement(teacher: Tensor, candidate: Tensor) -> Tensor:
    """Share of positions at which the two pick another class, `(B,)` in [0, 1]."""
    return (teacher.argmax(-1) != candidate.argmax(-1)).float().reshape(len(teacher), -1).mean(1)


@of_classes
def lost_accuracy(teacher: Tensor, candidate: Tensor, target: Tensor) -> Tensor:
    """1 where the teacher's class is the target `(B,)` and the candidate's is not, else 0: an upper bound of the accuracy lost."""
    return ((teacher.argmax(-1) == target) & (candidate.argmax(-1) != target)).float()
