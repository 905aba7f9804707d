"""Model folders and teachers that others may have sent: damaged in a thousand ways, they load or are refused with an error of ours."""

import json
from pathlib import Path

import pytest

from nas.blocks.reductions.depth import Bypass
from nas.blocks.reductions.low_rank import LowRank
from nas.blocks.reductions.widths import FeedForward
from nas.blocks.saved import load_model
from nas.errors import DamagedFile
from nas.files import write_manifest
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.unet import check_sizes
from tests.blocks.test_saved import made, saved
from tests.fuzz.mutations import damaged_bytes, damaged_values
from tests.fuzz.test_formats import N, only_our_errors
from tests.spaces.tocsr.conftest import SCHEDULER, SHALLOW, small_unet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_config_of_a_model(tmp_path: Path) -> None:
    CompactUNet.of(small_unet(**SHALLOW), SCHEDULER).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = path.read_bytes()
    CompactUNet.from_pretrained(tmp_path)
    for each in damaged_bytes(content, N // 4):
        path.write_bytes(each)
        with only_our_errors(each):
            CompactUNet.from_pretrained(tmp_path)
    for value in damaged_values(json.loads(content), 3 * N // 4):
        path.write_text(json.dumps(value))
        with only_our_errors(value):
            CompactUNet.from_pretrained(tmp_path)


def test_weights_of_a_model_without_a_manifest(tmp_path: Path) -> None:
    CompactUNet.of(small_unet(**SHALLOW), SCHEDULER).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for each in damaged_bytes(content[:header], N):  # a changed number in the data is for the manifest to find
        path.write_bytes(each + content[header:])
        with only_our_errors(each):
            CompactUNet.from_pretrained(tmp_path)


def test_every_flipped_byte_of_a_winner_is_detected(tmp_path: Path) -> None:
    CompactUNet.of(small_unet(**SHALLOW), SCHEDULER).save_pretrained(tmp_path)
    write_manifest(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    for number in range(100):
        at = (number * 7919 + 13) % len(content)
        (tmp_path / WEIGHTS).write_bytes(content[:at] + bytes([content[at] ^ 1 << number % 8]) + content[at + 1 :])
        with pytest.raises(DamagedFile, match="is damaged"):
            CompactUNet.from_pretrained(tmp_path)


def test_files_of_a_teacher_folder(tmp_path: Path) -> None:
    CompactUNet.of(small_unet(**SHALLOW)).save_pretrained(tmp_path / "unet")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SCHEDULER))
    CompactUNet.from_teacher_folder(tmp_path)
    for value in damaged_values(SCHEDULER, N):
        path.write_text(json.dumps(value))
        with only_our_errors(value):
            CompactUNet.from_teacher_folder(tmp_path)


def test_a_config_that_asks_for_a_network_without_end_is_refused_before_it_is_built() -> None:
    deep = {"architecture": {"mid": {"layers": ["R"] * 10**5}}}
    for change in ({"layers_per_block": 10**9}, {"block_out_channels": [10**9]}, {"down_block_types": ["DownBlock2D"] * 10_000}, deep):
        with pytest.raises(DamagedFile, match=r"config '.*' must"):
            check_sizes(change)


def test_architecture_of_a_model_of_ones_own(tmp_path: Path) -> None:
    saved(tmp_path, low=FeedForward(0.5), high=Bypass(), head=LowRank(0.5))
    path = tmp_path / "architecture.json"
    content = path.read_bytes()
    load_model(tmp_path, made())
    for each in damaged_bytes(content, N // 2):
        path.write_bytes(each)
        with only_our_errors(each):
            load_model(tmp_path, made())
    for value in damaged_values(json.loads(content), N):
        path.write_text(json.dumps(value))
        with only_our_errors(value):
            load_model(tmp_path, made())
