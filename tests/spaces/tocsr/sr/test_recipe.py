"""Recipes: what they may say, and one done from a teacher's folder to a judged one-step model."""

from pathlib import Path

import pytest

from nas.errors import InputError
from nas.progress import Quiet
from nas.spaces.tocsr.sr.recipe import Recipe, distillation, expanding, training
from nas.spaces.tocsr.sr.run import run

RECIPES = Path(__file__).parents[4] / "recipes"


@pytest.mark.parametrize("name", ["embedded", "sd15"])
def test_the_shipped_recipes_are_understood(name: str) -> None:
    recipe = Recipe.read(RECIPES / f"{name}.toml")
    assert recipe.name == name
    distillation(recipe.distill)
    training(recipe.adapt, {}, "[adapt]")


def test_the_papers_recipe_is_pure_eq_23_on_the_papers_latent() -> None:
    recipe = Recipe.read(RECIPES / "sd15.toml")
    assert distillation(recipe.distill).terms.name == "Eq. 23"
    assert (recipe.adapt["target"], recipe.adapt["weighting"], recipe.photographs.degradation) == ("latent", "eps", "realesrgan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[serch]", "has no entry 'serch'; did you mean 'search'"),
        ("[finetune]\nstpes = 5", r"\[finetune\] has no entry 'stpes'; did you mean 'steps'"),
        ("[evaluate]\nstpes = [4]", r"\[evaluate\] has no entry 'stpes'; did you mean 'steps'"),
        ("[search]\nepss = 1", "has no entry 'epss'; did you mean 'eps'"),
        ('[expand]\nteacher = "A"\ndata = "B"\n[search]\nteacher = "C"', "with .expand. the search's teacher is the expanded one"),
        ('[expand]\nteacher = "A"', r"\[expand\]: data must name at least one folder of pictures"),
        ("[distill]\nhrr = 1.0", "has no entry 'hrr'"),
        ("[adapt]\nstepss = 1", "has no entry 'stepss'"),
        ("[search]", r"\[photographs\] must have 'folder'"),
        ("[adapt]\nwarmup = -1", "warmup must be at least 0, got -1"),
        ("[adapt]\ntarget = 'latents'", r"\[adapt\]: 'target' must be 'residual' or 'latent', got 'latents'"),
        ("[adapt]\nprediction_type = 'v'", r"\[adapt\]: 'prediction_type' must be 'epsilon' or 'v_prediction' or nothing, got 'v'"),
        ("[distill]\nsteps = 0", "steps must be at least 1, got 0"),
        ("[distill]\ntargets = 0", "targets must be at least 1, got 0"),
        ("[distill]\nteacher_steps = 0", "teacher_steps must be at least 1, got 0"),
        ("[evaluate]\nsteps = [1, 0]", r"\[evaluate\]: each of steps must be at least 1, got 0"),
        ("[photographs]\nfolder = 'A'\nheld_out = []\nlongest = 0", "longest must be at least 1, got 0"),
        ("[photographs]\nfolder = 'A'\nheld_out = []\ncrops = 0", "crops must be at least 1, got 0"),
        ("[photographs]\nfolder = 'A'\nheld_out = []\nsize = 33", "crops must have a multiple of 4 pixels, at least 32, got 33"),
        ("[photographs]\nfolder = 'A'\nheld_out = []\ndegradation = 'none'", "unknown degradation 'none'"),
    ],
)
def test_a_wrong_entry_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Recipe.read(path)


def test_the_papers_recipe_expands_to_sixteen_channels_by_variant_v2() -> None:
    recipe = Recipe.read(RECIPES / "sd15.toml")
    assert recipe.expand is not None
    asked, options = expanding(recipe.expand)
    assert (options.channels, options.variant, options.joint.precision, asked.data, asked.first) == (16, "v2", "bf16", ("PICTURES",), 10_000)


def test_a_recipe_runs_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a recipe runs in one process"):
        run(Recipe.read(RECIPES / "embedded.toml"), tmp_path, Quiet())


def test_steps_of_training_and_of_the_teacher_are_told_apart() -> None:
    table = {"steps": 7, "teacher_steps": 3, "targets": 5, "hr": 1.0, "teacher": 0.1}
    assert (distillation(table).steps, distillation(table).targets, training(table, {"batch": 2}, "").steps) == (3, 5, 7)
    with pytest.raises(InputError, match="has no entry 'hrr'"):
        distillation({"hrr": 1.0})
