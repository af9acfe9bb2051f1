"""Flags come from pydantic models: names, defaults, lists, what is passed on, and how mistakes are worded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from cyclopts import App, CycloptsError, Group
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vpeft.cli.flags import Flag, InvalidValue, flags_of, mistakes, nested, split_list, with_flags

GROUP = Group("Settings")


class Inner(BaseModel):
    deep_value: int = 3


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: Path
    rank: Annotated[int, Field(ge=1, description="rank of the update")] = 8
    head_lr: float | None = None
    clip: float | None = 1.0
    strict: bool = False
    kind: Literal["squash", "shorter"] = "squash"
    targets: tuple[str, ...] = ("q", "v")
    either: Literal["all"] | tuple[int, ...] = "all"
    inner: Inner = Inner()


FLAGS = flags_of(Settings, group=GROUP, prefix="x.", path=("settings",), renamed={"source": ("--source",)})


def typed(*words: str) -> dict[str, Any]:
    """The nested mapping that the words give, through cyclopts as the command line uses it."""
    seen: list[dict[str, Any]] = []

    def command(*, given: dict[str, Any]) -> None:
        seen.append(nested(FLAGS, given))

    app = App(result_action="return_value")
    app.default(with_flags(command, FLAGS))
    app(list(words), exit_on_error=False, print_error=False)
    return seen[0].get("settings", {})


def test_every_field_of_the_model_and_of_the_nested_model_is_a_flag() -> None:
    names = {flag.names[0] for flag in FLAGS}
    assert names == {
        *("--source", "--x.rank", "--x.head-lr", "--x.clip", "--x.strict", "--x.kind", "--x.targets", "--x.either"),
        "--x.inner.deep-value",
    }


def test_only_what_was_typed_is_passed_on() -> None:
    assert typed() == {}
    assert typed("--x.rank", "4") == {"rank": 4}
    assert typed("--x.inner.deep-value", "9") == {"inner": {"deep_value": 9}}


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("--source", "a/b"), "source", Path("a/b")),
        (("--x.clip", "none"), "clip", None),
        (("--x.head-lr", "1e-3"), "head_lr", 1e-3),
        (("--x.head_lr", "1e-3"), "head_lr", 1e-3),
        (("--x.strict",), "strict", True),
        (("--x.no-strict",), "strict", False),
        (("--x.kind", "shorter"), "kind", "shorter"),
        (("--x.targets", "q,k"), "targets", ["q", "k"]),
        (("--x.targets", "q", "--x.targets", "k"), "targets", ["q", "k"]),
        (("--x.targets", "q"), "targets", ["q"]),
        (("--x.either", "all"), "either", "all"),
        (("--x.either", "1,2"), "either", ["1", "2"]),
        (("--x.either", "1"), "either", ["1"]),
    ],
)
def test_values_reach_the_model_as_it_takes_them(words: tuple[str, ...], field: str, value: object) -> None:
    mapping = typed(*words)
    assert mapping == {field: value}
    Settings.model_validate({"source": "here", **mapping})


@pytest.mark.parametrize("words", [("--x.rnak", "4"), ("--x.rank", "many"), ("--x.kind", "other")])
def test_a_wrong_name_or_type_is_the_users_mistake(words: tuple[str, ...]) -> None:
    with pytest.raises(CycloptsError) as caught:
        typed(*words)
    caught.value.verbose = False
    assert words[0] in str(caught.value)
    if words[0] == "--x.rnak":
        assert "Did you mean --x.rank?" in str(caught.value)


def test_a_mistake_names_the_flag_and_the_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"rank": 0})
    flags = [Flag(flag.names, flag.path[1:], flag.field, flag.group, flag.help) for flag in FLAGS]
    error = mistakes(caught.value, flags)
    assert isinstance(error, InvalidValue)
    lines = str(error).splitlines()
    assert lines[0] == "--source: Field required"
    assert lines[1] == "--x.rank: Input should be greater than or equal to 1 (given: 0)"


def test_the_help_shows_the_models_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    def command(*, given: dict[str, Any]) -> None:
        raise AssertionError("help does not run the command")

    app = App(result_action="return_value")
    app.default(with_flags(command, FLAGS))
    app(["--help"], exit_on_error=False)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "rank of the update [default: 8]" in text
    assert "[default: q,v]" in text
    assert "[default: none]" not in text
    assert "[choices: squash, shorter]" in text


def test_commas_within_brackets_do_not_separate() -> None:
    assert split_list("lora(rank=4, targets=[q, v]), ssf,") == ["lora(rank=4, targets=[q, v])", "ssf"]
