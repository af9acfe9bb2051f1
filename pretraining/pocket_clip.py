"""Train `pocket_clip`: `python pretraining/pocket_clip.py --work DIR [--scale tiny|small|medium] [--limit-minutes N]`.

The image tower starts as `pocket_vit`, the text tower from nothing. Pictures are drawn by the drawers of the pocket
tasks (their training parts, other seeds) and of `pocket-captions`, with captions made of their labels. Images and
captions of a batch are compared by InfoNCE (CLIP, arXiv 2103.00020), in which equal captions count as equal (UniCL,
arXiv 2204.03610). A killed training goes on from DIR/checkpoint.pt with the same command; `--export` writes the
weights in half precision, the log and the card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vpeft.backbones.pocket_clip import PocketClip
from vpeft.backbones.pocket_words import PocketTokenizer
from vpeft.data.pocket import pocket_tasks
from vpeft.data.pocket_captions import captioned_split, draw_captioned
from vpeft.data.pocket_words import TEMPLATES

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "src" / "vpeft" / "assets" / "pocket_clip.safetensors"
LOG = Path(__file__).with_suffix(".log.json")
SEED = 977  # of pictures, order and weights; no set of vpeft has it
DRAWS = 1500  # pictures of one call of a drawer; handwriting has no more digits
CAPTIONS = "captions"


@dataclass(frozen=True)
class Scale:
    """How much: `rounds` of 1,500 pictures of each task, `scenes` captioned ones, `steps` of `batch` pairs."""

    rounds: int
    scenes: int
    steps: int
    batch: int = 128
    rate: float = 1e-3  # of what starts from nothing
    fine: float = 3e-4  # of the image tower
    decay: float = 0.05
    warmup: int = 100


SCALES = {
    "tiny": Scale(1, 60, 4, batch=16, warmup=1),  # only to see that every stage runs
    "small": Scale(2, 8_000, 2_500),
    "medium": Scale(4, 24_000, 12_000),
}


def drawn(work: Path, scale: Scale) -> tuple[dict[str, NDArray[np.uint8]], dict[str, list[Any]]]:
    """Pictures by task (and of captions) and their labels or captions; kept in DIR."""
    pictures: dict[str, NDArray[np.uint8]] = {}
    told: dict[str, list[Any]] = {}
    size = DRAWS if scale.rounds > 1 else 40
    for place, (name, task) in enumerate(pocket_tasks().items()):
        file = work / f"{name}.npz"
        if not file.exists():
            parts = []
            for turn in range(scale.rounds):
                rng = np.random.Generator(np.random.PCG64([SEED, place, turn]))
                parts.append(task.draw("train", size, rng))
            images, labels = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
            np.savez(file.with_suffix(".part.npz"), images=images, labels=labels)
            file.with_suffix(".part.npz").rename(file)
        held = np.load(file)
        pictures[name], told[name] = held["images"], held["labels"].tolist()
    file = work / "captions.npz"
    if not file.exists():
        rng = np.random.Generator(np.random.PCG64([SEED, 100]))
        images, captions = draw_captioned(scale.scenes, rng)
        np.savez(file.with_suffix(".part.npz"), images=images, captions=np.asarray(captions))
        file.with_suffix(".part.npz").rename(file)
    held = np.load(file)
    pictures[CAPTIONS], told[CAPTIONS] = held["images"], held["captions"].tolist()
    return pictures, told


class Batches:
    """Draws pairs: three eighths captioned scenes, the rest of two tasks, so that neighbours are hard to tell apart."""

    def __init__(self, pictures: dict[str, NDArray[np.uint8]], told: dict[str, list[Any]], scale: Scale) -> None:
        self.pictures, self.told, self.scale = pictures, told, scale
        self.labels = {name: task.labels for name, task in pocket_tasks().items()}

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Images (B, 3, 64, 64) in [-1, 1] and their captions."""
        scenes = self.scale.batch * 3 // 8
        names = list(self.labels)
        chosen = [names[number] for number in rng.permutation(len(names))[:2]]
        each = (self.scale.batch - scenes) // 2
        images: list[NDArray[np.uint8]] = []
        captions: list[str] = []
        for name, count in ((CAPTIONS, scenes), *((one, each) for one in chosen)):
            for number in rng.integers(0, len(self.pictures[name]), count).tolist():
                images.append(self.pictures[name][number])
                captions.append(self._said(name, self.told[name][number], rng))
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        gain = 1 + (torch.from_numpy(rng.random((len(x), 1, 1, 1))).float() - 0.5) * 0.2
        return (x * gain).clamp(-1, 1), captions

    def _said(self, name: str, told: Any, rng: np.random.Generator) -> str:
        if name == CAPTIONS:
            return str(told)
        templates = TEMPLATES[name]
        return templates[int(rng.integers(0, len(templates)))].replace("{}", self.labels[name][told])


def loss_of(seen: Tensor, read: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """InfoNCE in both directions; every image with the same caption is a right answer, all alike."""
    number = {text: place for place, text in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[text] for text in captions], device=seen.device)
    same = (ids[:, None] == ids[None, :]).float()
    targets = same / same.sum(1, keepdim=True)
    logits = scale * seen @ read.T
    return 0.5 * (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets))


def model_and_optimiser(scale: Scale) -> tuple[PocketClip, torch.optim.Optimizer]:
    """The model, its image tower as `pocket_vit`; decay on matrices only."""
    torch.manual_seed(SEED)
    model = PocketClip()
    model.visual.load_state_dict(timm.create_model("pocket_vit", pretrained=True).state_dict())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = scale.fine if name.startswith("visual.") else scale.rate
        decay = scale.decay if parameter.ndim >= 2 and "embed" not in name else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    made = [{"params": some, "lr": rate, "full": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]
    return model, torch.optim.AdamW(made, betas=(0.9, 0.98))


def train(work: Path, scale: Scale, limit: float | None) -> tuple[PocketClip, list[dict[str, float]]]:
    """Train from DIR/checkpoint.pt, else from the start; returns the model and the log.

    With `limit`, the rate falls to zero after so many minutes of training, wherever it is.
    """
    pictures, told = drawn(work, scale)
    batches, (model, optimiser) = Batches(pictures, told, scale), model_and_optimiser(scale)
    tokenizer, checkpoint = PocketTokenizer(), work / "checkpoint.pt"
    log: list[dict[str, float]] = []
    step, spent, total, often = 0, 0.0, 0.0, max(1, min(50, scale.steps // 2))
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        log, step, spent = state["log"], state["step"], state["spent"]
    began = time.perf_counter() - spent
    model.train()
    progress = 0.0
    while step < scale.steps and progress < 1:
        progress = step / scale.steps
        if limit is not None:
            progress = max(progress, min((time.perf_counter() - began) / 60 / limit, 1.0))
        share = min(1.0, (step + 1) / scale.warmup) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-4
        for group in optimiser.param_groups:
            group["lr"] = group["full"] * share
        images, captions = batches.draw(np.random.Generator(np.random.PCG64([SEED, 200, step])))
        loss = loss_of(*model(images, tokenizer(captions)), captions)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        step, total = step + 1, total + loss.item()
        if step % often == 0 or step == scale.steps or progress >= 1:
            count = step - int(log[-1]["step"] if log else 0)
            seconds = time.perf_counter() - began
            log.append({"step": float(step), "seconds": round(seconds, 1), "loss": round(total / count, 4)})
            total = 0.0
            print(json.dumps(log[-1]), flush=True)
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "log": log, "step": step}
            torch.save({**state, "spent": seconds}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
    return model.eval(), log


@torch.no_grad()
def scores(model: PocketClip, split: str) -> dict[str, float]:
    """Zero-shot accuracy on a split of every pocket task, by the mean of its templates; R@1 of captions, both ways."""
    tokenizer, found = PocketTokenizer(), dict[str, float]()

    def features(images: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.cat(
            [functional.normalize(model.image_projection(model.visual(part)), dim=-1) for part in x.split(200)]
        )

    for name, task in pocket_tasks().items():
        images, labels = task.load(split)
        texts = [
            functional.normalize(model.text(tokenizer([one.replace("{}", label) for label in task.labels])), dim=-1)
            for one in TEMPLATES[name]
        ]
        names = functional.normalize(torch.stack(texts).mean(0), dim=-1)
        said = (features(images) @ names.T).argmax(1)
        found[name] = round(float((said == torch.from_numpy(labels)).float().mean()), 4)
    images, captions = captioned_split(split)
    cosines = features(images) @ functional.normalize(model.text(tokenizer(captions)), dim=-1).T
    right = torch.arange(len(captions))
    found["captions, text of image"] = round(float((cosines.argmax(1) == right).float().mean()), 4)
    found["captions, image of text"] = round(float((cosines.argmax(0) == right).float().mean()), 4)
    half = len(captions) // 2
    for told, part in (("new", slice(0, half)), ("known", slice(half, None))):
        name = f"captions, text of image, {told} compositions"
        found[name] = round(float((cosines.argmax(1) == right)[part].float().mean()), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--limit-minutes", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", action="store_true", help="write the weights and the log into the repository")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    model, log = train(asked.work, SCALES[asked.scale], asked.limit_minutes)
    if asked.export:
        half = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        save_file(half, ASSET)
        model.load_state_dict({key: value.float() for key, value in half.items()})
    told = {"val": scores(model, "val"), "test": scores(model, "test")} if asked.scale != "tiny" else {}
    print(json.dumps(told, indent=1))
    if asked.export:
        LOG.write_text(json.dumps({"scale": asked.scale, "log": log, "scores": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
