"""Several maps of one image go through every change together; sources that give each kind give all at once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.joint import Scene, TurnAndZoom
from vpeft.data.joint_maps import MapLayer, MapsTransform, maps_transform
from vpeft.data.pocket_dense import scenes
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError
from vpeft.data.sources.pocket_dense import edges_of
from vpeft.data.targets.normals import NormalMap
from vpeft.tasks.depth import Depth
from vpeft.tasks.edges import Edges
from vpeft.tasks.multi_task import MultiTask
from vpeft.tasks.semantic_segmentation import SemanticSegmentation
from vpeft.tasks.surface_normals import SurfaceNormals

LAYERS = (MapLayer("mask", "classes"), MapLayer("depth", "depth"), MapLayer("normals", "vectors"))
PLAIN = Preprocessing(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)


def drawn() -> dict[str, torch.Tensor]:
    columns = torch.arange(16).expand(16, 16)
    vectors = torch.zeros(3, 16, 16)
    vectors[0], vectors[2] = 0.6, -0.8
    vectors[:, :2] = math.nan
    return {"mask": (columns >= 12).long(), "depth": 1.0 + columns.float(), "normals": vectors}


def picture() -> Image.Image:
    return Image.fromarray(np.repeat((np.arange(16, dtype=np.uint8) * 10)[None, :, None], 16, 0).repeat(3, 2))


def steps(*changes: object) -> MapsTransform:
    return MapsTransform(changes, 3, (0.0,) * 3, (1.0,) * 3, None, LAYERS)  # type: ignore[arg-type]


def test_a_mirror_turns_what_points_to_the_right() -> None:
    image, target = steps(lambda scene: scene.flipped())(picture(), drawn())
    assert torch.allclose(image[0] * 25.5, torch.arange(15, -1, -1).float().expand(16, 16), atol=1e-3)
    assert torch.equal(target["mask"], drawn()["mask"].flip(-1))
    assert torch.equal(target["depth"], drawn()["depth"].flip(-1))
    assert torch.allclose(target["normals"][:, 2:, 0], torch.tensor([-0.6, 0.0, -0.8])[:, None])
    assert bool(target["normals"][:, :2].isnan().all())


def test_a_quarter_turn_turns_directions_with_the_picture() -> None:
    turned, target = steps(lambda scene: scene.turned(90.0, 1.0))(picture(), drawn())
    # clockwise: what was on the left is at the top, and what pointed to the right points down
    inner = (turned[0] * 25.5)[1:-1, 1:-1]
    assert torch.allclose(inner, torch.arange(1.0, 15.0)[:, None].expand(14, 14), atol=0.15)  # in eight bits
    assert torch.equal(target["mask"], drawn()["mask"].T)
    known = torch.isfinite(target["normals"][0])
    assert int((~known).sum()) == 32
    expected = torch.tensor([0.0, -0.6, -0.8])[:, None]
    assert torch.allclose(target["normals"][:, known], expected.expand(3, int(known.sum())), atol=1e-6)


def test_zooming_brings_things_nearer_and_shrinking_leaves_a_rim_that_counts_nowhere() -> None:
    _, near = steps(lambda scene: scene.turned(0.0, 2.0))(picture(), drawn())
    assert float(near["depth"].max()) <= 13 / 2
    small, far = steps(lambda scene: scene.turned(0.0, 0.5))(picture(), drawn())
    assert bool((far["mask"][0] == 255).all()) and bool(far["depth"][0].isnan().all())
    assert bool((small[:, 0] == 0).all())
    assert set(far["mask"].unique().tolist()) == {0, 1, 255}
    assert float(far["depth"][8, 8]) > 2 * 8


def test_one_map_turns_too_and_objects_do_not() -> None:
    scene = Scene(picture(), map=drawn()["mask"]).turned(30.0, 1.0)
    assert scene.map is not None and scene.map.dtype == torch.int64
    assert set(scene.map.unique().tolist()) == {0, 1, 255}
    from vpeft.data.joint import corners

    with pytest.raises(DataError, match="boxes of objects do not turn"):
        Scene(picture(), corners(torch.tensor([[0.0, 0, 4, 4]]), (16, 16))).turned(30.0, 1.0)


def test_changes_are_named_and_keep_all_maps_together() -> None:
    made = maps_transform(PLAIN, True, LAYERS, augment="flip+turn+crop")
    assert any(isinstance(step, TurnAndZoom) for step in made.steps)
    torch.manual_seed(1)
    for _ in range(5):
        image, target = made(picture(), drawn())
        assert image.shape == (3, 16, 16)
        counts = target["mask"] != 255
        # a pixel's class, depth and colour say the same column, mirrored or not
        depth = target["depth"]
        assert torch.equal(torch.isfinite(depth), counts)


def test_several_kinds_of_a_folder_are_read_together(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks", "normals", "edges"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number in range(4):
            name = f"{number}.png"
            rng = np.random.default_rng(number + 10 * (split == "val"))
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / split / "images" / name)
            Image.fromarray((rng.random((16, 16)) > 0.5).astype(np.uint8)).save(tmp_path / split / "masks" / name)
            up = np.full((16, 16, 3), (128, 255, 128), np.uint8)
            up[0] = 128
            Image.fromarray(up).save(tmp_path / split / "normals" / name)
            if number or split == "val":
                edge = np.zeros((16, 16), np.uint8)
                edge[3] = 255
                Image.fromarray(edge).save(tmp_path / split / "edges" / name)
    task = MultiTask(parts={"seg": SemanticSegmentation(), "up": SurfaceNormals(), "edge": Edges()})
    with pytest.warns(match="no mask|no edges|it has no"):
        data = open_data(DataConfig(source=str(tmp_path), target=task.target_kind)).prepared(PLAIN, task)
    assert len(data.train) == 3
    assert data.val is not None and len(data.val) == 4
    bound = task.bind(data.train)
    assert bound.parts["seg"].labels == ("0", "1")
    batch = bound.collate([data.train[0], data.train[1]])
    assert {name: tuple(one.shape) for name, one in batch.targets.items()} == {
        "seg": (2, 16, 16),
        "up": (2, 3, 16, 16),
        "edge": (2, 16, 16),
    }
    assert bool(batch.targets["up"][:, :, 0].isnan().all())
    assert float(batch.targets["up"][0, 1, 5, 5]) == pytest.approx(1.0, abs=1e-4)
    assert batch.targets["edge"].unique(return_counts=True)[1].tolist() == [2 * 240, 2 * 16]


def test_a_kind_that_is_no_map_or_that_the_source_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="label is no map"):
        open_data(DataConfig(source="pocket-dense/scenes", target="mask+label"))
    with pytest.raises(DataError, match="pocket-dense/land has no depth; it has mask"):
        open_data(DataConfig(source="pocket-dense/land", target="mask+depth"))


def test_normals_of_the_hall_fit_its_depth() -> None:
    rng = np.random.default_rng(3)
    state = rng.bit_generator.state
    pictures = scenes.draw("val", 2, rng)
    rng.bit_generator.state = state
    directions = scenes.normals("val", 2, rng)
    assert pictures.depth is not None and pictures.instances is not None
    made = NormalMap(_Stored(directions[0])).values()  # type: ignore[arg-type]
    floor = torch.from_numpy(pictures.mask[0] == 0)
    assert torch.allclose(made[:, floor], torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, int(floor.sum())))
    wall = torch.from_numpy(pictures.mask[0] == 1)
    assert torch.allclose(made[:, wall], torch.tensor([0.0, 0.0, -1.0])[:, None].expand(3, int(wall.sum())))
    assert float((made.norm(dim=0) - 1).abs().max()) < 1e-5


def test_the_normals_of_a_ball_are_those_of_its_surface() -> None:
    hall = scenes._Hall(horizon=40.0, aim=64.0, eye=1.5, wall=12.0, light=0.0)
    ball = scenes._ball(0.2, 5.0, hall, np.random.default_rng(0))
    rows, columns = np.mgrid[60:90, 50:90] + 0.5
    right, up = (columns - hall.aim) / scenes.FOCAL, (hall.horizon - rows) / scenes.FOCAL
    seen = ball.look(right, up)
    assert seen.normal is not None and seen.hit.sum() > 50
    # the form is drawn at the depth of its centre: a parallel projection there
    points = np.stack((right * 5.0, up * 5.0 + hall.eye, seen.depth), -1)
    across, along = np.gradient(points, axis=1), np.gradient(points, axis=0)
    normal = np.cross(across, along)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal *= np.sign(-normal[..., 2:3])
    inner = seen.hit & (-seen.normal[..., 2] > 0.5)
    assert np.abs(normal - seen.normal)[inner].max() < 0.08


def test_edges_are_where_neighbours_differ() -> None:
    mask, instances = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)
    mask[0, 2:] = 1
    instances[0, 0, 3] = 1
    assert edges_of(mask, instances)[0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_depth_shrinks_in_a_transform_of_its_own_too() -> None:
    transform = Depth(size=16, augment="zoom").transforms(PLAIN, "none", True)
    torch.manual_seed(0)
    seen = {round(float(transform(picture(), torch.full((16, 16), 6.0))[1].nanmean()), 3) for _ in range(12)}
    assert seen <= {6.0, 5.0, 4.0} and len(seen) > 1


class _Stored:
    """A picture of an array."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def stored(self) -> np.ndarray:
        return self.pixels
