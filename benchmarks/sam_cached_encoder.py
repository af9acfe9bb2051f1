"""Decoder-only tuning of SAM with its frozen encoder's outputs kept, against the same run without: time of an epoch.

    python -m benchmarks.sam_cached_encoder --scale 2 --images 8 --rounds 3

The model has the proportions of SAM ViT-B (arXiv 2304.02643; the defaults of transformers' SamVisionConfig) with
every width and the image side divided by `--scale`: encoder of 12 layers, 768 channels, MLP 3072, patches of 16,
windows of 14, layers 2, 5, 8, 11 over the whole image of 1024 pixels; neck and mask decoder of 256 channels, two
decoder layers with an MLP of 2048. Weights are random. Trained are the mask decoder's 4.06 M / scale^2 weights, on one
box prompt for each image with binary cross-entropy of the mask.

Both runs take the same batches in the same order from the same start. A round is one epoch without and one epoch with
the cache, in turn, on one thread; medians over the rounds, of the clock and of the processor's time, which other work
on the machine changes less. The time of filling the cache is reported beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from vpeft.acceleration.prefix_cache import Situation
from vpeft.batch import Batch, run_model
from vpeft.injection.tuned_model import TunedModel
from vpeft.tasks.host import HostTask


def sam(scale: int) -> nn.Module:
    """SAM ViT-B with every width and the image side divided by `scale`, at random start."""
    import transformers

    side, width, channels = 1024 // scale, 768 // scale, 256 // scale
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            image_size=side,
            hidden_size=width,
            mlp_dim=4 * width,
            output_channels=channels,
            num_pos_feats=channels // 2,
            num_hidden_layers=12,
            num_attention_heads=12,
            global_attn_indexes=[2, 5, 8, 11],
        ).to_dict(),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(hidden_size=channels, image_size=side).to_dict(),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=channels, mlp_dim=2048 // scale, iou_head_hidden_dim=channels
        ).to_dict(),
    )
    torch.manual_seed(0)
    model: nn.Module = transformers.SamModel(config).eval()
    return model


class Squares:
    """Images (3, side, side) with a bright square each: the box is the prompt, the square the mask."""

    def __init__(self, count: int, side: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.items: list[dict[str, Tensor]] = []
        for _ in range(count):
            left, top = (int(value) for value in torch.randint(0, side // 2, (2,), generator=generator))
            image = 0.1 * torch.rand(3, side, side, generator=generator)
            image[:, top : top + side // 3, left : left + side // 3] += 1.0
            box = torch.tensor([[left, top, left + side // 3, top + side // 3]], dtype=torch.float32)
            mask = torch.zeros(side, side)
            mask[top : top + side // 3, left : left + side // 3] = 1.0
            self.items.append({"pixel_values": image, "input_boxes": box, "mask": mask})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        return {"pixel_values": item["pixel_values"], "input_boxes": item["input_boxes"]}, item["mask"]


class Masks(HostTask):
    """Binary cross-entropy of the mask that a box asks for."""

    def collate(self, samples: Sequence[Any]) -> Batch:
        batch = super().collate(samples)
        inputs = dict(batch.inputs)
        return batch.with_(inputs={**inputs, "multimask_output": False}, targets=inputs.pop("labels"))

    def run(self, model: Any, batch: Batch) -> Any:
        inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
        return run_model(model, batch.with_(inputs=inputs))

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        given = outputs.pred_masks[:, :, 0]
        wanted = F.interpolate(batch.targets[:, None], size=given.shape[-2:], mode="area")
        return {"loss": F.binary_cross_entropy_with_logits(given, wanted)}


def epoch(model: Any, tuned: TunedModel, samples: Any, task: Masks, optimiser: Any, batch: int) -> list[float]:
    """One epoch; the losses of its steps."""
    losses = []
    for start in range(0, len(samples), batch):
        part = task.collate([samples[i] for i in range(start, min(start + batch, len(samples)))])
        value = task.loss(task.run(model, part), part)["loss"]
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(value.item())
    return losses


def measured(scale: int, images: int, batch: int, rounds: int) -> dict[str, Any]:
    """Times of epochs without and with the cache, and how far their numbers are apart."""
    task, samples = Masks(), Squares(images, 1024 // scale)
    host = sam(scale)
    plain = vpeft.tune(host, vpeft.methods.LinearProbe(), train=("mask_decoder",), verify=False)
    cached = vpeft.tune(sam(scale), vpeft.methods.LinearProbe(), train=("mask_decoder",), verify=False)
    for tuned in (plain, cached):
        tuned.eval().train()
    situation = Situation(samples, None, rounds, batch, nullcontext, task=task)  # type: ignore[arg-type]
    began = time.perf_counter()
    with vpeft.accelerate(cached, "frozen_prefix", situation=situation) as used:
        filling = time.perf_counter() - began
        assert used.prefix is not None, used.lines()
        model: Any = used.prefix
        steps = {
            name: torch.optim.AdamW([p for _, p in tuned.trainable()], lr=1e-3)
            for name, tuned in (("without", plain), ("with", cached))
        }
        times: dict[str, list[float]] = {"without": [], "with": []}
        processor: dict[str, list[float]] = {"without": [], "with": []}
        apart = 0.0
        for _ in range(rounds):
            losses = {}
            for name, run, tuned, given in (
                ("without", plain, plain, samples),
                ("with", model, cached, model.train),
            ):
                start, spent = time.perf_counter(), time.process_time()
                losses[name] = epoch(run, tuned, given, task, steps[name], batch)
                times[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - spent)
            apart = max(apart, *(abs(a - b) for a, b in zip(losses["without"], losses["with"], strict=True)))
        weights = [
            float((a - b).abs().max()) for (_, a), (_, b) in zip(plain.trainable(), cached.trainable(), strict=True)
        ]
        medians = {name: statistics.median(found) for name, found in times.items()}
        busy = {name: statistics.median(found) for name, found in processor.items()}
        said = used.lines()
    return {
        "model": f"SAM ViT-B / {scale}",
        "encoder": sum(p.numel() for p in host.get_submodule("vision_encoder").parameters()),
        "decoder": sum(p.numel() for p in host.get_submodule("mask_decoder").parameters()),
        "images": images,
        "batch": batch,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "seconds_without": times["without"],
        "seconds_with": times["with"],
        "median_without": medians["without"],
        "median_with": medians["with"],
        "speedup": medians["without"] / medians["with"],
        "processor_without": busy["without"],
        "processor_with": busy["with"],
        "processor_speedup": busy["without"] / busy["with"],
        "seconds_to_fill": filling,
        "losses_apart": apart,
        "weights_apart": max(weights),
        "said": said,
    }


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measured(given.scale, given.images, given.batch, given.rounds), indent=1))


if __name__ == "__main__":
    main()
