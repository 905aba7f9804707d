"""What the way from a teacher to a small model reads and leaves (recipes, pipelines, pairs, results, tables), damaged in a thousand ways each."""

import contextlib
import hashlib
import io
import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from nas.blocks.shards import Shards
from nas.blocks.store import BlockRecord, BlockStore
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.cli.tocsr import _show_expanded, _show_finetuned
from nas.evaluators.latency import Setting, read_latency
from nas.files import MANIFEST, write_manifest
from nas.names import resolve_space
from nas.progress import Quiet
from nas.space import Choice, Stage
from nas.spaces.tocsr import assets, expand, finetune
from nas.spaces.tocsr.compact import CompactUNet
from nas.spaces.tocsr.lazy import load_stage
from nas.spaces.tocsr.sr import steps
from nas.spaces.tocsr.sr.images import read_picture
from nas.spaces.tocsr.sr.pairs import Pairs, kept_pairs
from nas.spaces.tocsr.sr.pipeline import TOCSRPipeline
from nas.spaces.tocsr.sr.recipe import Recipe
from nas.spaces.tocsr.teacher import _autoencoder, null_prompt
from nas.spaces.tocsr.trainer import Trainer, TrainingSettings
from nas.table import write_table
from nas.tabulate import _resumed, _table
from tests.fuzz.mutations import damaged_bytes, damaged_values
from tests.fuzz.test_formats import KEY, N, fuzz, only_our_errors
from tests.spaces.tocsr.conftest import SCHEDULER, SHALLOW, small_unet
from tests.spaces.tocsr.sr.conftest import tiny_vae

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]


def test_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes((ROOT / "recipes" / "embedded.toml").read_bytes())
    fuzz(path, lambda: Recipe.read(path), values=tomllib.loads(path.read_text()), n=2 * N, render=_toml)


def _toml(content: Any) -> bytes:
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)] if isinstance(content, dict) else []
    for name, table in content.items() if isinstance(content, dict) else ():
        if isinstance(table, dict):
            lines += [f"[{json.dumps(name)}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines).encode()


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    """A one-step pipeline with random weights and without a manifest."""
    unet = CompactUNet.of(small_unet(**SHALLOW, in_channels=8), SCHEDULER)
    TOCSRPipeline(tiny_vae(), DDPMScheduler.from_config(SCHEDULER), unet).save_pretrained(tmp_path)
    return tmp_path


def test_configs_of_a_pipeline(pipeline_folder: Path) -> None:
    whole = TOCSRPipeline.from_pretrained(pipeline_folder)
    for name, given in (
        ("model_index.json", {"unet": whole.unet, "vae": whole.vae}),
        ("scheduler/scheduler_config.json", {"unet": whole.unet, "vae": whole.vae}),
        ("vae/config.json", {"unet": whole.unet}),
    ):  # what is not damaged need not be loaded each time
        path = pipeline_folder / name

        def read(given: dict[str, Any] = given) -> None:
            TOCSRPipeline.from_pretrained(pipeline_folder, **given)

        fuzz(path, read, values=json.loads(path.read_text()), n=N // 2 if name == "model_index.json" else N // 4)


def test_what_a_pipeline_was_made_from(pipeline_folder: Path) -> None:
    path = pipeline_folder / steps.MADE_FROM
    path.write_text(json.dumps({"key": "k", "origin": {"step": "adapt"}, "settings": {}, "curve": []}))
    (pipeline_folder / MANIFEST).write_text("{}")
    fuzz(path, lambda: steps._is_done(pipeline_folder, "k"), values=json.loads(path.read_text()))


def test_training_pairs(tmp_path: Path) -> None:
    path, key = tmp_path / "pairs.safetensors", {"n": 2}
    pairs = Pairs(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 4, 2, 2).half(), torch.ones(2, 4, 2, 2).half())
    kept_pairs(path, key, lambda: pairs)
    fuzz(path, lambda: kept_pairs(path, key, lambda: pairs).residual_scale())


def test_latency_table(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    setting = {"device": "cpu", "dtype": "float32", "batch": 2, "shapes": {"x": [2, 3]}, "threads": 1, "torch": "2", "clock": "wall"}
    path.write_text(json.dumps({"setting": setting, "stages": {"a": {"teacher": 2.0, "b": 1.0}}, "fixed": 0.5, "overhead": 0.1}))
    stages = (Stage("a", (Choice("teacher"), Choice("b"))),)

    def read() -> None:
        table = read_latency(path)
        table.rows(stages)
        table.check(Setting(**setting))

    fuzz(path, read, values=json.loads(path.read_text()), n=2 * N)


def test_partial_table(tmp_path: Path) -> None:
    task = resolve_space("synthetic:3").prepare(Quiet())
    path = tmp_path / "t.npz.part"
    unmeasured = np.full(task.space.n_candidates, np.nan)
    write_table(path, _table(task, unmeasured, unmeasured))
    fuzz(path, lambda: _resumed(path, task, "{}"))


def test_results_of_trainings_whose_manifest_vouches_for_them(tmp_path: Path) -> None:
    figures = {"divergence": 0.1, "heldout_divergence": 0.2, "heldout_loss": 0.3}
    tuned = {
        "winner": "w",
        "params": 3,
        "before": figures,
        "after": figures,
        "teacher_heldout_loss": 0.1,
        "distillation": 0.0,
        "settings": {"steps": 1},
        "curve": [],
    }
    row = {"step": 1, "psnr": 20.0, "heldout_loss": 0.1}
    wider = {"autoencoder": [row], "joint": [row, row], "params": 3, "options": {}, "path": "x"}
    for folder, name, content, read, show in (
        (tmp_path / "tuned", finetune.RESULT, tuned, finetune._finished, partial(_show_finetuned, quiet=False)),
        (tmp_path / "wider", expand.RESULT, wider, expand._finished, _show_expanded),
    ):
        folder.mkdir()
        path = folder / name
        path.write_text(json.dumps(content))

        def vouched(folder: Path = folder, read: Callable[[Path], Any] = read, show: Callable[[Any], None] = show) -> None:
            write_manifest(folder)
            if (result := read(folder)) is not None:
                with contextlib.redirect_stdout(io.StringIO()):
                    show({**result, "path": str(folder)})

        fuzz(path, vouched, values=content)


def test_checkpoint_of_a_training_with_a_valid_digest(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        return Trainer(nn.Linear(2, 1), lambda random, n: torch.randn(n, 2, generator=random), _squares, TrainingSettings(3, batch=2, save_s=0))

    path = tmp_path / "checkpoint.safetensors"
    trainer().run(path)
    state = load_checkpoint(path)
    plain = {name: value for name, value in state.items() if name in ("identity", "step", "curve", "mean", "scaler")}
    for value in damaged_values(plain, N):
        save_checkpoint(path, {**{name: part for name, part in state.items() if name not in plain}, **value} if isinstance(value, dict) else value)
        with only_our_errors(value):
            trainer().run(path)
    for name in ("module", "optimizer", "average"):
        for value in (None, 3, {}, [], {"x": 1}, torch.zeros(2), {**state[name], "x": torch.zeros(1)} if isinstance(state[name], dict) else 1):
            save_checkpoint(path, {**state, name: value})
            with only_our_errors((name, value)):
                trainer().run(path)


def _squares(network: nn.Module, batch: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return network(batch).square().mean()


def test_autoencoder_and_text_encoder_of_a_teacher_folder(tmp_path: Path) -> None:
    unet = CompactUNet.of(small_unet(**SHALLOW, cross_attention_dim=8), SCHEDULER)
    tiny_vae().save_pretrained(tmp_path / "vae")
    _small_text_encoder(tmp_path)
    for path in sorted(tmp_path.glob("*/*.json")) + sorted(tmp_path.glob("*/*.txt")):
        work = (lambda: _autoencoder(tmp_path, 4)) if path.parent.name == "vae" else (lambda: null_prompt(tmp_path, unet, Quiet()))
        fuzz(path, work, values=json.loads(path.read_text()) if path.suffix == ".json" else None, n=N // 4)


def _small_text_encoder(folder: Path) -> None:
    CLIPTextModel(CLIPTextConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        folder / "text_encoder"
    )
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3, "aa</w>": 4}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\na a</w>\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))


def test_files_that_one_stage_is_read_from(tmp_path: Path) -> None:
    CompactUNet.of(small_unet(**SHALLOW), SCHEDULER).save_pretrained(tmp_path, max_shard_size="200KB")
    for name in ("config.json", "diffusion_pytorch_model.safetensors.index.json"):
        path = tmp_path / name
        fuzz(path, lambda: load_stage(tmp_path, "mid"), values=json.loads(path.read_text()), n=N // 2)


def test_manifest_of_the_embedded_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_FOLDER", tmp_path)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "weights").write_bytes(b"0123")
    path = tmp_path / "v" / "manifest.json"
    path.write_text(json.dumps({"version": "v", "files": {"weights": hashlib.sha256(b"0123").hexdigest()}, "active_stages": 9}))
    fuzz(path, lambda: assets.EmbeddedAssets("v"), values=json.loads(path.read_text()))


def test_features_on_disk(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "h")
    shards.append(torch.ones(3, 2))
    shards.close()
    fuzz(next(tmp_path.iterdir()), lambda: list(Shards.reopen(tmp_path, "h", torch.float32).parts()))


def test_blocks_that_come_from_another_machine(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "a")
    store.put(KEY, BlockRecord("a", "small", {"k": [1]}, 0.1), {"w": torch.ones(3)})
    manifest, content = store.packed(KEY)
    for number, (one, other) in enumerate(zip(damaged_bytes(manifest, N), damaged_bytes(content, N), strict=True)):
        for packed in ((one, content), (manifest, other)):
            with only_our_errors(packed):
                BlockStore(tmp_path / str(number)).unpack(KEY, packed)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_to_enlarge(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    fuzz(path, lambda: read_picture(path).convert("RGB"), n=N)
