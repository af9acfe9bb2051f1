"""Pre-train `pocket_video`: `python pretraining/pocket_video.py --work DIR [--scale tiny|small|medium]`.

The blocks start as those of `pocket_vit`, whose patch projection is inflated over the two frames of a tubelet. Then, on
generated clips (motion.py), most tokens are hidden and a small decoder, which is thrown away, finds out from the rest

- the pixels of the hidden tubelets, each with mean 0 and deviation 1 (VideoMAE, arXiv 2203.12602), and
- what `pocket_vit` makes of the hidden cells in the second frame of each tubelet (distillation), each with norm 1.

Half of the batches hide the same cells at all steps of time, the other half each token by itself. No label is used.
Stages are kept in DIR; a killed training resumes from its last checkpoint and ends with the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import motion
import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vpeft.backbones.pocket_video import TUBELET, PocketVideo
from vpeft.backbones.pocket_vit import ARCHITECTURE

ROOT = Path(__file__).resolve().parent.parent
NARROW = 96  # width of the decoder


@dataclass(frozen=True)
class Scale:
    clips: int
    steps: int
    batch: int = 32
    rate: float = 6e-4
    decay: float = 0.05
    warmup: int = 200
    hidden: float = 0.75
    teacher: float = 1.0  # weight of the distillation


SCALES = {
    "tiny": Scale(24, 6, batch=4, warmup=2),  # only to see that every stage runs
    "small": Scale(6_000, 6_000),
    "medium": Scale(16_000, 16_000),
}


class Student(nn.Module):
    """The backbone, and the decoder that pre-training needs and throws away."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = PocketVideo(**ARCHITECTURE)
        width, side = ARCHITECTURE["embed_dim"], ARCHITECTURE["patch_size"]
        count = self.backbone.time_embed.shape[1] * self.backbone.pos_embed.shape[1]
        self.narrow = nn.Linear(width, NARROW)
        self.blank = nn.Parameter(torch.zeros(1, 1, NARROW))
        self.places = nn.Parameter(torch.randn(1, count, NARROW) * 0.02)
        self.blocks = nn.ModuleList(Block(NARROW, 3, qkv_bias=True) for _ in range(2))
        self.norm = nn.LayerNorm(NARROW)
        self.pixels = nn.Linear(NARROW, TUBELET * side * side * 3)
        self.features = nn.Linear(NARROW, width)

    def forward(self, clips: Tensor, seen: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) and the numbers of the seen tokens (B, n) -> the decoder's tokens (B, N, d)."""
        tokens = self.backbone.embed(clips)
        x = tokens.gather(1, seen[..., None].expand(-1, -1, tokens.shape[-1]))
        for block in self.backbone.blocks:
            x = block(x)
        x = self.narrow(self.backbone.norm(x))
        whole = self.blank.expand(len(x), tokens.shape[1], -1)
        whole = whole.scatter(1, seen[..., None].expand(-1, -1, NARROW), x) + self.places
        for block in self.blocks:
            whole = block(whole)
        out: Tensor = self.norm(whole)
        return out


@torch.no_grad()
def start_from_images(student: Student) -> nn.Module:
    """Give the student the blocks of `pocket_vit`, its filters over two frames, its positions; returns the teacher."""
    teacher: nn.Module = timm.create_model("pocket_vit", pretrained=True).eval().requires_grad_(False)
    own, theirs = student.backbone, teacher
    own.blocks.load_state_dict(theirs.blocks.state_dict())
    own.norm.load_state_dict(theirs.norm.state_dict())
    filters = theirs.patch_embed.proj
    own.patch_embed.weight.copy_(filters.weight[:, :, None].expand(-1, -1, TUBELET, -1, -1) / TUBELET)
    own.patch_embed.bias.copy_(filters.bias)
    own.pos_embed.copy_(theirs.pos_embed[:, 1:])
    steps, width = own.time_embed.shape[1:]
    waves = torch.arange(1, width // 2 + 1) * (math.pi / 16)
    angles = torch.arange(steps)[:, None] * waves
    own.time_embed.copy_(0.1 * torch.cat([angles.sin(), angles.cos()], dim=1)[None])
    return teacher


def tubelets(clips: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> the pixels of each token, (B, T / 2 * 16, 2 * 16 * 16 * 3)."""
    side = ARCHITECTURE["patch_size"]
    cut = clips.unflatten(2, (-1, TUBELET)).unflatten(4, (-1, side)).unflatten(6, (-1, side))
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)  # (B, T', h, w, t, y, x, c)


class Batches:
    """Draws clips and what of them is seen; random numbers come from torch's global generator."""

    def __init__(self, clips: NDArray[np.uint8], scale: Scale) -> None:
        self.clips, self.scale = clips, scale

    def draw(self, tokens: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, 3, T, H, W) in [-1, 1], the numbers of the tokens that are seen, and those that are hidden."""
        pick = torch.randint(len(self.clips), (self.scale.batch,))
        x = torch.from_numpy(np.stack([self.clips[int(number)] for number in pick])).permute(0, 4, 1, 2, 3)
        x = x.float() / 127.5 - 1
        if torch.rand(()) < 0.5:
            x = x.flip(4)
        if torch.rand(()) < 0.5:
            x = x.flip(2)
        gain = 1 + (torch.rand(len(x), 3, 1, 1, 1) - 0.5) * 0.4
        x = (x * gain).clamp(-1, 1)
        keep = max(1, round((1 - self.scale.hidden) * cells))
        if torch.rand(()) < 0.5:  # the same cells at all steps of time
            order = torch.rand(len(x), cells).argsort(dim=1)
            base = torch.arange(tokens // cells)[:, None] * cells
            seen, unseen = ((order[:, None, part] + base).flatten(1) for part in (slice(keep), slice(keep, None)))
        else:
            order = torch.rand(len(x), tokens).argsort(dim=1)
            seen, unseen = order[:, : keep * tokens // cells], order[:, keep * tokens // cells :]
        return x, seen, unseen


def losses(
    student: Student, teacher: nn.Module, x: Tensor, seen: Tensor, unseen: Tensor, weight: float
) -> dict[str, Tensor]:
    """Every part of the loss as a scalar; their sum is minimised."""
    found = student(x, seen)
    found = found.gather(1, unseen[..., None].expand(-1, -1, found.shape[-1]))

    def hidden(values: Tensor) -> Tensor:
        return values.gather(1, unseen[..., None].expand(-1, -1, values.shape[-1]))

    pixels = hidden(tubelets(x))
    pixels = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-3).sqrt()
    with torch.no_grad():
        frames = x[:, :, TUBELET - 1 :: TUBELET].transpose(1, 2)
        maps = teacher.forward_features(frames.flatten(0, 1))[:, 1:]
        targets = hidden(maps.unflatten(0, (len(x), -1)).flatten(1, 2))
    return {
        "pixels": F.mse_loss(student.pixels(found), pixels),
        "teacher": weight * (1 - F.cosine_similarity(student.features(found), targets, dim=-1).mean()),
    }


def optimiser_of(student: Student, scale: Scale) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    named = list(student.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2 and not n.endswith(("embed", "blank", "places"))]
    plain = [p for n, p in named if all(p is not q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": scale.decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=scale.rate, betas=(0.9, 0.95))


def train(
    work: Path, scale: Scale, seed: int, limit_minutes: float | None, device: str = "cpu"
) -> tuple[Student, list[dict[str, float]]]:
    """Train from DIR/checkpoint.pt, else from `pocket_vit`; returns the student and the log."""
    torch.manual_seed(seed)
    student = Student()
    teacher = start_from_images(student).to(device)
    optimiser = optimiser_of(student.to(device), scale)
    batches, checkpoint = Batches(motion.build(work, scale.clips), scale), work / "checkpoint.pt"
    log: list[dict[str, float]] = []
    sums: dict[str, float] = {}
    step, spent, often = 0, 0.0, max(1, min(100, scale.steps // 3))
    torch.manual_seed(seed + 1)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        log, step, spent = state["log"], state["step"], state["spent"]
        torch.set_rng_state(state["random"])
    began = time.perf_counter() - spent
    cells = student.backbone.pos_embed.shape[1]
    tokens = cells * student.backbone.time_embed.shape[1]
    while step < scale.steps:
        progress = step / scale.steps
        if limit_minutes is not None:
            progress = max(progress, min((time.perf_counter() - began) / 60 / limit_minutes, 1.0))
        # constant, then linear to zero over the last third
        share = min(1.0, (step + 1) / scale.warmup, 3 * (1 - progress) + 1e-3)
        for group in optimiser.param_groups:
            group["lr"] = scale.rate * share
        drawn = (one.to(device) for one in batches.draw(tokens, cells))
        parts = losses(student, teacher, *drawn, scale.teacher)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        if step % often == 0 or step == scale.steps or progress >= 1:
            count = step - int(log[-1]["step"] if log else 0)
            entry = {"step": float(step), "seconds": round(time.perf_counter() - began, 1), "rate": scale.rate * share}
            log.append(entry | {name: round(total / count, 4) for name, total in sums.items()})
            sums = {}
            print(json.dumps(log[-1]), flush=True)
            state = {"student": student.state_dict(), "optimiser": optimiser.state_dict(), "log": log, "step": step}
            state |= {"spent": time.perf_counter() - began, "random": torch.get_rng_state()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
        if progress >= 1:
            break
    return student, log


def export(student: Student, log: list[dict[str, float]], scale: Scale, out: Path, log_file: Path) -> None:
    """Write the backbone's tensors in half precision, and the log beside the script."""
    tensors = {name: t.detach().cpu().half().contiguous() for name, t in student.backbone.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(out)
    record = {"scale": asdict(scale), "architecture": ARCHITECTURE, "torch": torch.__version__}
    record |= {"python": platform.python_version(), "seed_of_clips": motion.SEED, "steps": log}
    record |= {"parameters": sum(t.numel() for t in tensors.values())}
    log_file.write_text(json.dumps(record, indent=1).replace("\n   ", "").replace("\n  }", "}") + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for clips and the checkpoint")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where to train; drawing is done by the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-minutes", type=float, help="end the schedule after this much training time")
    parser.add_argument("--out", type=Path, default=ROOT / "src/vpeft/assets/pocket_video.safetensors")
    parser.add_argument("--log", type=Path, default=ROOT / "pretraining/pocket_video.log.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scale = SCALES[given.scale]
    given.work.mkdir(parents=True, exist_ok=True)
    student, log = train(given.work, scale, given.seed, given.limit_minutes, given.device)
    export(student, log, scale, given.out, given.log)


if __name__ == "__main__":
    main()
