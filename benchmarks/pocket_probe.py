"""What each pocket task can tell apart: `python benchmarks/pocket_probe.py [TASK ...] [--json FILE]`.

For each task, test accuracy in per cent after 800 training images of: chance; a linear probe on the class token of the
untrained and of the shipped `pocket_vit`; full fine-tuning from scratch and from the shipped weights; LoRA (rank 8 on
q, k, v, proj, fc1, fc2). The learning rate of each is chosen on the 200 validation images; the test split is read once
for each. This is a quick look at one seed, not the benchmark: `vpeft bench --suite pocket` is that. A FILE that
exists is added to: what it holds of the same pictures after as many epochs stays.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vpeft
import vpeft.backbones.pocket_vit  # registers the backbone with timm
from vpeft.data.pocket import PocketTask, digest, pocket_tasks

COLUMNS = ("probe_random", "probe", "scratch", "full", "lora")
RATES = {"scratch": (5e-4, 2e-3), "full": (2e-4, 1e-3), "lora": (2e-3, 6e-3)}
STATED = {"scratch": (1e-3,), "full": (5e-4,), "lora": (5e-3,)}  # with --one-rate: half the time, nothing chosen


def _backbone(pretrained: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("pocket_vit", pretrained=pretrained)
    return model


def splits_of(task: PocketTask) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for split, (images, labels) in task.splits().items():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        found[split] = x, torch.from_numpy(labels)
    return found


def _accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    model.eval()
    with torch.inference_mode():
        guessed = torch.cat([model(x).argmax(-1) for x in data[0].split(200)])
    return float((guessed == data[1]).float().mean()) * 100


def probe(backbone: nn.Module, splits: dict[str, tuple[Tensor, Tensor]], classes: int) -> float:
    """Logistic regression on standardised features; the penalty is chosen on the validation images."""
    backbone.eval()
    with torch.inference_mode():
        features = {s: torch.cat([backbone(p) for p in x.split(200)]) for s, (x, _) in splits.items()}
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-5
    features = {s: ((f - mean) / deviation).clone() for s, f in features.items()}
    best = (-1.0, 0.0)
    for penalty in (1e-4, 1e-3, 1e-2):
        weight, bias = _regression(features["train"], splits["train"][1], classes, penalty)
        right = {s: (f @ weight + bias).argmax(-1) == splits[s][1] for s, f in features.items()}
        best = max(best, (float(right["val"].float().mean()), float(right["test"].float().mean()) * 100))
    return best[1]


def _regression(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()


def tuned(
    kind: str,
    splits: dict[str, tuple[Tensor, Tensor]],
    classes: int,
    epochs: int,
    seed: int,
    rates: dict[str, tuple[float, ...]],
) -> float:
    """Train as `kind` says, with each learning rate; the test accuracy of the one that validates best."""
    best = (-1.0, 0.0)
    images, labels = splits["train"]
    for rate in rates[kind]:
        backbone = _backbone(kind != "scratch", seed)
        every = ("q", "k", "v", "proj", "fc1", "fc2")
        method = vpeft.methods.LoRA(rank=8, targets=every) if kind == "lora" else vpeft.methods.FullFinetuning()
        model = vpeft.tune(backbone, method, num_classes=classes, verify=False, show=False)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
        steps = epochs * (len(images) // 40)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
        for _ in range(epochs):
            model.train()
            for pick in torch.randperm(len(images)).split(40):
                F.cross_entropy(model(images[pick]), labels[pick]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                schedule.step()
        score = _accuracy(model, splits["val"])
        if score > best[0]:
            best = score, _accuracy(model, splits["test"])
    return best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="tasks; all when none is named")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one-rate", action="store_true", help="a stated learning rate in place of the choice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=COLUMNS, default=COLUMNS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rates = STATED if given.one_rate else RATES
    earlier: dict[str, dict[str, float | str]] = {}
    if given.json is not None and given.json.exists():
        earlier = json.loads(given.json.read_text())
    table = {name: row for name, row in earlier.items() if name in pocket_tasks()}
    print(f"{'task':12} chance " + " ".join(f"{c:>12}" for c in given.only) + "  seconds", flush=True)
    for name, task in pocket_tasks().items():
        if given.names and name not in given.names:
            continue
        began, splits, classes = time.perf_counter(), splits_of(task), len(task.labels)
        row: dict[str, float] = {"chance": 100 / classes}
        made_of: dict[str, float | str] = {"epochs": given.epochs, "train": digest(*task.load("train"))[:12]}
        for column in given.only:
            if column.startswith("probe"):
                row[column] = probe(_backbone(column == "probe", given.seed), splits, classes)
            else:
                row[column] = tuned(column, splits, classes, given.epochs, given.seed, rates)
        if any(column in RATES for column in given.only):
            made_of["rates"] = "stated" if given.one_rate else "chosen"
        kept = table.get(name, {})
        if any(kept.get(key, value if key == "rates" else None) != value for key, value in made_of.items()):
            kept = {}
        table[name] = {**kept, **made_of, **{column: round(value, 1) for column, value in row.items()}}
        cells = " ".join(f"{row[c]:12.1f}" for c in given.only)
        print(f"{name:12} {row['chance']:6.1f} {cells} {time.perf_counter() - began:8.0f}", flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
