"""Pre-train `pocket_vit`: `python pretraining/pocket_vit.py --work DIR [--scale small|medium|large]`.

Stages, each kept in DIR and skipped when its result is there: pictures (arrays.py), the teacher's targets (teacher.py),
training, export of src/vpeft/assets/pocket_vit.safetensors and pretraining/pocket_vit.log.json. A killed training
resumes from its last checkpoint. The loss of a batch is the sum of

- pictures: mean squared error to the teacher's pooled features (from the class token) and to its 4x4 map (from the 16
  patch tokens), and cross-entropy to its softened logits; half of the batches with CutMix along patch borders, for
  which the map stays an exact target and the others are mixed by area;
- scenes: cross-entropy for each factor that the picture has, divided by log(classes);
- glyphs: cross-entropy for the letter, divided by log(letters).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import arrays
import corpus
import numpy as np
import teacher
import torch
import torch.nn.functional as F
from muon import Muon
from safetensors.torch import save_file
from scenes import FACTORS, NAMES
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpeft.backbones.pocket_vit import ARCHITECTURE

ROOT = Path(__file__).resolve().parent.parent
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Scale:
    pictures: int
    scenes: int
    glyphs: int
    steps: int
    batch: tuple[int, int, int] = (64, 40, 24)  # pictures, scenes, glyphs
    rate: float = 2e-3
    decay: float = 0.05
    warmup: int = 200


SCALES = {
    "tiny": Scale(600, 600, 300, 30),  # only to see that every stage runs
    "small": Scale(24_000, 40_000, 20_000, 9_000, batch=(32, 20, 12)),
    "medium": Scale(24_000, 40_000, 20_000, 12_000, rate=3e-3),
    "large": Scale(200_000, 400_000, 200_000, 60_000, batch=(256, 160, 96)),
}


class Student(nn.Module):
    """The backbone and the linear heads that pre-training needs and throws away."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        width = ARCHITECTURE["embed_dim"]
        self.backbone = VisionTransformer(**ARCHITECTURE, num_classes=0)
        for block in self.backbone.blocks:
            block.attn.fused_attn = False  # with 17 tokens the explicit product is no slower
        self.pooled = nn.Linear(width, teacher.POOLED_WIDTH)
        self.map = nn.Linear(width, teacher.MAP_WIDTH)
        self.logits = nn.Linear(width, 1000)
        self.factors = nn.ModuleDict({f"f_{name}": nn.Linear(width, n) for name, n in FACTORS.items()})
        self.letters = nn.Linear(width, letters)


def _jitter(x: Tensor, strength: float) -> Tensor:
    """Contrast, brightness and a colour cast per picture; x (B, 3, H, W) in [-1, 1]."""
    gain = 1 + (torch.rand(len(x), 1, 1, 1) - 0.5) * 2 * strength
    cast = (torch.rand(len(x), 3, 1, 1) - 0.5) * strength + (torch.rand(len(x), 1, 1, 1) - 0.5) * strength
    return (x * gain + cast).clamp(-1, 1)


@torch.no_grad()
def _start_from_components(student: Student, pictures: Tensor) -> None:
    """Patch embedding = first principal components of the corpus' patches, half whitened; positions = sines.

    From a random start a short training spends most of its steps on finding filters of this kind, and positions of
    timm's 0.02 would not be seen beside patches of variance one.
    """
    size, embed = ARCHITECTURE["patch_size"], student.backbone.patch_embed.proj
    some = pictures[:: max(1, len(pictures) // 4000)].permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = F.unfold(some, size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov((patches - patches.mean(0)).T.double()))
    values, vectors = values.flip(0)[: embed.out_channels], vectors.flip(1)[:, : embed.out_channels]
    weight = (vectors * values.clamp_min(1e-9) ** -0.25).T.float()
    embed.weight.copy_((weight / (patches @ weight.T).std()).view_as(embed.weight))
    grid = ARCHITECTURE["img_size"] // size
    across = (torch.arange(grid) + 0.5) / grid
    waves = torch.arange(1, ARCHITECTURE["embed_dim"] // 4 + 1) * (math.pi / 8)
    row, column = (t.flatten()[:, None] * waves for t in torch.meshgrid(across, across, indexing="ij"))
    student.backbone.pos_embed[0, 1:] = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], 1) * 0.7


class Batches:
    """Draws mixed batches from the arrays in `work`; random numbers come from torch's global generator."""

    def __init__(self, work: Path, scale: Scale) -> None:
        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.load(work / f"{name}.npy"))

        big = np.load(work / "pictures.npy", mmap_mode="r")
        small = np.empty((len(big), 64, 64, 3), np.uint8)
        for i in range(0, len(big), 500):  # 128 -> 64: the mean of 2x2
            part = big[i : i + 500].astype(np.uint16)
            small[i : i + 500] = (part.reshape(-1, 64, 2, 64, 2, 3).sum((2, 4)) + 2) // 4
        self.pictures = torch.from_numpy(small)
        self.map, self.pooled, self.logits = (tensor(f"targets_{n}") for n in ("map", "pooled", "logits"))
        self.scenes, self.factors = tensor("scenes"), tensor("scenes_labels").long()
        self.glyphs, self.letters = tensor("glyphs"), tensor("glyphs_labels").long()
        self.sizes = scale.batch

    def _take(self, images: Tensor, index: Tensor) -> Tensor:
        return images[index].permute(0, 3, 1, 2).float() / 127.5 - 1

    def draw(self) -> tuple[Tensor, dict[str, Tensor]]:
        n, s, g = self.sizes
        pick = torch.randint(len(self.pictures), (n,))
        x, grid, pooled = self._take(self.pictures, pick), self.map[pick].float(), self.pooled[pick].float()
        soft = (self.logits[pick].float() / TEMPERATURE).softmax(-1)
        flip = torch.rand(n) < 0.5
        x[flip] = x[flip].flip(-1)
        grid[flip] = grid[flip].view(-1, 4, 4, grid.shape[-1]).flip(2).flatten(1, 2)
        if torch.rand(()) < 0.5:
            top, left = torch.randint(0, 4, (2,)).tolist()
            high, wide = torch.randint(1, 4, (2,)).tolist()
            cells = torch.zeros(4, 4, dtype=torch.bool)
            cells[top : top + high, left : left + wide] = True
            share = cells.float().mean()
            pixels = cells.repeat_interleave(16, 0).repeat_interleave(16, 1)
            x = torch.where(pixels, x.roll(1, 0), x)
            grid = torch.where(cells.flatten()[None, :, None], grid.roll(1, 0), grid)
            pooled, soft = (t.lerp(t.roll(1, 0), share) for t in (pooled, soft))
        scene = torch.randint(len(self.scenes), (s,))
        glyph = torch.randint(len(self.glyphs), (g,))
        y, z = self._take(self.scenes, scene), self._take(self.glyphs, glyph)
        targets = {"map": grid, "pooled": pooled, "soft": soft}
        targets |= {"factors": self.factors[scene], "letters": self.letters[glyph]}
        return torch.cat([_jitter(x, 0.2), _jitter(y, 0.05), _jitter(z, 0.3)]), targets


def losses(student: Student, x: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every part of the loss as a scalar; their sum is minimised."""
    tokens = student.backbone.forward_features(x)
    cls, n, s = tokens[:, 0], len(targets["map"]), len(targets["factors"])
    parts = {
        "pooled": F.mse_loss(student.pooled(cls[:n]), targets["pooled"]),
        "map": F.mse_loss(student.map(tokens[:n, 1:]), targets["map"]),
        "logits": F.cross_entropy(student.logits(cls[:n]) / TEMPERATURE, targets["soft"]) * 0.25,
        "letters": F.cross_entropy(student.letters(cls[n + s :]), targets["letters"])
        / math.log(student.letters.out_features),
    }
    scene = cls[n : n + s]
    for i, name in enumerate(NAMES):
        label = targets["factors"][:, i]
        if (label >= 0).any():
            loss = F.cross_entropy(student.factors[f"f_{name}"](scene), label, ignore_index=-1)
            parts[name] = loss / math.log(FACTORS[name]) / 4  # about ten factors: each a quarter of a teacher's term
    return parts


def _optimisers(student: Student, scale: Scale) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else; weight decay on matrices only."""
    inner = [p for p in student.backbone.blocks.parameters() if p.ndim == 2]
    rest = [(n, p) for n, p in student.named_parameters() if all(p is not q for q in inner)]
    decayed = [p for n, p in rest if p.ndim >= 2 and not n.endswith(("pos_embed", "cls_token"))]
    plain = [p for n, p in rest if p.ndim < 2 or n.endswith(("pos_embed", "cls_token"))]
    groups = [{"params": decayed, "weight_decay": scale.decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=scale.rate, betas=(0.9, 0.98))
    return [Muon(inner, lr=scale.rate, weight_decay=scale.decay), adamw]


def train(
    work: Path, scale: Scale, seed: int, limit_minutes: float | None, start: Path | None
) -> tuple[Student, list[dict[str, float]]]:
    """Train from DIR/checkpoint.pt, else from `start`, else from nothing; returns the student and the log.

    Of `start` (a checkpoint of an earlier run) every tensor of the same name and shape is taken; its log comes first.
    """
    torch.manual_seed(seed)
    student = Student(int(np.load(work / "glyphs_labels.npy").max()) + 1)
    optimisers = _optimisers(student, scale)
    batches, log, step, checkpoint = Batches(work, scale), [], 0, work / "checkpoint.pt"
    _start_from_components(student, batches.pictures)
    spent = 0.0
    if start is not None:
        earlier = torch.load(start, weights_only=True)
        own = student.state_dict()
        fitting = {k: t for k, t in earlier["student"].items() if k in own and own[k].shape == t.shape}
        student.load_state_dict(fitting, strict=False)
        log = [entry | {"run": 0.0} for entry in earlier["log"]]
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"])
        for optimiser, held in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(held)
        log, step, spent = state["log"], state["step"], state["spent"]
        torch.set_rng_state(state["random"])
    began, sums = time.perf_counter() - spent, {}
    # Trapezoid: constant, then linear to zero over the last third, so that a longer run can start from the plateau
    while step < scale.steps:
        progress = step / scale.steps
        if limit_minutes is not None:
            progress = max(progress, min((time.perf_counter() - began) / 60 / limit_minutes, 1.0))
        share = min(1.0, (step + 1) / scale.warmup, 3 * (1 - progress) + 1e-3)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = scale.rate * share
        parts = losses(student, *batches.draw())
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        for name, value in parts.items():
            total, times = sums.get(name, (0.0, 0))
            sums[name] = (total + value.item(), times + 1)
        if step % 100 == 0 or step == scale.steps or progress >= 1:
            entry = {
                "step": float(step),
                "seconds": round(time.perf_counter() - began, 1),
                "rate": round(scale.rate * share, 7),
            }
            log.append(entry | {name: round(total / times, 4) for name, (total, times) in sums.items()})
            sums = {}
            print(json.dumps(log[-1]), flush=True)
            state = {"student": student.state_dict(), "log": log, "step": step}
            state["optimisers"] = [optimiser.state_dict() for optimiser in optimisers]
            state |= {"spent": time.perf_counter() - began, "random": torch.get_rng_state()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
        if progress >= 1:
            break
    return student, log


def export(student: Student, log: list[dict[str, float]], scale: Scale, out: Path, log_file: Path) -> None:
    """Write the backbone's tensors in half precision, and the log beside the script."""
    tensors = {name: t.detach().half().contiguous() for name, t in student.backbone.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(out)
    record = {"scale": asdict(scale), "architecture": ARCHITECTURE, "torch": torch.__version__}
    record |= {"python": platform.python_version(), "factors": FACTORS, "steps": log}
    text = json.dumps(record, indent=1).replace("\n   ", "").replace("\n  }", "}")
    log_file.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for packages, arrays and the checkpoint")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-minutes", type=float, help="end the schedule after this much training time")
    parser.add_argument("--start", type=Path, help="checkpoint of an earlier run; tensors that fit are taken")
    parser.add_argument("--teacher", type=Path, help="the teacher's checkpoint, if its package is not installed")
    parser.add_argument("--out", type=Path, default=ROOT / "src/vpeft/assets/pocket_vit.safetensors")
    parser.add_argument("--log", type=Path, default=ROOT / "pretraining/pocket_vit.log.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scale = SCALES[given.scale]
    given.work.mkdir(parents=True, exist_ok=True)
    arrays.build(given.work, scale.pictures, scale.scenes, scale.glyphs)
    teacher.write_targets(given.work, given.teacher)
    student, log = train(given.work, scale, given.seed, given.limit_minutes, given.start)
    export(student, log, scale, given.out, given.log)
    given.log.with_name("pocket_vit.files.txt").write_text("\n".join(corpus.digests(given.work)) + "\n")


if __name__ == "__main__":
    main()
