"""What a training stands on: which of several processes it is, its device, memory and disk."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from nas.amounts import amount
from nas.errors import InputError


def check_memory(parameters: Sequence[Tensor], device: torch.device) -> None:
    """Raises unless what training keeps beside the weights fits: gradients, average, two moments."""
    count = sum(parameter.numel() for parameter in parameters)
    need, free = 4 * 4 * count, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need > free:
        raise InputError(
            f"training {amount(count)} parameters needs {amount(need)}B of memory on '{device}' beside weights and activations, {amount(free)}B are free; "
            "use another device"
        )


def check_disk(parameters: Sequence[Tensor], checkpoint: Path) -> None:
    """Raises unless two checkpoints (weights, average, two moments) fit, or one beside the one that is there."""
    need = (1 if checkpoint.exists() else 2) * 4 * 4 * sum(parameter.numel() for parameter in parameters)
    place = next(path for path in checkpoint.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise InputError(f"training needs {amount(need)}B on disk for its checkpoints, '{place}' has {amount(free)}B free; free some, or work elsewhere")


def leads() -> bool:
    """Whether this process is the one that reports, of those that `accelerate launch` started; True where it started none."""
    return os.environ.get("RANK", "0") == "0"


def own_device(device: str) -> str:
    """The device of this process: "cuda" is the GPU that `accelerate launch` gives it, the first where it started none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
