"""Recipes: TOML there and back, overrides, and mistakes by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

import vpeft
from vpeft.training.recipe import BadRecipe, Recipe
from vpeft.training.toml_text import toml_text

TEXT = """
backbone = "pocket_vit"
out = "runs/a"

[data]
source = "digits"

[method]
name = "lora"
rank = 4
targets = ["q", "proj"]

[optimisation]
epochs = 3
lr = 5e-4
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def told(values: dict[str, Any]) -> str:
    given = {"backbone": "pocket_vit", "data": {"source": "digits"}, "method": "lora", **values}
    with pytest.raises(BadRecipe) as caught:
        Recipe.from_mapping(given)
    return str(caught.value)


def test_a_file_becomes_a_recipe(recipe_file: Path) -> None:
    recipe = Recipe.from_toml(recipe_file)
    assert recipe.methods == (vpeft.methods.LoRA(rank=4, targets=("q", "proj")),)
    assert recipe.out == Path("runs/a")
    assert (recipe.optimisation.epochs, recipe.optimisation.lr, recipe.optimisation.batch) == (3, 5e-4, 64)
    assert recipe.data.source == "digits"
    assert recipe.seed == recipe.optimisation.seed == 0


def test_overrides_win_with_dots_or_nested(recipe_file: Path) -> None:
    recipe = Recipe.from_toml(
        recipe_file,
        {"optimisation.epochs": 7, "method": {"rank": 2}, "method.dropout": 0.5, "data.val_fraction": 0.2, "out": None},
    )
    assert recipe.optimisation.epochs == 7
    assert recipe.optimisation.lr == 5e-4
    assert recipe.methods == (vpeft.methods.LoRA(rank=2, dropout=0.5, targets=("q", "proj")),)
    assert recipe.data.val_fraction == 0.2
    assert recipe.out is None


def test_another_method_drops_the_fields_of_the_first(recipe_file: Path) -> None:
    for override in ({"method": "adaptformer"}, {"method.name": "adaptformer"}, {"method": {"name": "adaptformer"}}):
        assert Recipe.from_toml(recipe_file, override).methods == (vpeft.methods.AdaptFormer(),)
    same = Recipe.from_toml(recipe_file, {"method": {"name": "lora", "dropout": 0.1}})
    assert same.methods == (vpeft.methods.LoRA(rank=4, dropout=0.1, targets=("q", "proj")),)


def test_there_and_back(recipe_file: Path) -> None:
    recipe = Recipe.from_toml(recipe_file, {"also": ["adaptformer"], "data.source": 'a "b"\\ü\n', "data.seed": 3})
    text = recipe.to_toml()
    assert Recipe.from_mapping(tomllib.loads(text)) == recipe
    assert [type(method).__name__ for method in recipe.methods] == ["LoRA", "AdaptFormer"]
    written = tomllib.loads(text)
    assert written["optimisation"]["weight_decay"] == 1e-4  # defaults are written out
    assert written["method"]["dropout"] == 0.0


def test_unknown_keys_are_named_with_their_path_and_the_nearest() -> None:
    text = told(
        {
            "optimisation": {"epoch": 3},
            "data": {"source": "digits", "val_fractoin": 0.1},
            "method": {"name": "lora", "rnk": 4},
            "also": [{"name": "adaptformer", "bottelneck": 8}],
            "wight_decay": 1,
        }
    )
    assert "no key optimisation.epoch. Did you mean 'epochs'" in text
    assert "no key data.val_fractoin. Did you mean 'val_fraction'" in text
    assert "no key method.rnk for the method 'lora'. Did you mean 'rank'" in text
    assert "no key also.0.bottelneck for the method 'adaptformer'. Did you mean 'bottleneck'" in text
    assert "no key wight_decay." in text


def test_a_key_in_the_wrong_table_is_shown_its_place() -> None:
    assert "There is no key epochs. It belongs to optimisation.epochs." in told({"epochs": 3})
    assert "There is no key optimisation.workers. It belongs to data.workers." in told({"optimisation": {"workers": 3}})


def test_wrong_values_are_named_with_their_path() -> None:
    text = told({"optimisation": {"lr": -1, "schedule": "cosinus"}})
    assert "optimisation.lr = -1: Input should be greater than 0." in text
    assert "optimisation.schedule = 'cosinus'" in text
    assert "method.name: there is no method 'lorra'. Did you mean 'lora'" in told({"method": "lorra"})
    assert "method: LoRA.rank = 0: Input should be greater than 0." in told({"method": {"name": "lora", "rank": 0}})
    assert "warmup = 9 epochs does not fit in 4 epochs" in told({"optimisation": {"epochs": 4, "warmup": 9}})
    memory = told({"optimisation": {"fit_memory": "8XB"}})
    assert "optimisation.fit_memory = '8XB': '8XB' is not a size of memory." in memory and not memory.endswith("..")
    with pytest.raises(BadRecipe, match=r"data is missing(.|\n)*method is missing"):
        Recipe.from_mapping({"backbone": "pocket_vit"})


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="cannot be read: No such file"):
        Recipe.from_toml(tmp_path / "missing.toml")
    path = tmp_path / "bad.toml"
    path.write_text("backbone = \n")
    with pytest.raises(BadRecipe, match=r"bad\.toml is not valid TOML.*line 1"):
        Recipe.from_toml(path)


@pytest.mark.parametrize(
    "values",
    [
        {"a": 1, "b": -2.5e-7, "c": True, "d": "x", "e": [1, 2], "f": ["q", "v"], "g": float("inf"), "h": []},
        {"text": 'quotes " and \\ and \n and \t and \x7f and \x01 and ü and 😀', "key with space": 1, "": 2},
        {"t": {"u": {"v": 1}, "w": 2}, "x": 3},
        {"t": [{"a": 1, "u": {"b": 2}}, {"a": 3}], "z": [[1, 2], [3]]},
    ],
)
def test_toml_is_read_as_it_was_written(values: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(values)) == values


def test_toml_leaves_none_out_and_refuses_the_rest() -> None:
    assert tomllib.loads(toml_text({"a": None, "b": {"c": None}})) == {"b": {}}
    with pytest.raises(TypeError, match="not TOML serializable"):
        toml_text({"a": object()})
