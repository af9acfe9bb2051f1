"""Images and texts compared all with all: losses of the libraries, retrieval counted by hand, readers of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.image_text_models import LIBRARIES
from torch import Tensor
from torch.nn import functional as F

import vpeft
from vpeft.batch import Batch, Sample
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.pocket_captions import FIGURES, HELD_OUT, SIZES, Group, caption, draw_captioned
from vpeft.data.problems import DataError
from vpeft.methods import LoRA
from vpeft.task import UnsuitableTargets, get_task
from vpeft.tasks.contrastive import Contrastive, PairScores
from vpeft.training.optimisation import Optimisation


def outputs(images: int = 6, texts: int = 6) -> dict[str, Tensor]:
    """Made-up outputs of the head."""
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(count, 8, generator=generator), dim=1) for count in (images, texts)]
    return {"image": rows[0], "text": rows[1], "scale": torch.tensor(7.0), "bias": torch.tensor(-3.0)}


def told(captions: list[str]) -> Batch:
    """A batch with a caption for each image."""
    return Batch(None, [(one,) for one in captions], size=len(captions))


def test_infonce_is_open_clips_where_all_captions_differ() -> None:
    loss = pytest.importorskip("open_clip.loss").ClipLoss()
    given = outputs() | {"bias": torch.zeros(())}
    expected = loss(given["image"], given["text"], given["scale"])
    for option in ("positive", "negative"):
        found = Contrastive(equal_captions=option).loss(given, told(list("abcdef")))
        assert torch.allclose(found["infonce"], expected, atol=1e-6)


def test_equal_captions_belong_to_each_other_unless_asked_otherwise() -> None:
    given, batch = outputs(3, 3) | {"bias": torch.zeros(())}, told(["a", "b", "a"])
    logits = given["scale"] * given["image"] @ given["text"].T
    shares = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    expected = -0.5 * ((shares * logits.log_softmax(1)).sum(1) + (shares * logits.T.log_softmax(1)).sum(1)).mean()
    assert torch.allclose(Contrastive().loss(given, batch)["infonce"], expected, atol=1e-6)
    own = torch.arange(3)
    apart = 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
    assert torch.allclose(Contrastive(equal_captions="negative").loss(given, batch)["infonce"], apart, atol=1e-6)


def test_the_sigmoid_loss_is_that_of_siglip() -> None:
    pytest.importorskip("transformers")
    model: Any = LIBRARIES["siglip"]()
    ids = torch.randint(4, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tuned = vpeft.tune(LIBRARIES["siglip"](), {"text": LoRA(rank=2)}, task=Contrastive(loss="sigmoid")).eval()
    found = tuned.task.loss(tuned(pictures, ids), told(["a", "b", "c"]))["sigmoid"]
    expected = model(pixel_values=pictures, input_ids=ids, return_loss=True).loss
    assert torch.allclose(found, expected, atol=1e-4)
    found.backward()
    assert all(p.grad is not None for _, p in tuned.trainable())


def test_recall_is_what_counting_one_by_one_gives() -> None:
    counts = [2, 1, 3, 1, 2]
    given = outputs(5, sum(counts))
    metric = PairScores((1, 3))
    first = 0
    for rows in (slice(0, 2), slice(2, 5)):
        of = counts[rows]
        part = given | {"image": given["image"][rows], "text": given["text"][first : first + sum(of)]}
        metric.update(part, Batch(None, [("x",) * count for count in of], size=len(of)))
        first += sum(of)
    found = metric.compute()
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    cosines = (given["image"] @ given["text"].T).tolist()
    for k in (1, 3):
        by_image = [sorted(range(9), key=lambda t, row=row: -row[t])[:k] for row in cosines]
        text = [any(owner[t] == number for t in best) for number, best in enumerate(by_image)]
        by_text = [sorted(range(5), key=lambda i, t=t: -cosines[i][t])[:k] for t in range(9)]
        image = [owner[t] in best for t, best in enumerate(by_text)]
        assert found[f"text_r{k}"] == pytest.approx(sum(text) / 5)
        assert found[f"image_r{k}"] == pytest.approx(sum(image) / 9)
    assert found["mean_recall"] == pytest.approx(sum(v for key, v in found.items() if key != "mean_recall") / 4)


def test_what_makes_no_pairs_is_refused() -> None:
    with pytest.raises(UnsuitableTargets, match="6 images and 5 texts make no pairs"):
        Contrastive().loss(outputs(6, 5), told(list("abcdef")))
    with pytest.raises(UnsuitableTargets, match="take the task classification_by_name"):
        Contrastive().collate([Sample(torch.zeros(3, 4, 4), 2, "a.png")])
    with pytest.raises(vpeft.MissingPlace, match="no image tower beside a text tower"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(), task=Contrastive())
    assert get_task("image_text_retrieval") is Contrastive


def test_training_draws_one_of_several_captions_and_scores_use_all() -> None:
    data = [Sample(torch.zeros(3, 4, 4), ("a", "b", "c"), str(number)) for number in range(2)]
    training, scoring = (Contrastive().dataset(data, one) for one in (True, False))
    torch.manual_seed(0)
    drawn = {training[0].target for _ in range(30)}
    assert drawn == {("a",), ("b",), ("c",)}
    batch = Contrastive().collate([scoring[0], scoring[1]])
    assert batch.inputs["text"] == ["a", "b", "c"] * 2 and len(batch) == 2 and batch.ids == ("0", "1")
    halves = Contrastive().collate([training[0], training[1]]).split(2)
    assert [len(half.inputs["text"]) for half in halves] == [1, 1] and len(halves[1].inputs["image"]) == 1


def test_a_tower_learns_which_captions_belong_to_which_pictures() -> None:
    drawn, captions = draw_captioned(10, np.random.Generator(np.random.PCG64(1)))
    data = [
        Sample(torch.from_numpy(one).permute(2, 0, 1).float() / 127.5 - 1, (text,), str(number))
        for number, (one, text) in enumerate(zip(drawn, captions, strict=True))
    ]
    task = Contrastive()
    tuned = vpeft.tune(LIBRARIES["pocket_clip"](), {"text": LoRA(rank=4)}, task=task)
    settings = Optimisation(epochs=12, batch=10, lr=2e-2, warmup=0, schedule="constant")
    before = vpeft.evaluate(tuned, task.dataset(data, False), task=task).values["mean_recall"]
    result = vpeft.fit(tuned, task.dataset(data, True), None, optimisation=settings, progress=False, task=task)
    after = vpeft.evaluate(tuned, task.dataset(data, False), task=task).values["mean_recall"]
    assert result.state == "done" and after > before + 0.1
    said = task.predictions(tuned(*map(torch.stack, [[one.input for one in data]]), captions), told(captions))
    assert len(said) == 10 and set(said[0].rows[0]) == {"text", "cosine"}


def pictures(folder: Path, count: int = 8, first: int = 0) -> list[str]:
    """Small image files in a folder; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(first + number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def test_a_folder_with_a_list_of_captions_is_read_with_its_splits(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images")
    rows = [f"{name},a picture of {name[0]},{'train' if number < 5 else 'test'}" for number, name in enumerate(names)]
    rows.append('0.png,"another, longer text",train')
    (tmp_path / "captions.csv").write_text("path,caption,split\n" + "\n".join(rows) + "\n")
    found = open_data(DataConfig(source=str(tmp_path), target="caption", val_fraction=0))
    assert (len(found.train), found.test is not None and len(found.test)) == (5, 3)
    assert found.train[0].target == ("a picture of 0", "another, longer text")
    (tmp_path / "captions.csv").write_text("path,words\n0.png,x\n")
    with pytest.raises(DataError, match="has no column 'caption'"):
        open_data(DataConfig(source=str(tmp_path), target="caption"))


def test_cocos_json_of_captions_is_read_beside_that_of_objects(tmp_path: Path) -> None:
    for place, split in enumerate(("train2017", "val2017")):
        names = pictures(tmp_path / split, first=10 * place)
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        said = [{"image_id": number, "caption": f"{split} {number} {k}"} for number in range(8) for k in range(2)]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        told_of = {"images": images, "annotations": said}
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(json.dumps(told_of))
        objects = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(objects))
    found = open_data(DataConfig(source=str(tmp_path), target="caption", check="header"))
    assert found.train[3].target == ("train2017 3 0", "train2017 3 1") and found.val is not None and len(found.val) == 8
    alone = tmp_path / "annotations" / "instances_val2017.json"
    broken = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": [{"image_id": 0, "bbox": [0, 0, 1, 1]}]}
    alone.write_text(json.dumps(broken))
    with pytest.raises(DataError, match="Is it a file of objects"):
        open_data(DataConfig(source=str(alone), target="caption"))


def test_drawn_captions_say_what_is_drawn_and_training_lacks_the_held_out_pairs() -> None:
    assert caption((Group(2, "red", "cross"), Group(1, "blue", "bar"))) == "two red crosses and one blue bar"
    words, new = draw_captioned(60, np.random.Generator(np.random.PCG64(3)), 0.5)[1], []
    for text in words:
        parts = [part.split() for part in text.split(" and ")]
        pairs = {(colour, next(one for one in FIGURES if word.startswith(one))) for _, colour, word in parts}
        new.append(bool(pairs & HELD_OUT))
    assert new == [True] * 30 + [False] * 30 and len(set(words)) == 60
    assert set(SIZES) == {"train", "val", "test"} and 4 <= len(HELD_OUT) <= 10
