"""Other names of methods."""

from __future__ import annotations

import pytest

import vpeft
from vpeft.cli.methods import describe_method
from vpeft.method import Method, UnknownMethod, method_aliases, register
from vpeft.methods import LNTune, all_methods, get, names
from vpeft.training.recipe import MethodChoice


def test_a_method_is_found_under_its_other_names_and_listed_once() -> None:
    assert get("ln_tuning") is get("ln_tune") is LNTune
    assert method_aliases()["ln_tuning"] == "ln_tune"
    assert "ln_tuning" not in names() and "ln_tuning" not in all_methods()
    assert describe_method(LNTune)["aliases"] == ["ln_tuning"]
    assert LNTune.name == "ln_tune"


def test_recipes_hold_the_name_for_records() -> None:
    choice = MethodChoice.model_validate("ln_tuning")
    assert choice.name == "ln_tune" and choice.build() == LNTune()


def test_a_name_that_is_taken_is_refused() -> None:
    for name, aliases in (("ln_tuning", ()), ("quite_new", ("ln_tune",)), ("quite_new", ("ln_tuning",))):
        with pytest.raises(ValueError, match=r"is taken by vpeft\.methods\.ln_tune"):
            register(name, family="specification", aliases=aliases)(type("Other", (Method,), {}))
    assert "quite_new" not in all_methods()
    with pytest.raises(UnknownMethod, match="ln_tuning"):
        vpeft.methods.get("ln_tunning")
