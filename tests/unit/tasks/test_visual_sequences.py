"""Sentences of pictures: losses and scores restated, generation with a cache, and whole runs with the commands."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.visual_sequences import CLASSES, CODES, TOKENS, write_codec, write_llama, write_pictures
from torch import Tensor
from torch.nn import functional as F

import vpeft
from vpeft.backbones.picture_codec import NoCodec, picture_codec
from vpeft.backbones.points import MissingPlace
from vpeft.batch import Batch
from vpeft.cli import main
from vpeft.data.problems import DataWarning
from vpeft.data.visual_tasks import classes_of
from vpeft.method import Method
from vpeft.methods import Adapter, BitFit, LoRA, PrefixTuning, VPTDeep, VPTShallow
from vpeft.task import BadOption, UnsuitableTargets
from vpeft.tasks.next_tokens import continuation, shifted_divergence, shifted_loss
from vpeft.tasks.visual_sequences import VisualSequences
from vpeft.training.recipe import Recipe
from vpeft.training.run import RunOutcome, run_recipe

pytest.importorskip("transformers")
LENGTH = 2 * 2 * TOKENS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with codec.safetensors, host/ (a Llama), teacher/ (a wider one), and data/."""
    root = tmp_path_factory.mktemp("sequences")
    write_codec(root / "codec.safetensors")
    write_llama(root / "host")
    write_llama(root / "teacher", width=32)
    write_pictures(root / "data")
    return root


def task_of(files: Path, **options: Any) -> VisualSequences:
    given = {"visual_tasks": ("mask", "edges", "denoise"), "codec": str(files / "codec.safetensors"), "pairs": 2}
    return VisualSequences(**(given | options))


def run_of(
    files: Path, out: Path | None = None, method: str = "lora(rank=2)", by_backbone: bool = True, **options: Any
) -> RunOutcome:
    task = {"visual_tasks": ["mask", "edges", "denoise"], "codec": str(files / "codec.safetensors"), "pairs": 2}
    return run_recipe(
        Recipe.from_mapping(
            {
                **({"backbone": f"host::hf:{files / 'host'}"} if by_backbone else {"host": f"hf:{files / 'host'}"}),
                "method": method,
                "task": {"name": "visual_sequences", **task, **options},
                "data": {"source": str(files / "data")},
                "optimisation": {"epochs": 2, "batch": 8, "lr": 2e-2},
                **({} if out is None else {"out": str(out)}),
            }
        ),
        progress=False,
        show=False,
    )


def batch_of(targets: dict[str, Any] | None = None, count: int = 3) -> Batch:
    tokens = torch.randint(CODES, (count, LENGTH), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, targets, size=count)


def logits_of(seed: int = 1, count: int = 3) -> Tensor:
    return torch.randn(count, LENGTH, CODES, generator=torch.Generator().manual_seed(seed))


# -- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learn", "learnt"), [("all", range(1, 16)), ("answers", [4, 5, 6, 7, *range(12, 16)]), ("last", range(12, 16))]
)
def test_the_loss_is_the_mean_over_the_tokens_that_are_learnt(files: Path, learn: Any, learnt: Any) -> None:
    batch, logits = batch_of(), logits_of()
    told = [-logits[row, at - 1].log_softmax(-1)[batch.inputs[row, at]] for row in range(3) for at in learnt]
    found = task_of(files, learn=learn).loss({"logits": logits}, batch)
    assert set(found) == {"cross_entropy"}
    assert torch.allclose(found["cross_entropy"], torch.stack(told).mean(), atol=1e-6)


def test_distillation_adds_the_divergence_from_the_teacher(files: Path) -> None:
    batch, logits, theirs = batch_of(), logits_of(1), logits_of(2)
    student, teacher = logits[:, :-1].softmax(-1), theirs[:, :-1].softmax(-1)
    apart = (teacher * (teacher.log() - student.log())).sum(-1).mean()
    found = task_of(files, teacher="hf:x").loss({"logits": logits, "teacher": theirs}, batch)
    assert torch.allclose(found["teacher"], apart, atol=1e-5)
    every = torch.ones(LENGTH, dtype=torch.bool)
    assert torch.allclose(found["cross_entropy"], shifted_loss(logits, batch.inputs, every))
    warm = shifted_divergence(logits * 3, theirs * 3, every, temperature=3.0)
    assert torch.allclose(warm, 9 * apart, atol=1e-4)


def test_training_asks_the_teacher_and_scores_do_not(files: Path) -> None:
    import transformers

    task = task_of(files, teacher=f"hf:{files / 'teacher'}", generate=False)
    host: Any = transformers.LlamaForCausalLM.from_pretrained(files / "host")
    wise: Any = transformers.LlamaForCausalLM.from_pretrained(files / "teacher").eval()
    batch = batch_of({"task": torch.zeros(3, dtype=torch.int64)})
    said = task.run(host.train(), batch)
    with torch.no_grad():
        assert torch.allclose(said["teacher"], wise(input_ids=batch.inputs).logits, atol=1e-5)
    assert not said["teacher"].requires_grad and said["logits"].requires_grad
    assert set(task.run(host.eval(), batch)) == {"logits"}


# -- generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [LoRA(rank=2), Adapter(), PrefixTuning(length=3), VPTShallow(tokens=3), VPTDeep(tokens=3), BitFit()],
    ids=lambda one: type(one).__name__,
)
def test_generation_with_a_cache_equals_generation_without(files: Path, method: Method) -> None:
    model = vpeft.create_backbone(f"host::hf:{files / 'host'}")
    torch.manual_seed(0)
    tuned = vpeft.tune(model, method, show=False).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn_like(parameter))
    prompt = batch_of().inputs[:, :-TOKENS]
    cached = continuation(tuned, prompt, TOKENS)
    assert cached.shape == (3, TOKENS)
    assert torch.equal(cached, continuation(tuned, prompt, TOKENS, cached=False))
    by_hand = prompt
    for _ in range(TOKENS):
        with torch.no_grad():
            by_hand = torch.cat([by_hand, tuned(input_ids=by_hand).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, by_hand[:, -TOKENS:])
    with torch.no_grad():
        said = tuned(input_ids=prompt).logits
        with tuned.disable():
            assert not torch.allclose(said, tuned(input_ids=prompt).logits, atol=1e-4)


def test_drawn_tokens_are_among_the_most_probable(files: Path) -> None:
    model = vpeft.create_backbone(f"host::hf:{files / 'host'}")
    prompt = batch_of().inputs[:1].expand(200, -1)
    with torch.no_grad():
        chances = (model(input_ids=prompt[:1]).logits[0, -1] / 0.5).softmax(-1)
    ranked = chances.sort(descending=True)
    kept = ranked.indices[ranked.values.cumsum(0) - ranked.values < 0.3]
    torch.manual_seed(0)
    drawn = continuation(model, prompt, 1, temperature=0.5, top_p=0.3)
    assert set(drawn.flatten().tolist()) == set(kept.tolist())


# -- scores ---------------------------------------------------------------------------------------------------------


def test_scores_equal_their_definitions(files: Path) -> None:
    task = task_of(files, visual_tasks=("mask", "denoise"), labels=CLASSES)
    codec = picture_codec(task.codec)
    torch.manual_seed(0)
    numbers = torch.randint(3, (4, 8, 8))
    numbers[0, 0] = 255
    answers, said = torch.rand(4, 3, 8, 8), torch.randint(CODES, (4, TOKENS))
    kinds = torch.tensor([0, 1, 0, 1])
    batch = batch_of({"task": kinds, "answer": answers, "numbers": numbers}, count=4)
    outputs = {"logits": logits_of(count=4), "answer": said}
    metric = task.metric()
    metric.update({name: value[:1] for name, value in outputs.items()}, batch[0:1])
    metric.update({name: value[1:] for name, value in outputs.items()}, batch[1:4])
    found = {name: float(value) for name, value in metric.compute().items()}
    each = F.cross_entropy(outputs["logits"][:, :-1].transpose(1, 2), batch.inputs[:, 1:], reduction="none")
    assert found["perplexity"] == pytest.approx(float(each.mean().exp()), rel=1e-4)
    assert found["answer_perplexity"] == pytest.approx(float(each[:, -TOKENS:].mean().exp()), rel=1e-4)
    assert found["mask/perplexity"] == pytest.approx(float(each[kinds == 0, -TOKENS:].mean().exp()), rel=1e-4)
    painted = codec.decoded(said)
    guessed, shares = classes_of(painted[kinds == 0], 3), []
    for number in range(3):
        known, true = numbers[kinds == 0] != 255, numbers[kinds == 0] == number
        both, either = (guessed == number) & true & known, ((guessed == number) & known) | true
        if bool(either.any()):
            shares.append(float(both.sum() / either.sum()))
    assert found["mask/miou"] == pytest.approx(sum(shares) / len(shares), abs=1e-5)
    errors = (painted[kinds == 1] - answers[kinds == 1]).square().mean(dim=(1, 2, 3))
    assert found["denoise/psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-4)


# -- whole runs -----------------------------------------------------------------------------------------------------


def test_a_run_learns_saves_scores_and_draws(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_of(files, tmp_path / "run", limits={"edges": 3}, balance="augment")
    history = outcome.result.history
    assert history[-1].train_loss < history[0].train_loss
    assert outcome.test is not None and outcome.test.leading == "perplexity"
    assert {"mask/miou", "edges/psnr", "denoise/psnr"} <= set(outcome.test.values)
    adapter = tmp_path / "run" / "adapter.safetensors"
    image = files / "data" / "images" / "00.png"
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # that the images of the training are left out
        assert main(["evaluate", str(adapter), "--data", str(files / "data"), "--json"]) == 0
    assert f"{outcome.test.values['perplexity']:.4f}" in capsys.readouterr().out
    assert main(["predict", str(adapter), str(image), "--draw", str(tmp_path / "drawn")]) == 0
    for shows in ("mask", "edges", "denoise"):
        with Image.open(tmp_path / "drawn" / shows / "00.png") as picture:
            assert picture.size == (8, 8)
    with Image.open(tmp_path / "drawn" / "00.png") as beside:
        assert beside.width > 4 * 100
    said = capsys.readouterr().out
    assert "mask" in said and any(name in said for name in CLASSES)


def test_predictions_are_what_the_model_says_after_the_examples(files: Path, tmp_path: Path) -> None:
    outcome = run_of(files, tmp_path / "run", by_backbone=False)  # --host, not --backbone
    task: Any = outcome.task
    assert set(task.prompts) == {"mask", "edges", "denoise"} and len(task.prompts["mask"]) == 2 * TOKENS
    transform = task.transforms(outcome.preprocessing, "none", False)
    with Image.open(files / "data" / "images" / "01.png") as opened:
        image = opened.convert("RGB")
    batch = task.collate([task.sample_of(image, transform, "01"), task.sample_of(image, transform, "02")])
    outputs = task.run(outcome.tuned.eval(), batch)
    first, second = task.predictions(outputs, batch)
    assert first.pictures.keys() == {"mask", "edges", "denoise"}
    own = picture_codec(task.codec).encoded(
        torch.nn.functional.interpolate(transform(image)[None], size=(8, 8), mode="bilinear", antialias=True)
    )[0]
    prompt = torch.tensor([*task.prompts["edges"], *own.tolist()])[None]
    assert first.values["tokens"]["edges"] == continuation(outcome.tuned, prompt, TOKENS)[0].tolist()
    assert second.values == first.values


def test_what_does_not_fit_is_refused_with_a_sentence(files: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="denoise"):
        VisualSequences(visual_tasks=("masks",))
    with pytest.raises(BadOption, match="numbers of images"):
        VisualSequences(limits={"mask": 0})
    with pytest.raises(MissingPlace, match="LlamaForCausalLM"):
        task_of(files).head(vpeft.describe(vpeft.create_backbone("pocket_vit")), 160)
    with pytest.raises(NoCodec, match="no tokenizer"):
        task_of(files, codec="nothing").own_codec()
    with pytest.raises(NoCodec, match="training used"):
        task_of(files, codec_digest="0" * 64).own_codec()
    with pytest.raises(UnsuitableTargets, match="train an adapter"):
        task_of(files).sample_of(torch.zeros(3, 8, 8), lambda image: image, "a")
    with pytest.raises(UnsuitableTargets, match="teacher"):
        run_of(files, teacher=f"hf:{tmp_path}")
    with pytest.raises(UnsuitableTargets, match="dataset"):
        task_of(files).check([(torch.zeros(3, 8, 8), 0)])
    small = write_llama(tmp_path / "small", codes=8)
    model = vpeft.tune(vpeft.create_backbone(f"host::hf:{small}"), LoRA(rank=2), show=False)
    with pytest.raises(UnsuitableTargets, match="vocab_size"):
        task_of(files).run(model, batch_of({"task": torch.zeros(3)}))
