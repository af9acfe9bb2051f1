"""Every cell refuses as the stored table says, or attaches; and a declared failure is told from any other."""

from __future__ import annotations

from pathlib import Path

import pytest

import vpeft
from tests.contract import refusals
from tests.contract.checks import Cell, hold
from tests.contract.matrix import cell_or_refusal
from tests.contract.refusals import difference, kind_of, refuses
from tests.families import EVERY
from vpeft.method import KnownFailure
from vpeft.methods import LoRA, all_methods


def refusal_of_edits(name: str, description: vpeft.Backbone) -> vpeft.MissingPlace | None:
    """The refusal of a method's defaults, where its edits cannot be stated in any of its variants; nothing is attached.

    Few refusals come later, when edits are attached: `make matrix` attaches every method on every family.
    """
    kind, first = all_methods()[name], None
    for fields in ({}, *kind.variants):
        try:
            list(kind(**fields).edits(description))
        except vpeft.MissingPlace as error:
            first = first or error.with_traceback(None)
            continue
        return None
    return first


@pytest.mark.parametrize("family", EVERY)
def test_every_method_refuses_this_family_as_the_table_says(family: str) -> None:
    changed, description = [], vpeft.describe(EVERY[family]())
    for name in all_methods():
        refusal = refusal_of_edits(name, description)
        if refusal is None and refuses(name, family):
            _, refusal = cell_or_refusal(name, family)
        changed.append(difference("methods", name, family, refusal and kind_of(refusal)))
        assert refusal is None or len(str(refusal)) > 40, refusal
    assert not any(changed), "\n".join(filter(None, changed))


def test_the_table_names_only_what_exists() -> None:
    assert not refusals.stale("methods", all_methods(), EVERY), refusals.UPDATE


def test_a_cell_that_begins_to_refuse_and_one_that_no_longer_does_are_said() -> None:
    table: refusals.Table = {"methods": {"old": {"net": "MissingPlace: attn, blocks.0"}}}
    assert difference("methods", "old", "net", "MissingPlace: attn, blocks.0", table) is None
    assert difference("methods", "new", "net", None, table) is None
    for name, kind, words in (
        ("old", None, ("refused (MissingPlace: attn, blocks.0)", "now attaches")),
        ("old", "MissingPlace: pixels", ("now refuses (MissingPlace: pixels)",)),
        ("new", "MissingPlace: pixels", ("new on net attached", "now refuses (MissingPlace: pixels)")),
    ):
        said = difference("methods", name, "net", kind, table)
        assert said is not None and all(word in said for word in (*words, refusals.UPDATE))


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("tiny (timm) has no place 'attn.core' in blocks.0. It has: conv, norm.", ": attn.core, blocks.0"),
        ("In blocks.0 of tiny there is nothing called 'attn.core'. Try pixels.", ": attn.core, blocks.0"),
        ("blocks.0 cannot insert_tokens: nothing says how long; it offers: after.", ": blocks.0, insert_tokens"),
        ("It needs one width; blocks.2 of Swin has 48, blocks.0 has 24.", ": blocks.0, blocks.2"),
        ("This model takes text.", ""),
    ],
)
def test_the_kind_of_a_refusal_is_its_class_and_the_places_it_names(sentence: str, named: str) -> None:
    assert kind_of(vpeft.MissingPlace(sentence)) == f"MissingPlace{named}"


def test_the_table_is_written_sorted_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(refusals, "TABLE", tmp_path / "refusals.json")
    refusals.write({("tasks", "b", "y"): "K", ("methods", "b", "z"): "K: p", ("methods", "b", "a"): "K: q"})
    assert refusals.stored() == {"methods": {"b": {"a": "K: q", "z": "K: p"}}, "tasks": {"b": {"y": "K"}}}
    assert refusals.TABLE.read_text().index('"a"') < refusals.TABLE.read_text().index('"z"')
    refusals.stored.cache_clear()


def broken(cell: Cell) -> None:
    """A check that fails."""
    raise AssertionError("two rows differ")


def held(cell: Cell) -> None:
    """A check that passes."""


def declaring(check: str, raises: type[Exception], match: str) -> Cell:
    """A cell whose method declares one failure."""

    class Declaring(LoRA):
        exceptions = {check: KnownFailure("the rows of a batch are compared with each other", raises, match)}

    return Cell(Declaring(), "timm_vit")


def test_a_declared_failure_passes_and_any_other_does_not() -> None:
    assert hold(broken, declaring("broken", AssertionError, "rows differ")) is not None
    assert hold(held, declaring("broken", AssertionError, "rows differ")) is None
    for raises, match in ((AssertionError, "another sentence"), (vpeft.VpeftError, "rows differ")):
        with pytest.raises(AssertionError, match="but it failed with AssertionError: two rows differ"):
            hold(broken, declaring("broken", raises, match))
    with pytest.raises(AssertionError, match="delete the exception"):
        hold(held, declaring("held", AssertionError, "rows differ"))
    with pytest.raises(AssertionError, match="^two rows differ"):
        hold(broken, Cell(LoRA(), "timm_vit"))


def test_declared_failures_are_of_checks_that_exist() -> None:
    from tests.contract import checks

    for name, kind in all_methods().items():
        for check, declared in kind.exceptions.items():
            assert callable(getattr(checks, check, None)), f"{name} declares {check}, which is no check"
            assert isinstance(declared, KnownFailure) and len(declared.reason) > 20, name
