"""Recipes: TOML there and back, every field documented, wrong ones refused with the nearest right one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.recipe import MeasureRecipe, Recipe, TrainRecipe, demo_recipe, describe

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_recipe_reads_and_survives_toml(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_toml(path)
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert Recipe.from_toml(tmp_path / "again.toml") == recipe


def test_the_demo_is_the_digits_recipe() -> None:
    assert Recipe.from_toml(RECIPES[0].with_name("digits.toml")) == demo_recipe()


def test_every_field_is_documented() -> None:
    for prefix, kind in (("", Recipe), ("train.", TrainRecipe), ("measure.", MeasureRecipe)):
        for field in dataclasses.fields(kind):
            if field.name not in ("train", "measure"):
                assert describe(prefix + field.name).endswith("."), field.name


def test_options_override_fields_and_none_leaves_them() -> None:
    recipe = demo_recipe().with_options({"train.epochs": 3, "seed": None, "variants": ["fp32"], "budget_points": 1})
    assert (recipe.train.epochs, recipe.seed, recipe.variants, recipe.budget_points) == (3, 0, ("fp32",), 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = 3", "unknown field 'epochs'"),
        ("[train]\nepoch = 3", r"unknown field 'epoch' \(did you mean 'epochs'\?\)"),
        ("seed = 'x'", "seed must be of type int"),
        ("seed = true", "seed must be of type int"),
        ("train = 3", "'train' must be a table"),
        ("variants = []", "variants is empty"),
        ("variants = ['fp32', 'fp32']", "names one of them twice"),
        ("[train]\nmethod = 'lorra'", r"did you mean 'lora'"),
        ("[train]\nwarmup = 1.0", "train.warmup must be at least 0 and below 1"),
        ("[train]\nlr = nan", "train.lr must be at least 0"),
        ("budget_points = -1", "budget_points must be at least 0"),
        ("data = ", "cannot be read"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(PetaliteError, match=says):
        Recipe.from_toml(tmp_path / "recipe.toml")
