"""Captioning and visual question answering: words to tokens, the loss of answers alone, scores, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.multimodal_models import END, IMAGE, KINDS, multimodal, processor, tokenizer
from torch import Tensor
from torch.nn import functional

import vpeft
from vpeft.batch import Batch
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.problems import DataError
from vpeft.host_formats.host_format import NoHostFormat
from vpeft.host_formats.image_texts import ImageTexts
from vpeft.methods import LoRA
from vpeft.task import Task, UnsuitableTargets, usual_task
from vpeft.tasks.captioning import Captioning
from vpeft.tasks.visual_question_answering import VisualQuestionAnswering, normalised

pytest.importorskip("transformers")

ANSWERS = ["one", "two red", "one", "three blue ring"]


def host(kind: str = "llava") -> Any:
    made = multimodal(kind)
    made.processor = processor(kind)
    return made


def pictures(count: int = 4) -> list[Tensor]:
    """Bytes (3, H, W) of several sizes, each of its own colour."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    return [colours[number][:, None, None].expand(3, 36 + 4 * number, 40) for number in range(count)]


def questions() -> list[tuple[Tensor, Any]]:
    return [(image, ("how many ?", (answer,))) for image, answer in zip(pictures(), ANSWERS, strict=True)]


def task() -> VisualQuestionAnswering:
    return VisualQuestionAnswering(template="question : {} answer :", longest=4)


def learner(kind: str = "llava", of: Task | None = None) -> vpeft.TunedModel:
    where = {"vision": LoRA(rank=2), "language": LoRA(rank=4)}
    return vpeft.tune(host(kind), where, task=of or task(), train=("projector", "lm_head"), show=False)


@pytest.mark.parametrize(
    "kind", ["llava", "blip2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:3])]
)
def test_the_loss_is_of_the_answers_tokens_alone(kind: str) -> None:
    model = host(kind)
    spoken = ImageTexts(model, "answer")
    prompts = [spoken.prompt("how many ?", "question : {} answer :"), spoken.prompt("what", "{}")] * 2
    seen: dict[str, Tensor] = {}

    def watched(**named: Any) -> Any:
        seen.update(named)
        return model(**named)

    with torch.no_grad():
        outputs = spoken.learn(watched, pictures(), prompts, ANSWERS)
    labels, ids = seen["labels"], seen["input_ids"]
    words = tokenizer()
    for row, answer in zip(range(4), ANSWERS, strict=True):
        learnt = labels[row][labels[row] != -100]
        assert learnt.tolist() == [*words.convert_tokens_to_ids(answer.split()), END]
        at = torch.nonzero(labels[row] != -100).flatten()
        assert torch.equal(ids[row][at], learnt)
        assert bool((seen["attention_mask"][row][at] == 1).all())
    wanted = functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(outputs.loss, wanted, atol=1e-6)


def test_a_prompt_is_the_same_in_training_and_in_generation() -> None:
    model = host()
    spoken = ImageTexts(model, "answer")
    prompts = [spoken.prompt("how many ?", "{}"), spoken.prompt("which colour is the ring ?", "{}")]
    asked = spoken.asked(pictures(2), prompts)
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        spoken.learn(lambda **named: seen.update(named) or model(**named), pictures(2), prompts, ["one", "red"])
    assert torch.equal(seen["input_ids"][:, : asked["input_ids"].shape[1]], asked["input_ids"])
    assert int((asked["input_ids"] == IMAGE).sum()) == 2 * 16  # a token for each patch
    assert int(asked["input_ids"][0, 0]) == 0  # the shorter prompt is padded in front
    model.to(torch.bfloat16)
    assert spoken.asked(pictures(1), prompts[:1])["pixel_values"].dtype == torch.bfloat16


def test_a_chat_template_is_used_where_the_processor_has_one() -> None:
    model = host()
    model.processor.chat_template = (
        "{% for m in messages %}user : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
        "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %} assistant :"
    )
    spoken = ImageTexts(model, "answer")
    assert spoken.prompt("how many ?", "never {}") == "user : <image> how many ? assistant :"
    assert spoken.prompt("", "never {}") == "user : <image> assistant :"


@pytest.mark.slow
def test_a_model_learns_to_answer_and_is_reloaded(tmp_path: Path) -> None:
    one, data = task(), questions()
    tuned = learner(of=one)
    settings = vpeft.Optimisation(epochs=40, batch=4, lr=2e-2)
    result = vpeft.fit(tuned, one.dataset(data, True), one.dataset(data, False), optimisation=settings, progress=False)
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss
    assert result.val is not None
    assert result.val.values["accuracy"] >= 0.75
    assert result.val.details["question_accuracy"] == {"how many": result.val.values["accuracy"]}
    batch = one.collate(data)
    said = one.run(tuned.eval(), batch)["said"]
    assert sum(map(str.__eq__, said, ANSWERS)) >= 3
    again = vpeft.load(host(), tuned.save(tmp_path / "vqa.safetensors")).eval()
    assert again.task == one
    assert one.run(again, batch)["said"] == said
    rows = [dict(found.rows[0]) for found in one.predictions({"said": said}, batch)]
    assert rows[3] == {"question": "how many ?", "answer": said[3]}
    alone = one.model_copy(update={"question": "how many ?"})
    assert alone.run(again, alone.collate([(image, None) for image in pictures()]))["said"] == said


def test_captions_are_scored_by_bleu() -> None:
    one = Captioning(ngrams=2)
    metric = one.metric()
    captions = [("one red ring", "a red ring"), ("two blue bars",)]
    batch = Batch({"pictures": [], "words": ["", ""]}, captions, size=2)
    metric.update({"said": ["A red ring", "two green bars"]}, batch)
    found = metric.compute()
    assert found["equal"] == 0.5
    assert found["bleu1"] == pytest.approx(5 / 6)  # of six words one is in no caption
    assert found["bleu"] == found["bleu2"] == pytest.approx((5 / 6 * 2 / 4) ** 0.5)
    assert one.leading.name == "bleu"
    metric.reset()
    metric.update({"said": ["one red ring"]}, Batch({}, captions[:1], size=1))
    assert metric.compute()["bleu"] == pytest.approx(1.0)


def test_answers_are_compared_by_the_stated_rule() -> None:
    assert normalised("The Red, ring!") == "red ring"
    assert normalised("two") == normalised(" 2. ") == "2"
    assert normalised("ten") == "10"
    metric = task().metric()
    batch = Batch({"words": ["How many rings?", "which one?"]}, [("two", "a pair"), ("left",)], size=2)
    metric.update({"said": ["2", "right"]}, batch)
    assert metric.compute() == {"accuracy": 0.5, "question_accuracy": {"how many": 1.0, "which one?": 0.0}}


def test_a_multimodal_host_is_made_for_captions() -> None:
    assert usual_task(multimodal("llava")) is Captioning


def test_what_does_not_go_is_said() -> None:
    with pytest.raises(UnsuitableTargets, match="question and an answer beside each image"):
        task().words(_sample(3))
    with pytest.raises(UnsuitableTargets, match="wants a text, or several"):
        Captioning().words(_sample(3))
    with pytest.raises(vpeft.VpeftError, match="says nothing in words"):
        vpeft.tune(vpeft.create_backbone("pocket_vit"), LoRA(), task=Captioning())
    bare = multimodal("llava")
    with pytest.raises(NoHostFormat, match="comes without a processor"):
        ImageTexts(bare, "answer").prompt("", "{}")
    with pytest.raises(NoHostFormat, match="use the task captioning"):
        ImageTexts(bare, "answer").arguments(torch.zeros(1, 3, 8, 8), Batch(None), True)


def _sample(target: Any) -> Any:
    from vpeft.batch import Sample

    return Sample(pictures(1)[0], target, "one")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (20, 16 + number), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [
        {"image": f"{number % 4}.png", "question": "how many?" if number < 4 else "which?", "answer": answer}
        for number, answer in enumerate([["one", "1"], "two", "one", "two", "red", "blue", "red", "blue"])
    ]
    for number, row in enumerate(rows):
        row["split"] = ("train", "train", "val", "test")[number % 4]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_questions_are_read_from_lists(folder: Path) -> None:
    data = open_data(DataConfig(source=str(folder), target="answer"))
    assert len(data.train) == 4
    first = data.train[0][1]
    assert (first.question, first.answers) == ("how many?", ("one", "1"))
    assert {data.train[number][1].question for number in range(4)} == {"how many?", "which?"}
    table = folder / "list.csv"
    lines = ["image,question,answer,split"] + [f"{n % 2}.png,how many {n}?,{n},train" for n in range(6)]
    table.write_text("\n".join([*lines, "2.png,where?,left,val", "3.png,where?,right,test"]))
    read = open_data(DataConfig(source=str(table), target="answer"))
    assert [len(read.train), read.train[5][1].answers] == [6, ("5",)]
    captions = folder / "captions.jsonl"
    captions.write_text("\n".join(json.dumps({"image": f"{n % 4}.png", "text": f"text {n}"}) for n in range(8)))
    told = open_data(DataConfig(source=str(captions), target="caption", val_fraction=0.25, test_fraction=0.25))
    assert all(len(told.train[number][1]) == 2 for number in range(len(told.train)))


def test_mistakes_in_lists_are_said(folder: Path) -> None:
    bad = folder / "bad.jsonl"
    bad.write_text('{"image": "0.png", "question": "how many?"}')
    with pytest.raises(DataError, match="line 1 has no 'answer'"):
        open_data(DataConfig(source=str(bad), target="answer"))
    bad.write_text('{"image": "0.png", "question": "how many?", "answer": "one", "split": "tomorrow"}')
    with pytest.raises(DataError, match="is none of train, val, test"):
        open_data(DataConfig(source=str(bad), target="answer"))
    bad.write_text("not json")
    with pytest.raises(DataError, match="line 1 is not usable JSON"):
        open_data(DataConfig(source=str(bad), target="answer"))


def test_drawn_questions_tell_what_is_drawn() -> None:
    import numpy as np

    from vpeft.data.pocket_captions import COLOURS, draw_captioned
    from vpeft.data.pocket_questions import KINDS as ASKED
    from vpeft.data.pocket_questions import area, draw_questioned, opposite

    images, captions, asked = draw_questioned(12, np.random.Generator(np.random.PCG64(3)))
    assert images.shape == (12, 64, 64, 3)
    for image, caption, three in zip(images, captions, asked, strict=True):
        assert [one.kind for one in three] == list(ASKED)
        count, colour, place = (one.answer for one in three)
        assert f"{count} {colour}" in caption
        left, top, right, bottom = (int(side) for side in area(place))
        near = np.abs(image / 255.0 - np.asarray(COLOURS[colour])).max(axis=2) < 0.2
        inside = near[top:bottom, left:right].sum()
        other = [int(side) for side in area(opposite(place))]
        assert inside > near[other[1] : other[3], other[0] : other[2]].sum()
    again = draw_questioned(12, np.random.Generator(np.random.PCG64(3)))
    assert np.array_equal(again[0], images)
    plain, _ = draw_captioned(2, np.random.Generator(np.random.PCG64(0)))
    assert plain.shape == (2, 64, 64, 3)
