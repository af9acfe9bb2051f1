"""The offline sets for applications: scans of one channel and twelve bits, scores of photographs, a catalogue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.pocket_applications import BRIGHTEST, FINDINGS, SCANS, SPOILT, _spoilt, application_sets
from vpeft.data.pocket_dense import pocket_dense_sets
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import sources, targets_in


def test_scans_have_twelve_bits_in_sixteen_and_rare_findings() -> None:
    images, findings = application_sets()["scans"].split("train")
    assert images.dtype == np.uint16 and images.shape == (SCANS["train"], 64, 64)
    assert 2000 < images.max() <= BRIGHTEST
    counted = Counter(findings)
    assert [counted[name] for name in FINDINGS] == [144, 53, 31, 12]
    others, _ = application_sets()["scans"].split("test")
    assert not {one.tobytes() for one in images} & {one.tobytes() for one in others}


def test_scans_are_read_as_one_channel_in_the_stated_window() -> None:
    data = open_data(DataConfig(source="pocket-applications/scans", channels=1, window=(0, BRIGHTEST), check="none"))
    images, findings = application_sets()["scans"].split("val")
    assert data.val is not None and data.labels == list(FINDINGS)
    image, target = data.val[5]
    assert image.shape == (1, 64, 64) and FINDINGS[target] == findings[5]
    assert torch.allclose(image[0].double(), torch.from_numpy(images[5] / BRIGHTEST), atol=1e-6)


def test_plain_reading_says_that_the_scans_come_out_dark() -> None:
    """Four of sixteen bits are empty: without a window the images would be nearly black, and nobody would know."""
    with pytest.warns(UserWarning, match="window"):
        open_data(DataConfig(source="pocket-applications/scans"))


@pytest.mark.parametrize("how", SPOILT)
def test_a_photograph_is_spoilt_the_more_the_lower_its_score(how: str) -> None:
    drawn = np.random.default_rng(0)
    picture = drawn.random((64, 64, 3))
    away = [
        float(np.abs(_spoilt(picture, how, much, np.random.default_rng(1)) - picture).mean())
        for much in (0.0, 0.2, 0.5, 0.8, 1.0)
    ]
    assert away[0] < 1e-9 and away == sorted(away) and away[-1] > 0.1


def test_a_catalogue_names_what_a_picture_shows() -> None:
    data = open_data(DataConfig(source="pocket-applications/catalogue", target="labels", check="none"))
    scenes = pocket_dense_sets()["scenes"]
    assert data.labels == list(scenes.object_labels) and data.test is not None
    pictures = scenes.load("test")
    for place in (0, 7):
        there = {scenes.object_labels[thing.label] for thing in pictures.objects(place)}
        image, target = data.test[place]
        assert {name for name, on in zip(data.labels, target.tolist(), strict=True) if on} == there
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pictures.images[place]))


def test_a_set_has_one_kind_of_target(tmp_path: Path) -> None:
    source = sources()["pocket-applications"]
    assert sorted(source.names()) == [f"pocket-applications/{name}" for name in ("catalogue", "quality", "scans")]
    assert targets_in(source, DataConfig(source="pocket-applications/quality")) == ("values",)
    with pytest.raises(DataError, match=r"quality has no label; it has values"):
        source.read(DataConfig(source="pocket-applications/quality"))
    with pytest.raises(DataError, match=r"Did you mean 'scans'"):
        source.read(DataConfig(source="pocket-applications/scan"))
