"""What the adapters of a multimodal language model learn, and what they do to its representations: PT-PEFT's table.

    python pretraining/pocket_captioner.py --work DIR
    python benchmarks/multimodal.py --host DIR/model --out benchmarks/results/multimodal.json

A captioner of drawn figures is adapted to questions about them ("how many?", "which colour?", "where?"): LoRA,
adapters, prompts, prefixes, PT-PEFT with each, and everything trained. Methods are on the vision tower and on the
language model. The learning rate of each method is chosen on validation questions with the first seed; then every seed
trains and is tested once. Beside the accuracy stands the effective rank (Roy and Vetterli 2007) of the features of the
last block of both towers on test pictures, and of the frozen model: PT-PEFT (arXiv 2411.00029) says that LoRA, adapters
and full fine-tuning lower it, that prefixes keep it, and that PT-PEFT keeps it and learns most.

Runs that the file holds are not done again, so that a killed command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import vpeft
from vpeft.atomic import write_json
from vpeft.backbones.create import create_backbone
from vpeft.batch import Sample
from vpeft.data.pocket_questions import SIZES, questioned_split
from vpeft.explanation.representation import ranks_by_block
from vpeft.method import Method
from vpeft.methods import PTPEFT, Adapter, FullFinetuning, LoRA, PrefixTuning, VPTDeep
from vpeft.tasks.visual_question_answering import VisualQuestionAnswering

TOWERS = ("vision", "language")
METHODS: dict[str, Method] = {
    "lora": LoRA(rank=8),
    "adapter": Adapter(bottleneck=8),
    "prompt": VPTDeep(tokens=10),
    "prefix": PrefixTuning(length=16, form="mlp", hidden=64),
    "pt_peft lora": PTPEFT(peft="lora"),
    "pt_peft adapter": PTPEFT(peft="adapter"),
    "pt_peft prompt": PTPEFT(peft="prompt"),
    "full": FullFinetuning(),
}
RATES = (3e-3, 1e-2)
RATES_OF_ALL = (1e-4, 5e-4)
SEEDS, EPOCHS, BATCH = 3, 6, 32
TASK = VisualQuestionAnswering(template="question : {} answer :", longest=3)


def data(split: str, pictures: int) -> list[Sample]:
    """The questions about the first pictures of a split."""
    images, _, asked = questioned_split(split)
    return [
        Sample(torch.from_numpy(images[at]).permute(2, 0, 1), (one.asked, (one.answer,)), f"{split}/{at}")
        for at in range(min(pictures, SIZES[split]))
        for one in asked[at]
    ]


def run(host: str, name: str, rate: float, seed: int, given: Mapping[str, Any], epochs: int, test: bool) -> Any:
    """One training; accuracy on validation questions, or, for `test`, on test questions, with ranks."""
    torch.manual_seed(seed)
    model = create_backbone(f"host::hf:{host}")
    method = METHODS[name]
    more = ("projector", "lm_head") if name == "full" else ()
    tuned = vpeft.tune(model, dict.fromkeys(TOWERS, method), task=TASK, train=more, show=False, verify=False)
    settings = vpeft.Optimisation(epochs=epochs, batch=BATCH, lr=rate, seed=seed)
    begun = time.monotonic()
    train = TASK.dataset(given["train"], True)
    vpeft.fit(tuned, train, optimisation=settings, task=TASK, progress=False)
    held = given["test" if test else "val"]
    scores = vpeft.evaluate(tuned, TASK.dataset(held, False), task=TASK)
    row: dict[str, Any] = {
        "accuracy": scores.values["accuracy"],
        "by question": scores.details["question_accuracy"],
        "parameters": sum(value.numel() for _, value in tuned.trainable()),
        "seconds": round(time.monotonic() - begun, 1),
    }
    if test:
        tuned.eval()
        some = held[:: max(1, len(held) // 192)]
        batches = [TASK.collate(some[at : at + BATCH]) for at in range(0, len(some), BATCH)]
        rows = ranks_by_block(tuned, lambda batch: TASK.run(tuned, batch), batches)
        for tower in TOWERS:
            last = [one for one in rows if one.name.startswith(f"{tower}.")][-1]
            row[tower] = {"rank": last.after, "frozen": last.before, "centred": last.centred_after}
            row[tower] |= {"centred frozen": last.centred_before, "alike": last.alike}
    return row


def table(found: Mapping[str, Any]) -> str:
    """The runs in Markdown: means over the seeds, with standard deviations of the accuracy."""
    lines = ["| method | parameters | accuracy | rank, vision | rank, language |", "|---|---:|---:|---:|---:|"]
    frozen = ""
    for name in METHODS:
        rows = [row for key, row in found.items() if key.startswith(f"test {name} seed")]
        if not rows:
            continue
        hits = [100 * row["accuracy"] for row in rows]
        spread = f" ± {statistics.stdev(hits):.1f}" if len(hits) > 1 else ""
        ranks = [statistics.mean(row[tower]["rank"] for row in rows) for tower in TOWERS]
        frozen = " | ".join(f"{rows[0][tower]['frozen']:.1f}" for tower in TOWERS)
        told = " | ".join(f"{rank:.1f}" for rank in ranks)
        lines.append(f"| {name} | {rows[0]['parameters']:,} | {statistics.mean(hits):.1f}{spread} | {told} |")
    return "\n".join([*lines, f"| frozen | 0 |  | {frozen} |"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True, help="the folder of pocket_captioner, or of any such model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--pictures", type=int, default=SIZES["train"], help="training pictures, three questions each")
    parser.add_argument("--test-pictures", type=int, default=SIZES["test"])
    parser.add_argument("--rates", type=float, nargs="*", default=None)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    material = {
        "train": data("train", given.pictures),
        "val": data("val", given.test_pictures),
        "test": data("test", given.test_pictures),
    }
    for name in given.methods:
        rates = given.rates or (RATES_OF_ALL if name == "full" else RATES)
        chosen: dict[float, float] = {}
        for rate in rates if len(rates) > 1 else ():
            key = f"val {name} rate {rate:g}"
            if key not in found:
                found[key] = run(given.host, name, rate, 0, material, given.epochs, False)
                write_json(given.out, found)
                print(f"{key}: {found[key]['accuracy']:.3f}  {found[key]['seconds']} s", flush=True)
            chosen[rate] = found[key]["accuracy"]
        best = max(chosen, key=chosen.__getitem__) if chosen else rates[0]
        for seed in range(given.seeds):
            key = f"test {name} seed {seed}"
            if key not in found:
                found[key] = {"rate": best, **run(given.host, name, best, seed, material, given.epochs, True)}
                write_json(given.out, found)
                print(f"{key}: {found[key]['accuracy']:.3f}  {found[key]['seconds']} s", flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
