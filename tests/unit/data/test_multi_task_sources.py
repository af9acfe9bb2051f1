"""PASCAL_MT and NYUD_MT in small: what is void, what counts as a person, where normals count, which split is which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.images import UnreadableImage
from vpeft.data.matlab_maps import PeopleParts, matlab_file
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.sources.pascal_mt import PARTS
from vpeft.data.sources.registry import find_source
from vpeft.tasks.depth import Depth
from vpeft.tasks.human_parts import HumanParts
from vpeft.tasks.multi_task import MultiTask
from vpeft.tasks.saliency import Saliency
from vpeft.tasks.semantic_segmentation import SemanticSegmentation
from vpeft.tasks.surface_normals import SurfaceNormals

SIDE = 12
# Most of the published classes are in none of the few pictures here.
pytestmark = pytest.mark.filterwarnings("ignore::vpeft.data.problems.DataWarning")


def saved(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def person(mask: np.ndarray, **parts: np.ndarray) -> tuple[object, ...]:
    """One object as PASCAL-Parts writes it: class, index, mask, parts."""
    kind = [("part_name", "O"), ("mask", "O")]
    listed = np.array([[(np.array([name]), part.astype(np.uint8)) for name, part in parts.items()]], dtype=kind)
    return ("person", 15, mask.astype(np.uint8), listed)


def save_anno(file: Path, objects: list[tuple[object, ...]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")]
    listed = np.empty((1, len(objects)), dtype=kind)
    for place, one in enumerate(objects):
        listed[0, place] = one
    whole = np.empty((1, 1), dtype=[("imname", "O"), ("objects", "O")])
    whole[0, 0] = ("x", listed)
    savemat(file, {"anno": whole})


def half(top: bool) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[: SIDE // 2] = top
    mask[SIDE // 2 :] = not top
    return mask


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, stems in (("train", ("2008_1", "2008_2")), ("val", ("2008_3",))):
        lists = tmp_path / "ImageSets" / "Context" / f"{split}.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("\n".join(stems) + "\n")
        for stem in stems:
            saved(tmp_path / "JPEGImages" / f"{stem}.jpg", rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8))
            classes = np.where(half(True), 15, 0).astype(np.uint8)
            classes[0, 0] = 255
            folder = "pascal-context" if stem == "2008_2" else "VOC12"
            saved(tmp_path / "semseg" / folder / f"{stem}.png", classes)
            grey = np.full((SIDE, SIDE), 127, np.uint8)
            grey[:, :3] = 128
            saved(tmp_path / "sal_distill" / f"{stem}.png", grey)
            saved(tmp_path / "normals_distill" / f"{stem}.png", np.full((SIDE, SIDE, 3), (128, 255, 127), np.uint8))
            context = tmp_path / "pascal-context" / "trainval" / f"{stem}.mat"
            context.parent.mkdir(parents=True, exist_ok=True)
            # grass (187) has no normals, a wall (440) has
            savemat(context, {"LabelMap": np.where(half(True), 187, 440).astype(np.uint16)})
            whole = np.ones((SIDE, SIDE), bool)
            there = [person(whole, head=half(True), lfoot=half(False), torso=np.eye(SIDE, dtype=bool))]
            save_anno(tmp_path / "human_parts" / f"{stem}.mat", [] if stem == "2008_2" else there)
    return tmp_path


def read(root: Path, task: MultiTask) -> tuple[MultiTask, object, object]:
    preprocessing = Preprocessing(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
    data = open_data(DataConfig(source=str(root), target=task.target_kind)).prepared(preprocessing, task)
    return task.bind(data.train), data.train, data.val


def test_pascal_mt(pascal: Path) -> None:
    parts = {"seg": SemanticSegmentation(), "body": HumanParts(), "sal": Saliency(), "up": SurfaceNormals()}
    task, train, val = read(pascal, MultiTask(parts=parts, size=SIDE, fit="squash"))
    assert [item.name for item in train.items] == ["JPEGImages/2008_1.jpg", "JPEGImages/2008_2.jpg"]
    assert len(val) == 1
    assert len(task.parts["seg"].labels) == 21
    assert task.parts["body"].labels == PARTS
    first, second = train[0].target, train[1].target
    assert first["mask"][0, 0] == 255 and first["mask"][0, 1] == 15 and first["mask"][-1, 0] == 0
    # the torso is drawn last, over head and foot; feet count as lower legs
    assert first["parts"][0, 0] == 2 and first["parts"][0, 1] == 1 and first["parts"][-1, 0] == 6
    assert bool((second["parts"] == 255).all())
    assert first["saliency"].sum() == 3 * SIDE
    assert bool(first["normals"][:, : SIDE // 2].isnan().all())
    seen = first["normals"][:, SIDE // 2 :]
    assert torch.allclose(seen.norm(dim=0), torch.ones(SIDE - SIDE // 2, SIDE), atol=1e-5)
    assert float(seen[1].min()) > 0.99


def test_edges_of_pascal_mt_lie_between_classes(pascal: Path) -> None:
    data = open_data(DataConfig(source=str(pascal), target="edges"))
    drawn = data.train[0].target
    assert drawn.sum(1).tolist() == [0] * 5 + [SIDE, SIDE] + [0] * 5


def test_nyud_mt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, stems in (("train", ("0001", "0002")), ("val", ("0003",))):
        (tmp_path / "gt_sets").mkdir(exist_ok=True)
        (tmp_path / "gt_sets" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            saved(tmp_path / "images" / f"{stem}.jpg", rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8))
            classes = np.where(half(True), 40, 1).astype(np.uint8)
            classes[0, 0] = 0
            saved(tmp_path / "segmentation" / f"{stem}.png", classes)
            depth = np.full((SIDE, SIDE), 2.5, np.float32)
            depth[0] = 0
            normals = np.zeros((SIDE, SIDE, 3), np.float32)
            normals[1:, :, 2] = -1.0
            edge = np.zeros((SIDE, SIDE), np.float32)
            edge[4] = 1
            for name, array in (("depth", depth), ("normals", normals), ("edge", edge)):
                (tmp_path / name).mkdir(exist_ok=True)
                np.save(tmp_path / name / f"{stem}.npy", array)
    parts = {"seg": SemanticSegmentation(), "far": Depth(), "up": SurfaceNormals()}
    task, train, val = read(tmp_path, MultiTask(parts=parts, size=SIDE, fit="squash"))
    assert (len(train), len(val), len(task.parts["seg"].labels)) == (2, 1, 40)
    target = train[0].target
    assert target["mask"][0, 0] == 255 and target["mask"][0, 1] == 39 and target["mask"][-1, 0] == 0
    assert bool(target["depth"][0].isnan().all()) and float(target["depth"][1:].min()) == 2.5
    assert bool(target["normals"][:, 0].isnan().all()) and float(target["normals"][2, 1:].max()) == -1.0
    edges = open_data(DataConfig(source=str(tmp_path), target="edges")).train[0].target
    assert edges.sum(1).tolist() == [SIDE if row == 4 else 0 for row in range(SIDE)]
    assert find_source(DataConfig(source=str(tmp_path), target="mask+depth")).name == "nyud-mt"


def test_a_file_that_is_no_matlab_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    file.write_bytes(b"not one" * 30)
    with pytest.raises(UnreadableImage, match=r"a.mat is no MATLAB file"):
        matlab_file(file)
    savemat(file, {"anno": np.zeros((2, 2))})
    saved(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UnreadableImage, match="no file of PASCAL-Parts"):
        PeopleParts(file, tmp_path / "a.png", (), 15).numbers()
