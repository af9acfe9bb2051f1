"""Protocols do not change, and their choice is on the validation split."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vpeft.bench.key import digest
from vpeft.bench.protocol import PROTOCOLS, Grid, Point, Protocol, SearchFailed, UnknownProtocol, choose, protocol
from vpeft.bench.record import Failure, RecordedScores, RunRecord, State
from vpeft.bench.trainer import NotMeasured, require_measured
from vpeft.data.augmentation import policies
from vpeft.data.preprocessing import Preprocessing
from vpeft.method_spec import MethodSpec
from vpeft.tasks.classification import Classification
from vpeft.training.optimisation import MOVED, Optimisation

from .test_ledger import a_record

# A protocol whose digest differs from the one written here was changed. Give it a new version instead.
DIGESTS = {
    "digits@1": "c545347870c4",
    "digits-quick@1": "dc169f55c34e",
    "digits-smoke@1": "3d73866a0bb2",
    "digits-demo@1": "6aea12cc7111",
    "pocket@1": "8c747973e081",
    "pocket-quick@1": "35eecfd175f3",
    "pocket-one-rate@1": "5035d959b5d5",
    "pocket-demo@1": "be7069a55f90",
    "pocket-smoke@1": "abd865634306",
    "pocket-dense@1": "ac83abd6ef1c",
    "pocket-dense-quick@1": "ce3cf3c51077",
    "pocket-dense-demo@1": "c343b19be0dc",
    "pocket-dense-smoke@1": "0a6187c9f458",
    "pocket-multi@1": "b588ebb8f88a",
    "pocket-multi-quick@1": "cccf1bce25cb",
    "pocket-multi-smoke@1": "70bcdaf1fce0",
    "pocket-video@1": "518fa4799e8f",
    "pocket-video-quick@1": "3c0302fde099",
    "pocket-video-smoke@1": "eac0c5e779df",
    "vtab1k@1": "a14839cdbc2d",
    "vtab1k-smoke@1": "e5b29895743b",
    "vtab1k@v-petl": "2bc98e69ebb9",
    "vtab1k@noah": "31a5589c8d28",
    "vtab1k@vpt": "cb64165f601e",
    "vtab1k@osu": "02900a4f05db",
    "fgvc@1": "f0f0741775e0",
    "fgvc-smoke@1": "6d726fabff3a",
    "fgvc@v-petl": "7948fa3d3fed",
    "fgvc-few-shot-smoke@1": "533f3c133879",
    "fgvc-few-shot@noah": "2c2d57650890",
    "cifar@1": "4ce75160619b",
    "cifar-smoke@1": "07b359a40842",
    "imagenet-shift@1": "3f2f38a21969",
    "imagenet-shift-smoke@1": "d70e0d82c069",
    "folder@1": "8ba9334b76a1",
    "folder-quick@1": "fc452467591a",
}


def test_protocols_do_not_change() -> None:
    assert {rules.id: digest(rules.model_dump(exclude={"title"}), 12) for rules in PROTOCOLS.values()} == DIGESTS


@pytest.mark.parametrize("rules", PROTOCOLS.values(), ids=lambda rules: rules.id)
def test_a_protocol_states_every_setting_that_numbers_depend_on(rules: Protocol) -> None:
    # lr, weight decay and seed come from the grid and the run; the device, its arithmetic and how often a run looks at
    # a validation split that decides nothing are not the protocol's. Augmentation is a setting of the data, smoothing
    # and mixup are options of the task.
    elsewhere = {"lr", "weight_decay", "seed", "device", "precision", "deterministic", "validate_every"}
    # How images are shown, CutMix and an optimiser other than AdamW are stated where a protocol has them.
    stated = set(rules.optimisation) - {"augmentation", "preprocessing", "cutmix", "optimiser", *MOVED}
    assert stated == set(Optimisation().numerics()) - elsewhere


@pytest.mark.parametrize("rules", PROTOCOLS.values(), ids=lambda rules: rules.id)
def test_what_a_protocol_states_is_understood(rules: Protocol) -> None:
    """By the optimisation, the task, the augmentation and the preprocessing, for each task of its suite."""
    for task in ("", *rules.tasks):
        settings = rules.settings_for(task)
        assert settings.pop("augmentation") in policies()
        Preprocessing.model_validate({**Preprocessing().model_dump(), **settings.pop("preprocessing", {})})
        options = {name: settings.pop(name) for name in list(settings) if name not in Optimisation.model_fields}
        Classification(**options)
        for point in rules.grid_for([], task).points():
            Optimisation.model_validate({**settings, **point.model_dump()})


def test_a_protocol_of_a_publication_says_what_differs() -> None:
    for rules in PROTOCOLS.values():
        assert isinstance(rules.version, int) != bool(rules.differs)


def test_a_task_states_no_setting_that_the_protocol_lacks() -> None:
    rules = protocol("vtab1k@noah").model_dump()
    rules["tasks"] = {"cifar": {"optimisation": {"epoch": 3}}}
    with pytest.raises(ValueError, match="the settings epoch, which the protocol does not state"):
        Protocol.model_validate(rules)


def test_an_unknown_protocol_is_named_with_its_nearest() -> None:
    with pytest.raises(UnknownProtocol, match="Did you mean 'pocket@1'"):
        protocol("pocket@2")


def test_methods_that_move_whole_weights_have_their_own_rates() -> None:
    rules = protocol("pocket@1")
    common, own = rules.grid_for([MethodSpec(name="lora")]), rules.grid_for([MethodSpec(name="full_finetuning")])
    assert max(own.lr) < max(common.lr) / 5
    assert len(own.points()) == len(common.points())


def test_a_protocol_that_searches_does_not_validate_twice() -> None:
    assert "validates" not in protocol("pocket@1").model_dump()
    assert protocol("pocket-dense-demo@1").model_dump()["validates"] is True
    with pytest.raises(ValueError, match="scores its search runs on the validation split already"):
        Protocol.model_validate({**protocol("digits@1").model_dump(), "validates": True})


def test_a_protocol_searches_for_all_or_for_none() -> None:
    rules = protocol("digits@1").model_dump()
    rules["exceptions"] = {"full_finetuning": {"lr": (1e-4,), "weight_decay": (0.0,)}}
    with pytest.raises(ValueError, match="no fair comparison"):
        Protocol.model_validate(rules)


def searched(
    point: Point, value: float | None, loss: float | None = None, split: str = "val"
) -> tuple[Point, RunRecord]:
    if value is None:
        return point, a_record(state=State.failed, error=Failure(kind="E", message="boom"))
    values = {"top1": value, **({} if loss is None else {"loss": loss})}
    scores = RecordedScores(split=split, values=values, leading="top1")
    return point, a_record(state=State.done, scores=scores)


A, B, C = *Grid(lr=(3e-3, 1e-3), weight_decay=(0.0,)).points(), Point(lr=1e-2, weight_decay=0.0)


def test_the_best_validation_score_wins() -> None:
    assert (A.lr, B.lr) == (1e-3, 3e-3)
    chosen = choose([searched(A, 0.5), searched(B, 0.7), searched(C, 0.6)])
    assert (chosen.lr, chosen.validation) == (B.lr, 0.7)
    assert "3 points" in chosen.rule


def test_the_direction_is_the_metrics() -> None:
    def erring(point: Point, value: float) -> tuple[Point, RunRecord]:
        scores = RecordedScores(split="val", values={"mae": value}, leading="mae", higher_is_better=False)
        return point, a_record(state=State.done, scores=scores)

    chosen = choose([erring(A, 0.5), erring(B, 0.2), erring(C, 0.3)])
    assert (chosen.lr, chosen.validation) == (B.lr, 0.2)
    assert "best validation mae of 3 points" in chosen.rule
    with pytest.raises(ValidationError, match="leading value"):
        erring(A, float("nan"))  # no record holds it


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_without_a_finite_leading_value_fails_and_is_passed_over(value: float) -> None:
    with pytest.raises(NotMeasured, match="mae on the val split is .* cannot be compared"):
        require_measured("mae", value, "val")
    require_measured("mae", 0.5, "val")
    lost = a_record(state=State.failed, error=Failure(kind="NotMeasured", message="mae"))
    assert choose([(A, lost), searched(B, 0.2)]).lr == B.lr


def test_ties_go_to_the_lower_loss_then_to_the_smaller_rate() -> None:
    assert choose([searched(A, 0.5, 2.0), searched(B, 0.5, 1.0)]).lr == B.lr
    assert choose([searched(A, 0.5, 1.0), searched(B, 0.5, 1.0)]).lr == A.lr


def test_failed_points_are_passed_over_but_not_all_of_them() -> None:
    assert choose([searched(A, None), searched(B, 0.1), (C, None)]).lr == B.lr
    with pytest.raises(SearchFailed, match=r"None of the 2 points.*boom"):
        choose([searched(A, None), searched(B, None)])


def test_a_test_score_is_never_chosen_on() -> None:
    with pytest.raises(SearchFailed, match="validation split only"):
        choose([searched(A, 0.5, split="test")])
