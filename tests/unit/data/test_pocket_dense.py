"""The offline sets for dense prediction: they are what their digests say, and masks, boxes and depth agree."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vpeft.data.config import DataConfig
from vpeft.data.pocket_dense import SIZES, DensePictures, digits, land, pocket_dense_sets, scenes
from vpeft.data.pocket_dense.canvas import Patch, all_seen, resample, visible
from vpeft.data.pocket_dense.dense_set import ABSENT, SIDE, digest, stored_digests
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import sources, targets_in, with_its_target

NAMES = tuple(pocket_dense_sets())
WITH_OBJECTS = tuple(name for name, one in pocket_dense_sets().items() if one.object_labels)


@cache
def _few(name: str, split: str = "train", seed: int = 0) -> DensePictures:
    return pocket_dense_sets()[name].draw(split, 40, np.random.Generator(np.random.PCG64(seed)))


def test_three_sets_with_their_sizes() -> None:
    assert NAMES == ("digits", "land", "scenes")
    assert SIZES == {"train": 400, "val": 200, "test": 400}
    assert [one.has_depth for one in pocket_dense_sets().values()] == [False, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_masks(name: str) -> None:
    one, few = pocket_dense_sets()[name], _few(name)
    assert few.images.shape == (40, 128, 128, 3)
    assert few.images.dtype == few.mask.dtype == np.uint8
    assert few.mask.shape == (40, 128, 128)
    # every class is seen, and no other; lakes that the picture does not show count nowhere
    uncounted = {land.UNSEEN} if name == "land" else set()
    assert set(np.unique(few.mask)) == set(range(len(one.mask_labels))) | uncounted
    assert len({image.tobytes() for image in few.images}) == 40
    again = one.draw("train", 40, np.random.Generator(np.random.PCG64(0)))
    assert digest(again) == digest(few)
    assert digest(_few(name, seed=1)) != digest(few)


@pytest.mark.parametrize("name", NAMES)
def test_every_split_has_a_digest_of_its_own(name: str) -> None:
    stored = stored_digests()[name]
    assert set(stored) == set(SIZES)
    assert len(set(stored.values())) == 3


def test_a_digest_tells_every_array() -> None:
    few = _few("scenes")
    for name, array in few.arrays().items():
        other = array.copy()
        other.flat[5] ^= 1
        assert digest(replace(few, **{name: other})) != digest(few), name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_sets_are_what_their_digests_say(name: str) -> None:
    pocket_dense_sets()[name].verify()


def test_a_difference_names_the_split() -> None:
    with pytest.raises(DataError, match="'train' of pocket-dense/land"):
        replace(pocket_dense_sets()["land"], draw=lambda split, count, rng: _few("land")).verify()


@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_boxes_masks_and_classes_of_pixels_agree(name: str) -> None:
    """The box is the tightest around the visible mask, masks do not overlap, and the semantic mask is their union."""
    one, few = pocket_dense_sets()[name], _few(name)
    stuff = len(one.mask_labels) - len(one.object_labels)
    for index in range(len(few)):
        claimed = np.zeros((SIDE, SIDE), np.int64)
        for thing in few.objects(index):
            x0, y0, x1, y1 = thing.box
            inside = np.zeros((SIDE, SIDE), bool)
            inside[y0:y1, x0:x1] = True
            assert not (thing.mask & ~inside).any()
            cut = thing.mask[y0:y1, x0:x1]
            assert cut[0].any() and cut[-1].any() and cut[:, 0].any() and cut[:, -1].any()
            assert one.mask_labels[thing.label + stuff] == one.object_labels[thing.label]
            assert (few.mask[index][thing.mask] == thing.label + stuff).all()
            claimed += thing.mask
        assert claimed.max(initial=0) <= 1
        assert ((few.mask[index] >= stuff) == (claimed == 1)).all()


@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_some_objects_hide_parts_of_others_and_none_is_lost(name: str) -> None:
    few = _few(name)
    counts = [len(few.objects(index)) for index in range(len(few))]
    assert few.classes is not None and few.instances is not None
    assert counts == [(row != ABSENT).sum() for row in few.classes]
    assert min(counts) >= 1
    assert max(counts) >= {"digits": digits.MOST, "scenes": 6}[name]
    assert min(int(thing.mask.sum()) for index in range(len(few)) for thing in few.objects(index)) >= 16


def test_splits_of_digits_share_no_digit_and_no_part_of_a_photograph() -> None:
    chosen = [set(range(*digits.RANGES[split])) for split in SIZES]
    cells = [set(digits.CELLS[split]) for split in SIZES]
    for parts in (chosen, cells):
        assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*cells) == set(range(digits.GRID[0] * digits.GRID[1]))


def test_digits_are_larger_than_a_patch_brighter_or_darker_than_the_ground_and_little_of_them_is_hidden() -> None:
    """What a detector on patches of 16 pixels can learn in a few hundred steps."""
    few = _few("digits")
    heights, differences = [], []
    for index in range(len(few)):
        grey = few.images[index].astype(np.float64).mean(2) / 255
        bare = few.mask[index] == 0
        for thing in few.objects(index):
            x0, y0, x1, y1 = thing.box
            heights.append(y1 - y0)
            around = bare[y0:y1, x0:x1]
            if around.any():
                differences.append(abs(grey[thing.mask].mean() - grey[y0:y1, x0:x1][around].mean()))
    assert np.percentile(heights, 10) > 24 and max(heights) > 60
    assert np.mean(differences) > 0.3
    there = digits.mnist()[0][:50]
    wide = digits._widened(there)
    assert ((wide > 0.5) >= (there > 0.5)).all()
    assert 1.3 < (wide > 0.5).sum() / (there > 0.5).sum() < 2.2


def test_no_pixel_of_the_earth_is_in_two_splits() -> None:
    blocks = {}
    for split, pool in land.crops().items():
        first = pool.places[:, :2] // land.BLOCK
        last = (pool.places[:, :2] + pool.places[:, 2:] - 1) // land.BLOCK
        assert (first == last).all()
        blocks[split] = set(map(tuple, first.tolist()))
        assert len(blocks[split]) > 15
    assert sum(map(len, blocks.values())) == len(set.union(*blocks.values()))


@pytest.mark.parametrize("side", land.CROPS)
def test_a_shown_pixel_of_the_earth_is_no_finer_than_the_map_and_names_the_cell_at_its_centre(side: int) -> None:
    minutes = side * 4 / SIDE
    assert minutes >= 2.5
    pool = land.crops()["train"]
    row, column = pool.places[pool.places[:, 2] == side][7, :2].tolist()
    classes = land._earth()[1]
    found = land.class_map(row, column, side)
    for y, x in ((0, 0), (5, 100), (64, 63), (127, 127)):
        north = (row * 4 + (y + 0.5) * minutes) / 2.5
        east = (column * 4 + (x + 0.5) * minutes) / 2.5
        assert found[y, x] == classes[int(north), int(east)]


def test_well_known_places_are_land_lake_and_sea() -> None:
    """Degrees north and east of the middle of Lake Victoria, of the Sahara, and of the Bay of Bengal."""
    classes = land._earth()[1]
    for label, north, east in (("lake", -1.0, 33.0), ("land", 23.0, 10.0), ("sea", 15.0, 88.0)):
        found = classes[int((90 - north) * 24), int((east + 180) * 24)]
        assert land.LABELS[found] == label


def test_depth_follows_from_the_camera() -> None:
    """Where a row shows the bare floor, all of it is equally far; and a row further up is further away."""
    few = _few("scenes")
    assert few.depth is not None and few.depth.dtype == np.uint16
    for depth, mask in zip(few.depth.astype(np.int64), few.mask, strict=True):
        floor = {row: depth[row][mask[row] == 0] for row in range(SIDE) if (mask[row] == 0).any()}
        assert all(np.ptp(values) == 0 for values in floor.values())
        # Z = focal * eye / (row - horizon): 1 / Z is a straight line over the rows
        rows, inverse = np.array(list(floor)), np.array([1000 / values[0] for values in floor.values()])
        slope, start = np.polyfit(rows, inverse, 1)
        assert slope > 0
        assert np.allclose(slope * rows + start, inverse, rtol=1e-3)
        wall = depth[mask == 1]
        assert np.ptp(wall) == 0
        assert wall[0] >= depth.max()


def test_what_stands_nearer_hides_what_is_behind() -> None:
    """Each thing stands before the floor that it hides: its depth is less than that of the floor in the same row."""
    few = _few("scenes")
    assert few.depth is not None
    for index in range(len(few)):
        depth, mask = few.depth[index].astype(np.int64), few.mask[index]
        for thing in few.objects(index):
            for row in np.flatnonzero(thing.mask.any(1)).tolist():
                bare = depth[row][mask[row] == 0]
                if len(bare):
                    # a pixel's width of tolerance where a thing touches the floor
                    assert depth[row][thing.mask[row]].min() <= bare[0] * 1.04


def test_the_size_of_a_thing_falls_with_its_distance() -> None:
    hall = scenes._Hall(horizon=40, aim=64, eye=1.5, wall=13, light=0)
    areas = []
    for z in (3.0, 6.0, 12.0):
        thing = scenes._ball(0.0, z, hall, np.random.Generator(np.random.PCG64(3)))
        patch = scenes._patch(thing, hall, np.ones(3))
        assert patch is not None and patch.depth is not None
        assert patch.depth[patch.mask].max() < z
        areas.append(int(patch.mask.sum()))
    assert areas[0] / areas[1] == pytest.approx(4, rel=0.1)
    assert areas[1] / areas[2] == pytest.approx(4, rel=0.15)


def test_later_patches_hide_earlier_ones_and_the_hidden_are_left_out() -> None:
    ink = np.ones(3)
    below, above = Patch(10, 10, np.ones((10, 10)), ink), Patch(10, 10, np.ones((10, 8)), ink)
    seen = visible([below, above])
    assert (seen == 1).sum() == 20
    assert (seen == 2).sum() == 80
    assert all_seen([below, above], least_share=0.1, least_pixels=1) == [below, above]
    assert all_seen([below, above], least_share=0.3, least_pixels=1) == [above]
    assert all_seen([below, above], least_share=0.1, least_pixels=30) == [above]


def test_a_patch_of_an_image_is_resampled_about_the_centres_of_its_pixels() -> None:
    ramp = np.repeat(np.arange(256.0)[None, :, None], 256, 0).repeat(3, 2)
    found = resample(ramp, 0, 0, 256, 256)
    assert np.allclose(found[3, :, 0], np.arange(128) * 2 + 0.5)
    same = resample(ramp, 0, 64, 128, 128)
    assert np.allclose(same[:, :, 1], ramp[:128, 64:192, 1])


def test_cache_is_used_and_a_damaged_file_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    one = pocket_dense_sets()["land"]
    first = one.load("val")
    (kept,) = (tmp_path / "pocket-dense").iterdir()
    assert digest(first) == stored_digests()["land"]["val"]
    monkeypatch.setattr(type(one), "generate", lambda *_: pytest.fail("made again"))
    assert digest(one.load("val")) == digest(first)
    monkeypatch.undo()
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    kept.write_bytes(kept.read_bytes()[:1000])
    assert digest(one.load("val")) == digest(first)


def test_a_missing_package_and_an_unknown_split_are_one_sentence() -> None:
    one = pocket_dense_sets()["digits"]
    with pytest.raises(DataError, match=r'needs no_such_package.*pip install "vpeft\[bench\]"'):
        replace(one, needs=("no_such_package",)).generate("train")
    with pytest.raises(DataError, match="no split 'all'"):
        one.load("all")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("land", ("mask",)),
        ("digits", ("objects", "mask", "saliency", "edges")),
        ("scenes", ("objects", "mask", "depth", "normals", "saliency", "edges")),
    ],
)
def test_a_set_gives_every_target_that_it_has_and_refuses_others(name: str, kinds: tuple[str, ...]) -> None:
    source = sources()["pocket-dense"]
    plain = DataConfig(source=f"pocket-dense/{name}")
    assert targets_in(source, plain) == kinds
    assert with_its_target(plain).target == kinds[0]
    for kind in {"objects", "mask", "depth"} - set(kinds):
        with pytest.raises(DataError, match=rf"pocket-dense/{name} has no {kind}; it has {', '.join(kinds)}"):
            source.read(plain.model_copy(update={"target": kind}))


def test_items_carry_objects_masks_and_depth_of_one_picture() -> None:
    pictures = pocket_dense_sets()["scenes"].load("val")
    read = {}
    for kind in ("objects", "mask", "depth"):
        listing = sources()["pocket-dense"].read(DataConfig(source="pocket-dense/scenes", target=kind))
        assert {split: len(items) for split, items in listing.splits.items()} == SIZES
        read[kind] = listing.splits["val"][3].target
        assert tuple(listing.labels or ()) == {"objects": scenes.THINGS, "mask": ("floor", "wall", *scenes.THINGS)}.get(
            kind, ("depth",)
        )
    seen = pictures.objects(3)
    assert read["objects"].labels == tuple(scenes.THINGS[thing.label] for thing in seen)
    assert read["objects"].boxes.tolist() == [list(map(float, thing.box)) for thing in seen]
    for shape, thing in zip(read["objects"].shapes, seen, strict=True):
        assert (shape.mask(SIDE, SIDE) == thing.mask).all()
    assert (read["mask"].numbers().numpy() == pictures.mask[3]).all()
    assert pictures.depth is not None
    assert np.allclose(read["depth"].values().numpy(), pictures.depth[3] / 1000)
