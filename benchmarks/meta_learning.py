"""Meta-learning on the offline tasks: LoRA on held-out tasks from three bases, with few labels of each class.

    python benchmarks/meta_learning.py --out runs/meta

The bases are the pre-trained one, one that was retrained on the source tasks together, and one that was retrained so
that a low-rank step of each source task fits it. Cells are means over the seeds with 95 % intervals (Student's t).
A base or a run that is in the folder is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from scipy.stats import t

import vpeft
from vpeft.atomic import write_json
from vpeft.data.datasets import open_data
from vpeft.regimes.meta_learning import MetaSettings, meta_learn, save_base
from vpeft.tasks.classification import Classification
from vpeft.training.optimisation import Optimisation

BACKBONE = "pocket_vit"
SOURCES = ("glyphs", "handwriting", "coast", "count", "distance", "position")
HELD_OUT = ("photographs", "defects", "orientation")
BASES = ("pretrained", "plain", "joint")
LORA = "lora(rank=4, targets=[q, k, v, proj, fc1, fc2])"


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the bases, the records and table.md")
    parser.add_argument("--bases", default=",".join(BASES))
    parser.add_argument("--tasks", default=",".join(HELD_OUT), help="held-out tasks")
    parser.add_argument("--shots", default="1,4,16,64", help="labels of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of the retraining")
    parser.add_argument("--adapt-steps", type=int, default=100, help="of LoRA on a held-out task")
    options = parser.parse_args()
    shots = [int(one) for one in options.shots.split(",")]
    tasks = options.tasks.split(",")
    lines = [f"| base | {' | '.join(f'{task}, {shot}' for task in tasks for shot in shots)} |"]
    lines.append("|---" * (1 + len(tasks) * len(shots)) + "|")
    for base in options.bases.split(","):
        cells = []
        for task in tasks:
            for shot in shots:
                found = [accuracy(options, base, task, shot, seed) for seed in range(options.seeds)]
                half = 0.0
                if len(found) > 1:
                    half = t.ppf(0.975, len(found) - 1) * statistics.stdev(found) / len(found) ** 0.5
                cells.append(f"{100 * statistics.mean(found):.1f} ± {100 * half:.1f}")
        lines.append(f"| {base} | {' | '.join(cells)} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def base_of(options: argparse.Namespace, base: str) -> torch.nn.Module:
    """The backbone with the weights of a base, retrained now where they are not there."""
    if base == "pretrained":
        return vpeft.create_backbone(BACKBONE)
    file = options.out / f"{base}_{options.steps}.safetensors"
    if not file.exists():
        model = vpeft.create_backbone(BACKBONE)
        stated, tasks = vpeft.Preprocessing.from_model(model), {}
        for name in SOURCES:
            data = open_data(vpeft.DataConfig(source=f"pocket/{name}"))
            tasks[name] = (Classification(labels=tuple(data.labels)), data.train.prepared(stated))
        settings = MetaSettings(method=LORA, steps=options.steps, lr=1e-4, adapter_lr=2e-3)
        meta_learn(model, tasks, settings, adapt=base == "joint", say=lambda line: print(f"{base}: {line}", flush=True))
        save_base(model, file)
    return vpeft.create_backbone(BACKBONE, weights=file)


def accuracy(options: argparse.Namespace, base: str, task: str, shot: int, seed: int) -> float:
    """On the test split of a held-out task, after LoRA on so many labels of each class."""
    file = options.out / "runs" / f"{base}_{options.steps}_{task}_{shot}_{seed}_{options.adapt_steps}.json"
    if not file.exists():
        model = base_of(options, base)
        stated = vpeft.Preprocessing.from_model(model)
        data = open_data(vpeft.DataConfig(source=f"pocket/{task}", per_class=shot, seed=seed))
        learnt = Classification(labels=tuple(data.labels))
        method = vpeft.methods.LoRA(rank=4, targets=("q", "k", "v", "proj", "fc1", "fc2"))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tuned = vpeft.tune(model, method, task=learnt, verify=False)
        batch = min(64, len(data.train))
        epochs = max(1, options.adapt_steps * batch // len(data.train))
        settings = Optimisation(lr=2e-3, batch=batch, epochs=epochs, seed=seed)
        vpeft.fit(tuned, data.train.prepared(stated), optimisation=settings, progress=False)
        assert data.test is not None
        found = vpeft.evaluate(tuned, data.test.prepared(stated)).values["top1"]
        write_json(file, {"base": base, "task": task, "shot": shot, "seed": seed, "accuracy": found})
        print(f"{base}, {task}, {shot} a class, seed {seed}: {100 * found:.1f} %", flush=True)
    value: float = json.loads(file.read_text(encoding="utf-8"))["accuracy"]
    return value


if __name__ == "__main__":
    main()
