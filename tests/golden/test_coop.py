"""CoOp, CoCoOp and MaPLe restated in plain tensors, and counted on CLIP ViT-B/16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.clip_by_hand import CLIPS, END, LENGTH, START, ClipByHand, class_ids, open_clip_model, pictures
from tests.golden.two_towers import NAMES, on_vit_b_16, require_equal, tuned_with
from vpeft.backbones.texts import NoTokenizer, TooLongText
from vpeft.heads.class_names import ClassNames
from vpeft.method import BadField
from vpeft.methods import CoCoOp, CoOp, MaPLe


def with_room(ids: Tensor, before: int, behind: int) -> Tensor:
    """[start, words, stop, end, pad] -> [start, X.., words, X.., stop, end, pad], one text at a time."""
    rows = []
    for row in ids.tolist():
        end = row.index(END)
        made = [START, *[1] * before, *row[1 : end - 1], *[1] * behind, *row[end - 1 : end + 1]]
        rows.append(made + [0] * (LENGTH - len(made)))
    return torch.tensor(rows)


def in_room(vectors: Tensor, before: int) -> Any:
    """Where tokens are the placeholder 1 the vectors (n, D), or (R, n, D), stand in order."""

    def change(words: Tensor, ids: Tensor) -> Tensor:
        rows = []
        for number, row in enumerate(ids.tolist()):
            own = vectors if vectors.dim() == 2 else vectors[number]
            at = iter(own)
            rows.append(torch.stack([next(at) if token == 1 else words[number, i] for i, token in enumerate(row)]))
        return torch.stack(rows)

    return change


@pytest.mark.parametrize("library", CLIPS)
@pytest.mark.parametrize(
    ("method", "before", "behind"),
    [
        (CoOp(tokens=4), 4, 0),
        (CoOp(tokens=5, position="middle"), 2, 3),
        (CoOp(tokens=3, position="front"), 0, 3),
        (CoOp(tokens=2, classes=5), 2, 0),
    ],
    ids=["end", "middle", "front", "classes"],
)
def test_coop_equals_a_restatement(library: str, method: CoOp, before: int, behind: int) -> None:
    model = CLIPS[library]()
    tuned = tuned_with(model, {"text": method})
    ((name, vectors),) = tuned.trainable()
    assert name == "text.words.after.vectors"
    assert vectors.shape == ((5, 2, 24) if method.classes else (method.tokens, 24))
    ids = with_room(class_ids(), before, behind)
    plain = ClipByHand(CLIPS[library](), {"text.words": in_room(vectors, before)})
    require_equal(tuned, plain.logits(pictures(), ids), tuned(pictures()))


@pytest.mark.parametrize("library", CLIPS)
def test_cocoop_equals_a_restatement_image_by_image(library: str) -> None:
    tuned = tuned_with(CLIPS[library](), {"*": CoCoOp(tokens=3, words="", reduction=4)})
    t = {name.removeprefix("text.words.after."): value for name, value in tuned.trainable()}
    ids = with_room(class_ids(), 3, 0)
    plain, rows = ClipByHand(CLIPS[library]()), []
    for image in pictures():
        f = F.normalize(plain.image(image[None])[0], dim=0)
        bias = t["net.up.weight"] @ F.relu(t["net.down.weight"] @ f + t["net.down.bias"]) + t["net.up.bias"]
        moved = ClipByHand(plain.model, {"text.words": in_room(t["vectors"] + bias, 3)})
        w = F.normalize(moved.text(ids), dim=-1)
        rows.append(plain.model.logit_scale.exp() * w @ f)
    require_equal(tuned, torch.stack(rows), tuned(pictures()))


@pytest.mark.parametrize("library", CLIPS)
def test_maple_equals_a_restatement(library: str) -> None:
    model = CLIPS[library]()
    tuned = tuned_with(model, {"*": MaPLe(tokens=2, depth=2, words="")})
    t = dict(tuned.trainable())
    first, second = t["text.words.after.vectors"], t["text.blocks.1.before.vectors"]
    maps = [
        (t[f"{place}.map.weight"], t[f"{place}.map.bias"])
        for place in ("image.trunk.insert_tokens", "image.blocks.1.before")
    ]

    def words(out: Tensor, came: Tensor) -> Tensor:
        return torch.cat([out[:, :1], first.expand(len(out), -1, -1), out[:, 3:]], dim=1)

    def text_block(out: Tensor, came: Tensor) -> Tensor:
        return torch.cat([out[:, :1], second.expand(len(out), -1, -1), out[:, 3:]], dim=1)

    def embedded(out: Tensor, came: Tensor) -> Tensor:  # behind the patches, as the authors have it
        return torch.cat([out, F.linear(first, *maps[0]).expand(len(out), -1, -1)], dim=1)

    def image_block(out: Tensor, came: Tensor) -> Tensor:
        return torch.cat([out[:, :-2], F.linear(second, *maps[1]).expand(len(out), -1, -1)], dim=1)

    changes = {
        "text.words": words,
        "text.blocks.1.before": text_block,
        "image.embedded": embedded,
        "image.blocks.1.before": image_block,
    }
    plain = ClipByHand(CLIPS[library](), changes)
    require_equal(tuned, plain.logits(pictures(), class_ids()), tuned(pictures()))


def test_counts_on_vit_b_16() -> None:
    assert on_vit_b_16({"text": CoOp()}) == 8_192
    assert on_vit_b_16({"text": CoOp(tokens=4)}) == 2_048
    assert on_vit_b_16({"text": CoOp(classes=100)}) == 819_200
    assert on_vit_b_16({"*": CoCoOp(words="")}) == 35_360
    assert on_vit_b_16({"*": MaPLe(words="")}) == 3_555_072


def test_words_are_where_the_vectors_start() -> None:
    model = open_clip_model()
    table = model.token_embedding.weight.detach()  # type: ignore[union-attr]
    known = {"a": 5, "photo": 6, "of": 7}

    def tokenizer(texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = [START, *(known[word] for word in text.split()), END]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    described = vpeft.describe(model).with_tokenizer(tokenizer)  # type: ignore[attr-defined]
    head = ClassNames.of_ids(NAMES, class_ids())
    tuned = vpeft.tune(described, {"text": CoOp(tokens=4, words="a photo of a")}, head=head).eval()
    ((_, vectors),) = tuned.trainable()
    assert torch.equal(vectors, table[[5, 6, 7, 5]])
    by_hand = torch.tensor([[START, 5, 6, 7, 5, *row[1:9]] for row in class_ids().tolist()])
    expected = ClipByHand(model).logits(pictures(), by_hand[:, :LENGTH])
    assert torch.allclose(tuned(pictures()), expected, atol=1e-4)
    tuned.detach()
    prompts = vpeft.tune(described, {"*": MaPLe(tokens=3, depth=1)}, head=head)
    assert torch.equal(dict(prompts.trainable())["text.words.after.vectors"], table[[5, 6, 7]])
    prompts.detach()
    with pytest.raises(BadField, match="are 4 tokens, and there are 16 vectors"):
        vpeft.tune(described, {"text": CoOp(words="a photo of a")}, head=head)


def test_what_does_not_go_is_said() -> None:
    head = ClassNames.of_ids(NAMES, class_ids())
    with pytest.raises(TooLongText, match="10 learnable words do not fit"):
        vpeft.tune(open_clip_model(), {"text": CoOp(tokens=10)}, head=head)
    with pytest.raises(NoTokenizer):
        vpeft.tune(CLIPS["hf_clip"](), {"*": CoCoOp()}, head=head)
    with pytest.raises(vpeft.MissingPlace, match="takes images"):
        vpeft.tune(open_clip_model(), {"image": CoOp()}, head=head)
    with pytest.raises(vpeft.MissingPlace, match="takes images"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), CoOp())
    for method in (CoCoOp(words=""), MaPLe(words="")):
        with pytest.raises(vpeft.MissingPlace, match="so it needs both"):
            vpeft.tune(open_clip_model(), {"text": method}, head=head)
    with pytest.raises(BadField, match="3 blocks in common"):
        vpeft.tune(open_clip_model(), {"*": MaPLe(words="")}, head=head)
    with pytest.raises(vpeft.VpeftError, match="context words for 4 classes"):
        vpeft.tune(open_clip_model(), {"text": CoOp(tokens=2, classes=4)}, head=head)
