"""Where tensors are, how they get elsewhere without anybody waiting, and how CUDA computes meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def moved(value: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. To CUDA it goes through pinned memory: what is queued there afterwards waits for it, the host does not."""
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


@contextmanager
def repeatable(device: torch.device | str, *, tf32: bool | None = None) -> Iterator[None]:
    """On CUDA, convolutions take algorithms that repeat to the bit; nothing changes elsewhere, and nothing afterwards.

    Args:
        device: where is computed.
        tf32: whether fp32 products may be rounded to 10 bits; None leaves it as torch is set (by default convolutions do, matrix products do not).
    """
    if torch.device(device).type != "cuda":
        yield
        return
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, cublas.allow_tf32
    cudnn.deterministic = True
    if tf32 is not None:
        cudnn.allow_tf32 = cublas.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32, cublas.allow_tf32 = before
