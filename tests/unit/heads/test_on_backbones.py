"""What a head finds on a backbone: places, widths, and a sentence where it finds none."""

from __future__ import annotations

from typing import Any

import pytest
from tests.models import tiny_convnext, tiny_swin, tiny_vit

from vpeft import describe
from vpeft.backbones.points import MissingPlace
from vpeft.head import BadHead, get_head, make_head
from vpeft.method_spec import BadMethodSpec


def _settings(text: str, model: Any, width: int = 48) -> dict[str, Any]:
    return make_head(text, describe(model), width, 5).settings


def test_heads_on_the_pooled_feature_take_the_width_that_the_methods_leave() -> None:
    for text in ("linear", "mlp", "cosine", "batchnorm_linear"):
        head = make_head(text, describe(tiny_vit()), 77, 5)
        assert (head.settings["width"], head.settings["outputs"], head.reads) == (77, 5, ("outlet",))


def test_options_in_text() -> None:
    found = _settings("mlp(hidden=9, activation=relu, layers=3)", tiny_vit())
    assert (found["hidden"], found["activation"], found["layers"]) == (9, "relu", 3)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("mlp(hiden=9)", BadHead, "no option 'hiden'. Did you mean 'hidden'"),
        ("mlp(width=9)", BadHead, "no option 'width'"),
        ("mlp(hidden=wide)", BadHead, "does not take"),
        ("linera", BadHead, "'linear'"),
        ("attentive(pooled_width=3)", BadHead, "no option 'pooled_width'"),
        ("attentive(place=blocks.7)", MissingPlace, "no place 'blocks.7'"),
        ("attentive(place=outlet)", MissingPlace, "outlet of .* does not give tokens"),
        ("linear_map(place=outlet)", MissingPlace, "does not give a map"),
        ("last_k(k=9)", MissingPlace, "reads the last 9 blocks, and .* has 3"),
        ("last_k(k=0)", BadHead, "from 1 on"),
        ("mlp(9)", BadMethodSpec, "field=value"),
    ],
)
def test_refusals(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        _settings(text, tiny_vit())


@pytest.mark.parametrize(
    ("model", "place", "width"), [(tiny_vit, "norm", 48), (tiny_swin, "norm", 48), (tiny_convnext, "blocks.4", 48)]
)
def test_the_last_tokens_and_maps(model: Any, place: str, width: int) -> None:
    """ConvNeXt's norm comes after the pooling, so the last block is read."""
    attentive = _settings("attentive(queries=2)", model(), 30)
    assert (attentive["place"], attentive["width"], attentive["pooled_width"]) == (place, width, 30)
    on_map = _settings("linear_map", model(), 30)
    assert (on_map["place"], on_map["width"], on_map["outputs"]) == (place, width, 5)


def test_a_named_place() -> None:
    found = _settings("attentive(place=blocks.1)", tiny_swin())
    assert (found["place"], found["width"]) == ("blocks.1", 24)


@pytest.mark.parametrize(
    ("model", "text", "widths", "places", "pooling"),
    [
        (tiny_vit, "last_k", [48] * 3, ["blocks.0", "blocks.1", "blocks.2"], "both"),
        (tiny_vit, "last_k(k=1, pooling=token)", [48], ["blocks.2"], "token"),
        (tiny_swin, "last_k(k=3)", [24, 48, 48], ["blocks.1", "blocks.2", "blocks.3"], "mean"),
        (tiny_convnext, "last_k(k=2)", [32, 48], ["blocks.3", "blocks.4"], "mean"),
    ],
)
def test_the_last_blocks(model: Any, text: str, widths: list[int], places: list[str], pooling: str) -> None:
    found = _settings(text, model())
    assert (found["widths"], found["places"], found["pooling"]) == (widths, places, pooling)


def test_maps_have_no_class_token() -> None:
    with pytest.raises(MissingPlace, match="no class token"):
        _settings("last_k(pooling=both)", tiny_swin())


def test_options_are_what_a_user_may_set() -> None:
    """Each is understood on a backbone; what is found there, places and widths, is no option."""
    values = {"k": 2, "pooling": "mean", "place": "blocks.1", "activation": "relu", "learn_scale": False, "heads": 2}
    for kind in ("linear", "mlp", "cosine", "batchnorm_linear", "attentive", "last_k", "linear_map", "coral"):
        head = get_head(kind)
        assert not {"width", "widths", "outputs", "places", "pooled_width"} & set(head.options)
        for name in head.options:
            value = values.get(name, 0.5 if "dropout" in name or name in ("eps", "scale") else 1)
            made = head.on(describe(tiny_vit()), 48, 5, **{name: value})
            assert made.kind == kind and (name == "k" or made.settings[name] == value)
    assert get_head("last_k").options == ("k", "pooling") and get_head("linear").options == ()
