"""Ideas for the pre-training of `pocket_vit`, compared at equal cost: `python pretraining/ideas.py --work DIR`.

Each idea trains the same backbone from the same start with the same optimisers on as many pictures, `--steps` batches
of 128, on the pictures that `pocket_vit.py` keeps in DIR (its first two stages must have run). Then a linear probe on
the class token is trained on 800 images of each pocket task. Results go to pretraining/ideas.json, one idea after the
other; an idea that is there with as many steps is not trained again. This chooses between ideas; the shipped weights
were trained for longer, see the model card.

- `random weights`: as timm initialises them; `start`: principal components as patch filters, sines as positions,
  which all others begin with;
- `teacher`: distillation of EfficientNet-Lite0 (ImageNet); `teacher, logits`: of its logits alone;
- `factors`: rendered scenes with known factors; `letters`: letters of other scripts;
- `fractals`: which of 500 iterated function systems (formula-driven supervision, Kataoka et al. 2020);
- `masked patches`: 10 of 16 patches to be painted (masked autoencoder, He et al. 2022), on all pictures;
- `self-distillation`: two crops must agree with a moving average's view (DINO, Caron et al. 2021), on all pictures;
- the combinations share the batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import attractor, function_system
from pocket_vit import SCALES, Batches, Scale, Student, _jitter, _optimisers, _start_from_components, losses
from torch import Tensor, nn

from vpeft.backbones.pocket_vit import ARCHITECTURE
from vpeft.data.pocket import pocket_tasks

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
from pocket_probe import probe, splits_of

WIDTH, PATCH, GRID = ARCHITECTURE["embed_dim"], ARCHITECTURE["patch_size"], 4
BATCH = 128


class Idea(ABC):
    """A loss for a `Student`, over batches of 128 pictures."""

    def __init__(self, work: Path, batches: Batches) -> None:
        self.batches = batches

    def modules(self) -> list[nn.Module]:
        """What is trained beside the student, and thrown away."""
        return []

    @abstractmethod
    def loss(self, student: Student) -> Tensor: ...

    def after_step(self, student: Student, progress: float) -> None:
        """What follows the optimiser's step."""
        return


class Supervised(Idea):
    """The parts of `pocket_vit.py`'s loss, on pictures, scenes and glyphs in some proportion."""

    sizes: tuple[int, int, int]
    parts: tuple[str, ...] = ()

    def loss(self, student: Student) -> Tensor:
        # a part without pictures would be a mean over nothing: one picture stands in, and its part is left out
        self.batches.sizes = tuple(max(1, size) for size in self.sizes)
        found = losses(student, *self.batches.draw())
        teacher = ("pooled", "map", "logits")
        factors = [name for name in found if name not in (*teacher, "letters")]
        kept = [*(teacher if self.sizes[0] else ()), *(factors if self.sizes[1] else ())]
        kept += ["letters"] if self.sizes[2] else []
        return torch.stack([found[name] for name in kept if not self.parts or name in self.parts]).sum()


def supervised(*sizes: int, parts: tuple[str, ...] = ()) -> type[Supervised]:
    return type("Proportion", (Supervised,), {"sizes": sizes, "parts": parts})


class Unlabelled(Idea):
    """Draws from pictures, scenes and glyphs as the shipped recipe does, without targets."""

    def draw(self) -> Tensor:
        parts = zip((self.batches.pictures, self.batches.scenes, self.batches.glyphs), (64, 40, 24), strict=True)
        taken = [source[torch.randint(len(source), (count,))] for source, count in parts]
        return torch.cat(taken).permute(0, 3, 1, 2).float() / 127.5 - 1


class MaskedPatches(Unlabelled):
    """The visible patches are encoded, a two-block decoder paints the others, each normalised by its own deviation."""

    masked = 10

    def __init__(self, work: Path, batches: Batches) -> None:
        super().__init__(work, batches)
        layer = nn.TransformerEncoderLayer(96, 4, 384, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.ModuleDict({"in": nn.Linear(WIDTH, 96), "out": nn.Linear(96, 3 * PATCH * PATCH)})
        self.decoder["blocks"] = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder.register_parameter("mask", nn.Parameter(torch.randn(96) * 0.02))
        self.decoder.register_parameter("positions", nn.Parameter(torch.randn(GRID * GRID, 96) * 0.02))

    def modules(self) -> list[nn.Module]:
        return [self.decoder]

    def loss(self, student: Student) -> Tensor:
        x, vit = self.draw(), student.backbone
        count = GRID * GRID
        order = torch.rand(len(x), count).argsort(1)
        hidden, seen = order[:, : self.masked], order[:, self.masked :]
        tokens = vit.patch_embed(x) + vit.pos_embed[:, 1:]
        cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        encoded = vit.norm(vit.blocks(torch.cat([cls, _rows(tokens, seen)], 1)))
        small = self.decoder["in"](encoded)
        # the class token is read too, else nothing would train it
        canvas = self.decoder.mask.expand(len(x), count, -1).scatter(1, _index(seen, 96), small[:, 1:])
        painted = self.decoder["blocks"](canvas + self.decoder.positions + small[:, :1])
        target = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        target = (target - target.mean(-1, keepdim=True)) / (target.std(-1, keepdim=True) + 1e-2)
        return F.mse_loss(self.decoder["out"](_rows(painted, hidden)), _rows(target, hidden))


class SelfDistillation(Unlabelled):
    """Two random crops of a picture; the student's view of one is to agree with a slow copy's view of the other."""

    prototypes, sharp, soft = 1024, 0.04, 0.1

    def __init__(self, work: Path, batches: Batches) -> None:
        super().__init__(work, batches)
        last = nn.utils.parametrizations.weight_norm(nn.Linear(128, self.prototypes, bias=False))
        last.parametrizations.weight.original0.data.fill_(1.0)
        last.parametrizations.weight.original0.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Linear(512, 128), _Unit(), last)
        self.slow: nn.ModuleList | None = None
        self.centre = torch.zeros(self.prototypes)

    def modules(self) -> list[nn.Module]:
        return [self.head]

    def loss(self, student: Student) -> Tensor:
        if self.slow is None:
            self.slow = copy.deepcopy(nn.ModuleList([student.backbone, self.head])).requires_grad_(False)
        # half as many pictures, each seen twice: as many forward passes with a gradient as for the others
        x = self.draw()[torch.randperm(BATCH)[: BATCH // 2]]
        views = torch.cat([_jitter(_cropped(x), 0.3), _jitter(_cropped(x), 0.3)])
        mine = self.head(student.backbone(views)) / self.soft
        with torch.no_grad():
            theirs = self.slow[1](self.slow[0](views))
            target = ((theirs - self.centre) / self.sharp).softmax(-1)
            self.centre = self.centre.lerp(theirs.mean(0), 0.1)
        return -(target.roll(len(x), 0) * mine.log_softmax(-1)).sum(-1).mean()

    def after_step(self, student: Student, progress: float) -> None:
        assert self.slow is not None
        momentum = 1 - (1 - 0.99) * (math.cos(math.pi * progress) + 1) / 2
        fast = nn.ModuleList([student.backbone, self.head])
        with torch.no_grad():
            for slow, own in zip(self.slow.parameters(), fast.parameters(), strict=True):
                slow.lerp_(own, 1 - momentum)


class Fractals(Idea):
    """Which of 500 function systems drew this, each entry of it off by up to a fifth."""

    classes, each = 500, 24

    def __init__(self, work: Path, batches: Batches) -> None:
        super().__init__(work, batches)
        kept = work / "fractals.npy"
        if not kept.exists():
            np.save(kept, self._drawn())
        self.images = torch.from_numpy(np.load(kept))
        self.head = nn.Linear(WIDTH, self.classes)

    def _drawn(self) -> np.ndarray:
        images = np.empty((self.classes, self.each, 64, 64, 3), np.uint8)
        for label in range(self.classes):
            system = function_system(np.random.default_rng([7, label]))
            for index in range(self.each):
                rng = np.random.default_rng([7, label, index + 1])
                picture = attractor(system * rng.uniform(0.8, 1.2, system.shape), rng)
                images[label, index] = np.asarray(picture.resize((64, 64)))
        return images

    def modules(self) -> list[nn.Module]:
        return [self.head]

    def loss(self, student: Student) -> Tensor:
        label = torch.randint(self.classes, (BATCH,))
        x = self.images[label, torch.randint(self.each, (BATCH,))].permute(0, 3, 1, 2).float() / 127.5 - 1
        flip = torch.rand(BATCH) < 0.5
        x[flip] = x[flip].flip(-1)
        return F.cross_entropy(self.head(student.backbone(_jitter(x, 0.3))), label)


class _Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def _index(order: Tensor, width: int) -> Tensor:
    return order[..., None].expand(-1, -1, width)


def _rows(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, _index(order, tokens.shape[-1]))


def _cropped(x: Tensor) -> Tensor:
    """A random square of 0.4 to 1 of each picture's area, perhaps mirrored."""
    side = torch.empty(len(x)).uniform_(0.4, 1.0).sqrt()
    shift = (torch.rand(len(x), 2) * 2 - 1) * (1 - side)[:, None]
    mirror = torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * mirror, side, shift
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), "bilinear", "reflection")


IDEAS: dict[str, Callable[[Path, Batches], Idea] | None] = {
    "random weights": None,
    "start": None,
    "teacher": supervised(128, 0, 0),
    "teacher, logits": supervised(128, 0, 0, parts=("logits",)),
    "factors": supervised(0, 128, 0),
    "letters": supervised(0, 0, 128),
    "fractals": Fractals,
    "masked patches": MaskedPatches,
    "self-distillation": SelfDistillation,
    "teacher + factors": supervised(80, 48, 0),
    "teacher + factors + letters": supervised(64, 40, 24),
}


def trained(name: str, work: Path, batches: Batches, scale: Scale) -> tuple[nn.Module, float, float]:
    """The backbone, the mean loss of the last tenth of the steps, and processor seconds."""
    torch.manual_seed(0)
    student = Student(int(batches.letters.max()) + 1)
    if name == "random weights":
        return student.backbone, math.nan, 0.0
    _start_from_components(student, batches.pictures)
    make = IDEAS[name]
    if make is None:
        return student.backbone, math.nan, 0.0
    idea = make(work, batches)
    optimisers = _optimisers(student, scale)
    extra = [p for module in idea.modules() for p in module.parameters() if p.requires_grad]
    if extra:
        optimisers.append(torch.optim.AdamW(extra, lr=scale.rate, betas=(0.9, 0.98), weight_decay=scale.decay))
    begin, tail = time.process_time(), []
    for step in range(scale.steps):
        share = min(1.0, (step + 1) / scale.warmup, 3 * (1 - step / scale.steps) + 1e-3)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = scale.rate * share
        loss = idea.loss(student)
        loss.backward()
        nn.utils.clip_grad_norm_([*student.parameters(), *extra], 3.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        idea.after_step(student, step / scale.steps)
        if step >= int(0.9 * scale.steps):
            tail.append(loss.item())
        if step % 50 == 0:
            print(f"  {name} {step}/{scale.steps} {loss.item():.3f}", flush=True)
    return student.backbone, sum(tail) / max(1, len(tail)), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, default=list(IDEAS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("ideas.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scale = replace(SCALES["medium"], steps=given.steps, warmup=max(1, given.steps // 16))
    found = json.loads(given.json.read_text()) if given.json.exists() else {"ideas": {}}
    if found.get("steps", given.steps) != given.steps:
        raise SystemExit(f"{given.json} holds ideas after {found['steps']} steps; give another file for {given.steps}.")
    batches, tasks = Batches(given.work, scale), pocket_tasks()
    splits = {key: splits_of(task) for key, task in tasks.items()}
    for name in given.ideas:
        if name in found["ideas"]:
            continue
        backbone, loss, seconds = trained(name, given.work, batches, scale)
        top1 = {key: round(probe(backbone, splits[key], len(task.labels)), 1) for key, task in tasks.items()}
        found["ideas"][name] = {"top1": top1, "loss": None if math.isnan(loss) else round(loss, 4)}
        found["ideas"][name] |= {"minutes": round(seconds / 60, 1)}
        found |= {"steps": given.steps, "batch": BATCH, "groups": {key: task.group for key, task in tasks.items()}}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found["ideas"][name], flush=True)


if __name__ == "__main__":
    main()
