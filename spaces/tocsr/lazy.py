"""One stage of a saved U-Net, read from its checkpoint without the rest: calibrating a stage needs that stage and its features alone."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nas.errors import DamagedFile, InputError, NasError, did_you_mean
from nas.files import inside, read_json
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.stages import Stage
from nas.spaces.tocsr.unet import check_config, check_sizes, stages_of

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


def load_stage(folder: Path, name: str) -> Stage:
    """The stage `name` (`down0`, `mid`, `up3`, ...) of the U-Net in a diffusers folder, in the checkpoint's own precision, memory-mapped.

    Raises:
        InputError: the network has no such stage.
        DamagedFile: the checkpoint lacks one of its tensors or cannot be read.
    """
    stages = _stages(folder)
    if name not in stages:
        raise InputError(f"the U-Net in '{folder}' has no stage '{name}'{did_you_mean(name, stages)}")
    prefix = "mid_block." if name == "mid" else f"{name[:-1]}_blocks.{name[-1]}."
    stage = stages[name]
    try:
        found = {key.removeprefix(prefix): value for key, value in _tensors(folder, prefix).items()}
        stage.load_state_dict(found, assign=True)
    except (RuntimeError, SafetensorError, OSError, json.JSONDecodeError) as error:
        raise DamagedFile(f"stage '{name}' cannot be read from '{folder}': {str(error).splitlines()[0]}; save the model again") from error
    return stage


def _stages(folder: Path) -> dict[str, Stage]:
    """The stages that the config describes, without weights."""
    config = read_json(folder / "config.json", dict)
    check_config(config)
    check_sizes(config)
    try:
        with torch.device("meta"):
            return stages_of(CompactUNet.from_config(config))
    except NasError:
        raise
    except Exception as error:  # diffusers builds whatever a config says: a wrong one fails anywhere in it
        raise DamagedFile(f"config of '{folder}' describes no network: {(str(error).splitlines() or [''])[0][:200]}; save the model again") from error


def _tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Every tensor whose name begins so, from one file or from several with an index."""
    files = [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX, {"weight_map": {str: str}})["weight_map"]
        files = [inside(folder, file) for file in sorted({file for key, file in index.items() if key.startswith(prefix)})]
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118  (no mapping)
    return found
