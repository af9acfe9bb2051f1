"""A run from a file, from flags, and from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from pydantic import BaseModel

from vpeft.cli.flags import with_flags
from vpeft.cli.method_flags import StrayFlag, all_method_flags
from vpeft.cli.recipe_flags import IncompleteRun, SameFolder, recipe_flags, recipe_from, recipes_from
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.config import DataConfig
from vpeft.methods import all_methods
from vpeft.training.optimisation import Optimisation
from vpeft.training.recipe import BadRecipe, Recipe

FLAGS = ("--data", "photos", "--backbone", "pocket_vit", "--method", "lora", "--out", "runs/a")

FILE = """
backbone = "pocket_vit"
out = "runs/file"
[data]
source = "photos"
workers = 2
[method]
name = "lora"
rank = 4
[optimisation]
epochs = 7
"""


def recipe(*words: str, file: Path | None = None) -> Recipe:
    """The recipe that a command line gives."""
    made: list[Recipe] = []

    def command(*, given: dict[str, Any]) -> None:
        made.append(recipe_from(file, given))

    app = App(result_action="return_value")
    app.default(with_flags(command, recipe_flags()))
    app(list(words), exit_on_error=False, print_error=False)
    return made[0]


def recipes(*words: str) -> dict[str, Recipe]:
    """The recipes that a command line of files and flags gives, by what they are called."""
    made: list[tuple[list[str], list[Recipe]]] = []

    def command(*files: Path, given: dict[str, Any]) -> None:
        made.append(recipes_from(files, given))

    app = App(result_action="return_value")
    app.default(with_flags(command, recipe_flags()))
    app(list(words), exit_on_error=False, print_error=False)
    return dict(zip(*made[0], strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_flags_alone() -> None:
    made = recipe(*FLAGS, "--lora.rank", "2", "--epochs", "3", "--head-lr", "0.1", "--strict", "--data.seed", "5")
    assert (made.data.source, made.data.strict, made.data.seed) == ("photos", True, 5)
    assert (made.backbone, made.out) == ("pocket_vit", Path("runs/a"))
    assert made.method.fields["rank"] == 2
    assert (made.optimisation.epochs, made.optimisation.head_lr, made.optimisation.seed) == (3, 0.1, 0)


def test_a_file_alone(file: Path) -> None:
    assert recipe(file=file) == Recipe.from_toml(file)


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(file: Path) -> None:
    made = recipe("--epochs", "2", "--lora.alpha", "16", file=file)
    assert made.optimisation.epochs == 2
    assert (made.method.fields["rank"], made.method.fields["alpha"]) == (4, 16)
    assert made.data.workers == 2
    assert made.optimisation.batch == Optimisation().batch


def test_another_method_on_the_command_line_drops_the_fields_of_the_files(file: Path) -> None:
    made = recipe("--method", "adaptformer", file=file)
    assert made.method.name == "adaptformer"
    assert "rank" not in made.method.fields


def test_methods_that_act_together(file: Path) -> None:
    made = recipe("--also", "adaptformer", "--adaptformer.bottleneck", "8", file=file)
    assert [choice.name for choice in (made.method, *made.also)] == ["lora", "adaptformer"]
    assert made.also[0].fields["bottleneck"] == 8


def test_a_setting_of_a_method_that_is_not_used_is_refused() -> None:
    with pytest.raises(StrayFlag, match=r"--adaptformer\.bottleneck: this run uses lora, not adaptformer"):
        recipe(*FLAGS, "--adaptformer.bottleneck", "8")


@pytest.mark.parametrize("left_out", range(0, len(FLAGS), 2))
def test_what_is_missing_is_named(left_out: int) -> None:
    words = [*FLAGS[:left_out], *FLAGS[left_out + 2 :]]
    with pytest.raises(IncompleteRun, match=rf"Add {FLAGS[left_out]} [^;]*\.$"):
        recipe(*words)


def test_a_wrong_key_of_a_file_gets_the_nearest_right_one(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(FILE.replace("epochs", "epoch"), encoding="utf-8")
    with pytest.raises(BadRecipe, match="epochs"):
        recipe(file=path)


def test_a_wrong_method_gets_the_nearest_right_one() -> None:
    with pytest.raises(BadRecipe, match="Did you mean .*'lora'"):
        recipe(*FLAGS[:5], "lroa", *FLAGS[6:])


def test_a_file_that_is_no_recipe_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("= 3", encoding="utf-8")
    with pytest.raises(BadRecipe, match="not valid TOML"):
        recipe(*FLAGS, file=path)


def _leaves(model: type[BaseModel], prefix: str) -> set[str]:
    return {f"{prefix}{name.replace('_', '-')}" for name in model.model_fields}


def test_every_field_of_every_method_of_the_data_and_of_the_optimisation_is_a_flag() -> None:
    names = {name for flag in recipe_flags() for name in flag.names}
    of_data = _leaves(DataConfig, "--data.") - {"--data.clip"} | _leaves(ClipConfig, "--clip.")
    wanted = _leaves(Optimisation, "--") | of_data | {"--method", "--backbone", "--out", "--data"}
    for name, kind in all_methods().items():
        wanted |= _leaves(kind, f"--{name}.")
    assert wanted <= names


def test_no_two_flags_share_a_name_or_a_key() -> None:
    flags = recipe_flags()
    names = [name for flag in flags for name in flag.names]
    assert len(names) == len(set(names))
    assert len({flag.key for flag in flags}) == len(flags)


def test_a_default_on_the_command_line_is_the_models_own() -> None:
    made = recipe(*FLAGS)
    assert made.optimisation == Optimisation()
    assert made.data == DataConfig(source="photos")
    assert made.method.build() == all_methods()["lora"]()
    assert len(all_method_flags()) == sum(len(kind.model_fields) for kind in all_methods().values())


def test_several_files_take_the_flags_that_concern_them(file: Path) -> None:
    other = file.with_name("probe.toml")
    other.write_text(FILE.replace('"lora"\nrank = 4', '"linear_probe"').replace("runs/file", "runs/probe"), "utf-8")
    made = recipes(str(file), str(other), "--epochs", "2", "--lora.alpha", "16")
    assert list(made) == ["recipe", "probe"]
    assert [one.out for one in made.values()] == [Path("runs/file"), Path("runs/probe")]
    assert [one.optimisation.epochs for one in made.values()] == [2, 2]
    assert made["recipe"].method.fields["alpha"] == 16
    assert made["probe"].method.name == "linear_probe"
    with pytest.raises(StrayFlag, match="not adaptformer"):
        recipes(str(file), str(other), "--adaptformer.scale", "1")


def test_one_folder_for_several_files_holds_one_for_each(file: Path) -> None:
    twin = file.parent / "more" / file.name
    twin.parent.mkdir()
    twin.write_text(FILE.replace("runs/file", "runs/twin"), encoding="utf-8")
    other = file.with_name("other.toml")
    other.write_text(FILE.replace('out = "runs/file"\n', ""), encoding="utf-8")
    made = recipes(str(file), str(other), "--out", "all")
    assert [one.out for one in made.values()] == [Path("all/recipe"), Path("all/other")]
    assert list(recipes(str(file), str(twin))) == [str(file), str(twin)]
    with pytest.raises(SameFolder, match="both write into all/recipe"):
        recipes(str(file), str(other), str(twin), "--out", "all")
    with pytest.raises(IncompleteRun, match=r"other\.toml and the command do not say everything. Add --out"):
        recipes(str(file), str(other))


def test_the_head_is_an_option_of_the_task_wherever_that_is_stated(tmp_path: Path) -> None:
    head = "faster_rcnn(channels=64)"
    made = recipe(*FLAGS, "--task", "detection(confidence=0.5)", "--head", head).task
    assert (made.name, made.fields) == ("detection", {"confidence": 0.5, "head": head})
    assert recipe(*FLAGS, "--head", "mlp(hidden=8)").task.fields == {"head": "mlp(hidden=8)"}
    file = tmp_path / "a.toml"
    file.write_text(FILE + '[task]\nname = "instance"\nlead = "AP"\n')
    made = recipe("--head", "cascade_mask_rcnn", file=file).task
    assert (made.name, made.fields) == ("instance_segmentation", {"lead": "AP", "head": "cascade_mask_rcnn"})
    with pytest.raises(BadRecipe, match="faster_rcn"):
        recipe(*FLAGS, "--task", "detection", "--head", "faster_rcn")
