"""Recipes: those shipped hold together; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from espan_deploy.errors import RecipeError
from espan_deploy.recipes import (
    PRECISIONS,
    Budget,
    Span,
    for_sizes,
    load_recipe,
    parse_recipe,
    recipe_folder,
    recipe_names,
)

GOOD = """
title = "A card"
backend = "tensorrt-rtx"
precision = "fp16"

[target]
compute_capability = ["8.6"]

[profile]
batch = { min = 1, opt = 2, max = 4 }
"""


def test_the_shipped_ones() -> None:
    names = recipe_names()
    assert {"a6000-fp16", "a6000-rtx-fp16", "ampere-plus-fp16", "this-gpu-fp16", "cpu-onnxruntime-fp32"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.precision in PRECISIONS[recipe.backend]


@pytest.mark.parametrize(("name", "backend"), [("a6000-fp16", "tensorrt"), ("a6000-rtx-fp16", "tensorrt-rtx")])
def test_the_a6000_s(name: str, backend: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.backend, recipe.precision, recipe.pixels) == (backend, "fp16", "uint8")
    assert recipe.target.compute_capability == ("8.6",)
    assert recipe.budget == Budget(min_psnr_db=55.0, max_truth_drop_db=0.01)


def test_defaults_and_values() -> None:
    recipe = parse_recipe(GOOD, "mine")
    assert recipe.profile.batch == Span(1, 2, 4)
    assert recipe.profile.height == Span(1, 256, 512)
    assert recipe.pixels == "uint8"
    settings = recipe.settings()
    assert "run" not in settings
    assert "name" not in settings
    assert settings["target"]["compute_capability"] == ("8.6",)


def test_one_s_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_recipe(str(path)).name == "mine"


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'a6000-fp16'") as caught:
        load_recipe("a6000-pf16")
    assert "a6000-rtx-fp16" in caught.value.hint
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title", "titel", "unknown key 'titel'; did you mean 'title'"),
        ("batch", "bacth", "unknown key 'profile.bacth'; did you mean 'profile.batch'"),
        ("opt = 2", "optt = 2", "did you mean 'profile.batch.opt'"),
        ("opt = 2, ", "", "'profile.batch.opt' is missing"),
        ('"tensorrt-rtx"', '"tensorrt-rx"', "did you mean 'tensorrt-rtx'"),
        ('"fp16"', '"fp8"', "precision is 'fp8', expected one of fp32, fp16, bf16"),
        ('"fp16"', '"bf16"', "tensorrt-rtx is not built in bf16"),
        ("min = 1", "min = 3", "expected 1 <= min <= opt <= max"),
        ("min = 1", "min = 0", "expected 1 <= min <= opt <= max"),
        ("max = 4", "max = 1", "expected 1 <= min <= opt <= max"),
        ("max = 4", "max = 4.5", "profile.batch.max is 4.5, expected a whole number"),
        ("max = 4", "max = true", "expected a whole number"),
        ('["8.6"]', '"8.6"', "expected a list of strings"),
        ('["8.6"]', '["sm86"]', "expected the like of '8.6'"),
        ("[profile]", "[profile", "is no TOML"),
        ('title = "A card"', 'title = "A card"\nname = "x"', "its name is its file's"),
        ('title = "A card"', 'title = "A card"\nschema_version = 2', "schema 2"),
        ('title = "A card"', 'title = "A card"\nbudget = 3', "budget is 3, expected a table"),
        ("[profile]", "[build]\noptimization_level = 5\n[profile]", "no build.optimization_level"),
        ("[profile]", "[build]\nworkspace_mib = 0\n[profile]", "expected at least 1"),
        ("[target]", '[target]\nhardware_compatibility = "ampere-plus"', "no target.hardware_compatibility"),
        ("[target]", "[target]\nversion_compatible = true", "no target.version_compatible"),
    ],
)
def test_every_mistake_is_named(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace(old, new), "mine")
    assert said in caught.value.message
    assert "'mine'" in caught.value.message


def test_a_profile_is_fitted_to_the_sizes_that_a_model_takes() -> None:
    recipe = parse_recipe(GOOD + "height = { min = 1, opt = 4, max = 509 }", "card")

    fitted = for_sizes(recipe, least=15, multiple=8)

    assert (fitted.profile.height, fitted.profile.width) == (Span(16, 16, 504), Span(16, 256, 512))
    assert fitted.profile.batch == recipe.profile.batch
    assert for_sizes(recipe, least=1, multiple=1) == recipe
    with pytest.raises(RecipeError, match="height is 1 to 509, and the model takes multiples of 512 from 1 on"):
        for_sizes(recipe, least=1, multiple=512)


def test_levels_of_tensorrt() -> None:
    text = GOOD.replace("tensorrt-rtx", "tensorrt") + "[build]\noptimization_level = 6\n"
    with pytest.raises(RecipeError, match="expected 0 to 5"):
        parse_recipe(text, "mine")


def test_keep_fp32_needs_fp16() -> None:
    text = GOOD.replace('"fp16"', '"fp32"').replace("[target]", 'keep_fp32 = ["x"]\n[target]')
    with pytest.raises(RecipeError, match="keep_fp32 has no meaning"):
        parse_recipe(text, "mine")


def test_the_folder_holds_only_recipes() -> None:
    assert all(path.suffix == ".toml" for path in recipe_folder().iterdir() if path.is_file() and path.name[0] != ".")
