"""The run key: what it depends on, and what it does not."""

import pytest

from vpeft.bench.key import Identity, NotHashable, Numerics, canonical
from vpeft.method_spec import MethodSpec

IDENTITY = Identity(
    purpose="final",
    task="digits/classes",
    data="d" * 64,
    protocol="digits@1",
    methods=(MethodSpec(name="lora", fields={"rank": 8, "targets": ["q", "v"]}),),
    backbone="pocket_vit",
    weights="w" * 64,
    optimisation={"epochs": 8, "lr": 1e-3},
    seed=0,
)


def test_a_key_is_the_same_everywhere_and_always() -> None:
    # Written down: if this changes, every ledger in the world loses its runs. Raise SCHEMA and say so in the changelog.
    assert IDENTITY.key() == "6655b82776614a209672"


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": "search"},
        {"task": "digits/other"},
        {"data": "e" * 64},
        {"protocol": "digits@2"},
        {"methods": (MethodSpec(name="lora", fields={"rank": 4, "targets": ["q", "v"]}),)},
        {"methods": (MethodSpec(name="ssf"),)},
        {"methods": (*IDENTITY.methods, MethodSpec(name="ssf"))},
        {"backbone": "pocket_swin"},
        {"weights": "x" * 64},
        {"optimisation": {"epochs": 9, "lr": 1e-3}},
        {"seed": 1},
        {"numerics": Numerics(device="cuda")},
        {"numerics": Numerics(precision="bf16")},
    ],
    ids=str,
)
def test_whatever_changes_a_number_changes_the_key(change: dict[str, object]) -> None:
    assert IDENTITY.model_copy(update=change).key() != IDENTITY.key()


def test_order_and_spelling_of_numbers_do_not_change_the_key() -> None:
    same = IDENTITY.model_copy(update={"optimisation": {"lr": 0.001, "epochs": 8.0}})
    assert same.key() == IDENTITY.key()


def test_true_is_not_one() -> None:
    assert canonical({"a": True}) != canonical({"a": 1})


def test_what_was_read_back_has_the_same_key() -> None:
    assert Identity.model_validate_json(IDENTITY.model_dump_json()).key() == IDENTITY.key()


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), object(), {1: 2}, b"bytes"],
    ids=["nan", "infinity", "object", "mapping", "bytes"],
)
def test_what_has_no_canonical_text_is_refused(value: object) -> None:
    with pytest.raises(NotHashable, match="identity"):
        canonical({"field": value})


def test_a_default_that_depends_on_the_backbone_is_stated_in_the_key() -> None:
    """Stored runs of plain LoRA have q and v among their fields, and stay the same runs."""
    from vpeft.bench.trainer import VpeftEngine

    resolved = VpeftEngine(accelerated=False).resolve(MethodSpec(name="lora"), "pocket_vit")
    assert resolved.fields["targets"] == ["q", "v"]


def test_another_name_of_a_method_is_the_same_run() -> None:
    from vpeft.bench.trainer import VpeftEngine

    engine = VpeftEngine(accelerated=False)
    assert engine.resolve(MethodSpec(name="ln_tuning"), "pocket_vit") == engine.resolve(
        MethodSpec(name="ln_tune"), "pocket_vit"
    )
