"""The offline sets for retrieval: their kinds, that they are drawn alike everywhere, and how they are split."""

from __future__ import annotations

import numpy as np
import pytest

from vpeft.data import pocket_retrieval
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.drawn_splits import read_digests
from vpeft.data.pocket_retrieval import DIGESTS, EACH, SETS, WHOLE, digest, drawn, labels_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import find_source


def test_kinds_have_names_of_their_own() -> None:
    assert {name: len(labels_of(name)) for name in SETS} == {"emoji": 62, "symbols": 105}
    for name in SETS:
        assert len(set(labels_of(name))) == len(SETS[name])
    assert labels_of("emoji")[0] == "grinning face"
    assert set(read_digests(DIGESTS)) == set(SETS)


def test_the_first_two_kinds_are_drawn_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_retrieval, "SETS", {"emoji": SETS["emoji"][:2]})
    images = drawn("emoji")
    assert images.shape == (2 * EACH, 64, 64, 3)
    assert digest(images) == "8bfddcdcc62dcf71936e48f1043991abda60721199e2bcc9bf0684dfb4c8ab15"
    assert len({image.tobytes() for image in images}) == 2 * EACH


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_whole_set_is_drawn_as_ever(name: str) -> None:
    assert digest(drawn(name)) == read_digests(DIGESTS)[name][WHOLE]


def test_half_of_the_kinds_train(monkeypatch: pytest.MonkeyPatch) -> None:
    few = SETS["symbols"][:6]
    monkeypatch.setattr(pocket_retrieval, "SETS", {"symbols": few})
    plain = np.arange(6 * EACH, dtype=np.uint8).repeat(64 * 64 * 3).reshape(-1, 64, 64, 3)
    monkeypatch.setattr(pocket_retrieval, "pictures", lambda _: plain)
    config = DataConfig(source="pocket-retrieval/symbols", split_by="classes", test_fraction=0.5, val_fraction=0)
    assert find_source(config).name == "pocket_retrieval"
    data = open_data(config)
    labels = labels_of("symbols")
    assert data.test is not None
    assert data.train.labels_present == labels[:3] and data.test.labels_present == labels[3:]
    assert len(data.train) == len(data.test) == 3 * EACH
    assert data.train.items[EACH].name == f"{labels[1]}/00"


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(DataError, match="emoji"):
        open_data(DataConfig(source="pocket-retrieval/emojis"))
