"""Classification by names of classes: as the models themselves compare, restated, learnt, saved, kept and refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.image_text_models import LIBRARIES, images, own_logits, word_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.texts import NoTokenizer, TooLongText
from vpeft.heads.class_names import ClassNames
from vpeft.method import Method
from vpeft.methods import AdaptFormer, LinearProbe, LoRA
from vpeft.tasks.classification_by_name import ClassificationByName

pytest.importorskip("transformers")
pytest.importorskip("open_clip")
NAMES = ("cat", "dog", "red ant")


def by_ids(name: str, methods: Any, count: int = 3) -> tuple[vpeft.TunedModel, Tensor]:
    """A tuned tiny model with a head of made-up token numbers, and these."""
    described = vpeft.describe(LIBRARIES[name]())
    ids = described.towers["text"].inputs.example(count)
    tuned = vpeft.tune(described, methods, head=ClassNames.of_ids([str(k) for k in range(count)], ids))
    return tuned.eval(), ids


@pytest.mark.parametrize("name", LIBRARIES)
def test_logits_without_training_are_the_models_own(name: str) -> None:
    tuned, ids = by_ids(name, {"image": LoRA(rank=2), "text": LoRA(rank=2)})
    pictures = images(LIBRARIES[name]())
    with torch.no_grad():
        expected, found = own_logits(LIBRARIES[name](), pictures, ids), tuned(pictures)
    assert found.shape == (4, 3)
    if expected is not None:
        assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(found, tuned(image=pictures)) and torch.equal(found, tuned({"image": pictures}))


@pytest.mark.parametrize("name", ["open_clip", "hf_clip", "siglip2"])
def test_methods_on_both_towers_learn_and_are_saved_in_one_file(name: str, tmp_path: Path) -> None:
    tuned, _ = by_ids(name, {"image": AdaptFormer(bottleneck=4), "text": LoRA(rank=2)})
    pictures, targets = images(LIBRARIES[name]()), torch.tensor([0, 1, 2, 0])
    optimiser = torch.optim.AdamW([p for _, p in tuned.trainable()], lr=2e-2)
    tuned.train()
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(tuned(pictures), targets)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {row.place.split(".")[0] for row in tuned.plan().rows} == {"image", "text"}
    assert "image: full; text: full" in tuned.plan().reach
    path = tuned.eval().save(tmp_path / "a.safetensors")
    again = vpeft.load(LIBRARIES[name](), path).eval()
    with torch.no_grad():
        assert torch.equal(again(pictures), tuned(pictures))
        other: Any = LIBRARIES[name]()
        next(other.parameters()).add_(0.1)
    with pytest.raises(vpeft.VpeftError, match="was made on"):
        vpeft.load(other, path)
    before = LIBRARIES[name]().state_dict()
    assert all(torch.equal(value, before[key]) for key, value in tuned.detach().state_dict().items())


def test_names_fill_every_template_and_their_features_are_averaged() -> None:
    described = vpeft.describe(LIBRARIES["hf_clip"]()).with_tokenizer(word_tokenizer())  # type: ignore[attr-defined]
    task = ClassificationByName(NAMES, templates=("a photo of a {}.", "the {}"))
    tuned = vpeft.tune(described, {"image": LinearProbe()}, task=task).eval()
    head: Any = tuned.head
    assert head.texts[:3] == ["a photo of a cat.", "a photo of a dog.", "a photo of a red ant."]
    assert head.texts[3:] == ["the cat", "the dog", "the red ant"] and not list(tuned.trainable())
    pictures, model = images(LIBRARIES["hf_clip"](), 2), LIBRARIES["hf_clip"]()
    tokens = word_tokenizer()(head.texts, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain: Any = model
        each = F.normalize(plain.get_text_features(tokens).pooler_output, dim=1).view(2, 3, -1)
        weights = F.normalize(each.mean(0), dim=1)
        seen = F.normalize(plain.get_image_features(pictures).pooler_output, dim=1)
        expected = plain.logit_scale.exp() * seen @ weights.T
        assert torch.allclose(tuned(pictures), expected, atol=1e-5)
    said = task.predictions(tuned(pictures).detach(), vpeft.Batch(pictures))
    assert {row["label"] for row in said[0].rows} == set(NAMES)


def test_underscores_in_names_are_spaces_and_ensembles_are_open_clips() -> None:
    import open_clip

    task = ClassificationByName(["tree_frog", "dog"], templates=("simple",))
    assert task.texts == tuple(make("{}") for make in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert ClassNames(["tree_frog"], ["a {}"], 4).texts == ["a tree frog"]
    with pytest.raises(vpeft.VpeftError, match=r"a template holds \{\}"):
        ClassificationByName(["a", "b"], templates=("a photo",))


class Count:
    """Counts how often the text tower runs."""

    def __init__(self, tuned: vpeft.TunedModel) -> None:
        self.times = 0
        place = tuned.description.towers["text"].words
        assert place.exit is not None
        place.exit.module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, out: Any) -> None:
        self.times += 1


def test_features_of_names_are_kept_until_something_they_depend_on_changes() -> None:
    tuned, _ = by_ids("open_clip", {"image": LoRA(rank=2)})
    count, pictures = Count(tuned), images(LIBRARIES["open_clip"]())
    tuned.train()
    first = tuned(pictures)
    first.sum().backward()  # type: ignore[no-untyped-call]
    tuned.eval()(pictures)
    assert count.times == 1  # also in training, since the text tower is frozen
    host: Any = tuned.backbone
    with torch.no_grad():
        host.ln_final.weight.mul_(-1.5)
        changed = tuned(pictures)
        assert count.times == 2 and not torch.allclose(changed, first)
        head: Any = tuned.head
        head.set_ids(head.ids.roll(1, 0))
        assert torch.allclose(tuned(pictures), changed.roll(1, 1)) and count.times == 3


def test_features_of_an_edited_text_tower_are_kept_in_evaluation_alone() -> None:
    tuned, _ = by_ids("hf_clip", {"text": LoRA(rank=2)})
    count, pictures = Count(tuned), images(LIBRARIES["hf_clip"]())
    with torch.no_grad():
        before = tuned(pictures)
        assert torch.equal(tuned(pictures), before) and count.times == 1
        for _, parameter in tuned.trainable():
            parameter.add_(0.1)
        assert not torch.allclose(tuned(pictures), before) and count.times == 2
        with tuned.disable():  # another state of the tower, and no head: the host's own forward
            pass
    tuned(pictures).sum().backward()
    tuned(pictures)
    assert count.times == 4
    assert all(p.grad is not None for _, p in tuned.trainable())
    twin = copy.deepcopy(tuned)
    with torch.no_grad():
        assert torch.equal(twin(pictures), tuned(pictures))


class Shift(nn.Module):
    """words (B * C, L, D), image features (B, E) -> words moved by a map of the feature."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.map = nn.Linear(features, width)

    def forward(self, words: Tensor, features: Tensor) -> Tensor:
        each = features.repeat_interleave(len(words) // len(features), 0)
        return words + self.map(each)[:, None]


class Conditional(Method):
    """Text features that depend on the image: an edit in the text tower reads the image tower."""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        raise NotImplementedError

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        image, text = towers["image"], towers["text"]
        yield text.words.after(Shift(text.words.width, image.facts.width), reads=(image.outlet,))


@pytest.mark.parametrize("name", ["open_clip", "siglip"])
def test_texts_that_depend_on_the_image_are_computed_for_each_image(name: str) -> None:
    torch.manual_seed(1)
    tuned, _ = by_ids(name, {"*": Conditional()})
    pictures = images(LIBRARIES[name]())
    with torch.no_grad():
        together = tuned(pictures)
        alone = torch.cat([tuned(one[None]) for one in pictures])
    assert together.shape == (4, 3) and torch.allclose(together, alone, atol=1e-5)
    with torch.no_grad():
        tuned.adapter().edits[0].layer.map.weight.zero_()  # type: ignore[union-attr, operator]
        moved = tuned(pictures)
    assert not torch.allclose(moved, together, atol=1e-3)
    tuned(pictures).sum().backward()
    assert all(p.grad is not None for _, p in tuned.trainable())


def test_an_edit_at_the_outlet_or_the_logits_acts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, hidden: Tensor, *more: Tensor) -> Tensor:
            return self.factor * hidden + sum(one.mean() for one in more)

    class AtLogits(Method):
        @property
        def starts_as_identity(self) -> bool:
            return False

        def edits(self, backbone: Backbone) -> Iterator[Edit]:
            yield backbone.logits.after(Twice(), reads=(backbone.outlet,))

    plain, _ = by_ids("open_clip", {"image": LoRA(rank=2)})
    tuned, _ = by_ids("open_clip", {"image": AtLogits()})
    pictures = images(LIBRARIES["open_clip"]())
    with torch.no_grad():
        features = tuned.features({"image": pictures})
        assert torch.allclose(tuned(pictures), 2 * plain(pictures) + features.mean(), atol=1e-5)
    with pytest.raises(vpeft.MissingPlace, match=r"Nothing comes by text\.logits"):
        by_ids("open_clip", {"text": AtLogits()})


def test_other_classes_take_the_place_of_the_learnt_ones() -> None:
    task = ClassificationByName(["red circle", "ring"], templates=("a photo of {}",), class_weights=(1.0, 2.0))
    other = task.with_names(["blue square", "bar", "cross"])
    assert other.labels == ("blue square", "bar", "cross") and other.class_weights == "none"
    assert other.templates == task.templates
    tuned = vpeft.tune(LIBRARIES["pocket_clip"](), {"image": LoRA(rank=2)}, task=task).eval()
    renamed = vpeft.rename_classes(tuned, ["blue square", "bar", "cross"])
    fresh = vpeft.tune(LIBRARIES["pocket_clip"](), {"image": LoRA(rank=2)}, task=other).eval()
    pictures = images(LIBRARIES["pocket_clip"](), 2)
    with torch.no_grad():
        assert torch.allclose(renamed(pictures), fresh(pictures), atol=1e-6)
    assert renamed is tuned and tuned.task.labels == other.labels


def test_features_of_a_frozen_image_tower_are_computed_once_for_each_image() -> None:
    data = [(picture, number % 3) for number, picture in enumerate(images(LIBRARIES["open_clip"](), 6))]
    states, calls = [], []
    for acceleration, epochs in (("off", 4), ("frozen_prefix", 4), ("frozen_prefix", 7)):
        torch.manual_seed(0)
        tuned, _ = by_ids("open_clip", {"text": LoRA(rank=2)})
        host: Any = tuned.backbone
        times: list[int] = []
        host.visual.conv1.register_forward_hook(lambda _, args, out, times=times: times.append(len(out)))
        settings = vpeft.Optimisation(epochs=epochs, batch=3, lr=1e-2, acceleration=acceleration)
        vpeft.fit(tuned, data, optimisation=settings, task=vpeft.tasks.Classification(["a", "b", "c"]), progress=False)
        states.append(tuned.adapter_state())
        calls.append(sum(times))
    assert all(torch.allclose(value, states[1][key], atol=1e-5) for key, value in states[0].items())
    assert any(bool(value.any()) for key, value in states[0].items() if "up" in key or "B" in key)
    assert calls[0] == 24 and calls[1] == calls[2]  # further epochs do not run the tower


def test_what_cannot_be_is_said() -> None:
    described = vpeft.describe(LIBRARIES["hf_clip"]())
    with pytest.raises(NoTokenizer, match="without a tokenizer"):
        vpeft.tune(described, {"image": LinearProbe()}, task=ClassificationByName(NAMES))
    with pytest.raises(vpeft.MissingPlace, match="no image tower beside a text tower"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(), task=ClassificationByName(NAMES))
    with pytest.raises(vpeft.VpeftError, match="a head belongs to one of them"):
        vpeft.tune(LIBRARIES["hf_clip"](), {"image": LoRA()}, num_classes=3)
    known = vpeft.describe(LIBRARIES["hf_clip"]()).with_tokenizer(word_tokenizer())  # type: ignore[attr-defined]
    with pytest.raises(TooLongText, match="take a shorter template"):
        vpeft.tune(known, {"image": LinearProbe()}, task=ClassificationByName(NAMES, templates=("cat " * 12 + "{}",)))
    tuned, _ = by_ids("hf_clip", {"image": LoRA(rank=2)})
    with pytest.raises(vpeft.VpeftError, match="it was given audio"):
        tuned(audio=torch.zeros(1))
    with pytest.raises(vpeft.VpeftError, match="reads the tower image, and it was given no input"):
        tuned()
