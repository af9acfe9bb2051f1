"""What one GPU does: training against peft and plain loops, compiled, several runs at once, serving, and the GPU tests.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --device cpu --tiny --minutes 4 --out /tmp/gpu.json    # to test this program

It ends after `--minutes` at the latest (nine by default), with what it has by then. Each part runs in a process of its
own, which is stopped at the end of its share of the time; what a part leaves over goes to the later ones. A row is
written as soon as it is measured. Afterwards `python benchmarks/speed.py --only page` puts the results into the page.

bf16 autocast, random weights, random images that are on the device already, AdamW, times of the wall after the device
has finished. A time is the median over steps, with the shortest and the longest; memory is the peak that torch has
allocated from before the model is made to the last step.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import vpeft
from vpeft.acceleration.apply import accelerate
from vpeft.errors import VpeftError
from vpeft.methods import Method, get
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.together import fit_together

ROOT = Path(__file__).parents[1]
CLASSES, RANK = 100, 8
# title, timm's name, images in a batch
MODELS = (
    ("ViT-B/16", "vit_base_patch16_224", 64),
    ("ViT-L/16", "vit_large_patch16_224", 64),
    ("DINOv3 ViT-L/16", "vit_large_patch16_dinov3", 64),
)
SIDE = 224
# of --tiny: the same classes of timm
TINY: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
TINY_SIDE, TINY_BATCH = 64, 4
# part -> its share of the time; the rest is for starting processes
PARTS = {"training": 40, "compiled": 22, "batched": 10, "serving": 10, "tests": 18}
STARTING = 12.0  # seconds that a process takes before it measures


@dataclass(frozen=True)
class Place:
    """Where and on what is measured.

    Attributes:
        device: "cuda" or "cpu".
        tiny: whether models are tiny, to test the benchmark itself.
        seconds: for one row.
    """

    device: str
    tiny: bool
    seconds: float

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def done(self) -> float:
        """Wait until the device has finished; the time."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def fresh(self) -> None:
        """Give up what earlier rows used."""
        torch._dynamo.reset()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Bytes; None on a processor, where torch does not count them."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    @property
    def side(self) -> int:
        return TINY_SIDE if self.tiny else SIDE

    def backbone(self, name: str, classes: int = 0) -> nn.Module:
        torch.manual_seed(0)
        more = TINY if self.tiny else {}
        model: nn.Module = timm.create_model(name, img_size=self.side, num_classes=classes, **more)
        return model.to(self.device)

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        images = torch.randn(count, 3, self.side, self.side, device=self.device)
        return images, torch.randint(0, CLASSES, (count,), device=self.device)


def methods() -> dict[str, Method]:
    return {
        "lora": get("lora")(rank=RANK, targets=("qkv",)),
        "adaptformer": get("adaptformer")(),
        "vpt_deep": get("vpt_deep")(tokens=10),
        "ssf": get("ssf")(),
        "full": get("full_finetuning")(),
    }


# -- ways to train -----------------------------------------------------------------------------------------------------


def ours(place: Place, name: str, method: Method, choice: str) -> nn.Module:
    """A method of vpeft with the accelerations of `choice`."""
    tuned = vpeft.tune(place.backbone(name), method, num_classes=CLASSES, show=False, verify=False).train()
    accelerate(tuned, choice, autocast=place.autocast, precision="bf16")
    return tuned


def of_peft(place: Place, name: str, compiled: bool = False) -> nn.Module:
    """peft's LoRA of the fused projection with a head that trains."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], modules_to_save=["head"])
    model: nn.Module = get_peft_model(place.backbone(name, CLASSES), config).train()
    if compiled:
        model.compile()
    return model


def plain(place: Place, name: str, compiled: bool = False, frozen: bool = False) -> nn.Module:
    """The model itself: all of it trains, or its head alone."""
    model = place.backbone(name, CLASSES).train()
    if frozen:
        model.requires_grad_(False)
        model.get_submodule("head").requires_grad_(True)
    if compiled:
        model.compile()
    return model


def ways(place: Place, name: str, compiled: bool) -> dict[str, Callable[[], nn.Module]]:
    """Title -> how the model is made. The first of each group is what the others compare with."""
    made: dict[str, Callable[[], nn.Module]] = {}
    if compiled:
        made["lora, peft, torch.compile"] = partial(of_peft, place, name, True)
        for title in ("lora", "ssf", "vpt_deep"):
            made[f"{title}, vpeft, compile_blocks"] = partial(
                ours, place, name, methods()[title], "auto,compile_blocks"
            )
        made["full, plain, torch.compile"] = partial(plain, place, name, True)
        return made
    made["lora, peft"] = partial(of_peft, place, name)
    for title, method in methods().items():
        if title == "full":
            made["full, plain"] = partial(plain, place, name)
        for choice in ("off", "auto"):
            made[f"{title}, vpeft, {choice}"] = partial(ours, place, name, method, choice)
    made["head alone, plain"] = partial(plain, place, name, False, True)
    return made


def trained(place: Place, make: Callable[[], nn.Module], batch: int) -> dict[str, Any]:
    """Steps of a plain loop: forward in bf16, backward, AdamW."""
    place.fresh()
    started = place.done()
    model = make()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-4)
    images, labels = place.images(batch)
    seconds: list[float] = []
    first: float | None = None
    begun = place.done()
    while len(seconds) < 5 or (place.done() - begun < place.seconds and len(seconds) < 60):
        before = place.done()
        with place.autocast():
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(place.done() - before)
        if first is None and len(seconds) == 2:  # the first steps measure kernels, or compile
            first, seconds, begun = before + seconds[-1] - started, [], place.done()
    return {
        "trained": sum(p.numel() for p in trainable),
        "batch": batch,
        "images_per_second": batch / statistics.median(seconds),
        "slowest": batch / max(seconds),
        "fastest": batch / min(seconds),
        "steps": len(seconds),
        "set_up_seconds": first,
        "peak_bytes": place.peak(),
    }


def training(place: Place, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of training, models in turn."""
    for title, name, batch in MODELS[: 1 if compiled else None]:
        for way, make in ways(place, name, compiled).items():
            yield {"model": title, "way": way} | attempted(
                lambda make=make, batch=batch: trained(place, make, TINY_BATCH if place.tiny else batch)  # type: ignore[misc]
            )


def attempted(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement, or the reason why there is none; the other rows go on."""
    try:
        return measure()
    except (VpeftError, RuntimeError, ValueError, TypeError, KeyError) as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


# -- several runs at once ----------------------------------------------------------------------------------------------


class Pictures:
    """Random images that change in nothing, in memory."""

    def __init__(self, count: int, side: int) -> None:
        self.images = torch.randn(count, 3, side, side)
        self.labels = [str(number) for number in range(4)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 4


def batched(place: Place) -> Iterator[dict[str, Any]]:
    """Four runs of LoRA in one pass, against one after the other."""
    title, name, _ = MODELS[0]
    for batch in (4,) if place.tiny else (4, 16, 32):
        yield {"model": title, "batch": batch, "runs": 4} | attempted(
            lambda batch=batch: several_runs(place, name, batch, 4)  # type: ignore[misc]
        )


def several_runs(place: Place, name: str, batch: int, runs: int) -> dict[str, Any]:
    """Seconds of an epoch of all runs, both ways."""
    pictures, epochs = Pictures(batch * (2 if place.tiny else 12), place.side), 3

    def settings(number: int, choice: str) -> Optimisation:
        return Optimisation(
            batch=batch,
            epochs=epochs,
            lr=1e-3 * 2**number,
            seed=number,
            warmup=0,
            precision="bf16",
            device="auto" if place.device == "cuda" else "cpu",
            acceleration=choice,
        )

    def models() -> list[vpeft.TunedModel]:
        method = methods()["lora"]
        return [vpeft.tune(place.backbone(name), method, num_classes=4, show=False, verify=False) for _ in range(runs)]

    def noting(ends: list[float]) -> Callable[..., None]:
        return lambda *_: ends.append(place.done())

    place.fresh()
    ends: list[list[float]] = [[] for _ in range(runs)]
    members = [
        Run(tuned, settings(number, "auto,batched_adapters"), after_epoch=noting(ends[number]))
        for number, tuned in enumerate(models())
    ]
    fit_together(members, pictures, progress=False)
    joint = (max(one[-1] for one in ends) - max(one[0] for one in ends)) / (epochs - 1)
    joint_peak = place.peak()
    del members
    place.fresh()
    alone = 0.0
    for number, tuned in enumerate(models()):
        ended: list[float] = []
        choice = settings(number, "auto")
        fit(tuned, pictures, optimisation=choice, progress=False, after_epoch=noting(ended))
        alone += (ended[-1] - ended[0]) / (epochs - 1)
    return {
        "ratio": joint / alone,
        "images_per_second": runs * len(pictures) / joint,
        "images_per_second_alone": runs * len(pictures) / alone,
        "peak_bytes": joint_peak,
    }


# -- serving -----------------------------------------------------------------------------------------------------------


def serving(place: Place) -> Iterator[dict[str, Any]]:
    """A batch whose images go through different adapters, without gradients."""
    title, name, _ = MODELS[0]
    images = 8 if place.tiny else 64
    for method in ("lora", "adaptformer", "vpt_deep"):
        for adapters in (1, 4) if place.tiny else (1, 4, 16):
            facts = {"model": title, "method": method, "adapters": adapters, "images": images}
            yield facts | attempted(
                lambda method=method, adapters=adapters: served(place, name, method, adapters, images)  # type: ignore[misc]
            )


def served(place: Place, name: str, method: str, adapters: int, images: int) -> dict[str, Any]:
    """Images a second of the bare backbone, of all adapters in one pass, one after the other, merged, and of peft."""
    place.fresh()
    chosen, base = methods()[method], place.backbone(name)
    names = [f"a{number}" for number in range(adapters)]
    tuned = vpeft.tune(copy.deepcopy(base), chosen, num_classes=CLASSES, name=names[0], show=False, verify=False)
    for one in names[1:]:
        tuned.attach(chosen, name=one, num_classes=CLASSES)
    for one in names:
        for _, parameter in tuned.trainable(one):
            nn.init.normal_(parameter, std=0.02)
    tuned.eval()
    route = [names[image % adapters] for image in range(images)]

    def one_pass(batch: Tensor) -> Tensor:
        with tuned.enable(*route):
            out: Tensor = tuned(batch)
        return out

    def one_by_one(batch: Tensor) -> None:
        for one in names:
            rows = torch.tensor([row for row, wanted in enumerate(route) if wanted == one], device=place.device)
            with tuned.enable(one):
                tuned(batch[rows])

    found: dict[str, Callable[[Tensor], Any]] = {
        "backbone": base.eval(),
        "one pass": one_pass,
        "one after the other": one_by_one,
    }
    if method == "lora":
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"], init_lora_weights=False)
        peft = get_peft_model(copy.deepcopy(base), config, adapter_name="a0")
        for one in names[1:]:
            peft.add_adapter(one, config)
        peft.eval()
        found["peft, adapter_names"] = partial(peft, adapter_names=route)
    batch, _ = place.images(images)
    speeds: dict[str, float] = {}
    with torch.inference_mode(), place.autocast():
        for way, serve in found.items():
            speeds[way] = images / passed(place, lambda serve=serve: serve(batch))  # type: ignore[misc]
        if method == "lora" and adapters == 1:
            tuned.merge("a0")
            speeds["merged"] = images / passed(place, lambda: tuned(batch))
    return {"images_per_second": speeds, "peak_bytes": place.peak()}


def passed(place: Place, run: Callable[[], Any]) -> float:
    """Seconds of one pass, the median."""
    for _ in range(3):
        run()
    seconds: list[float] = []
    begun = place.done()
    while len(seconds) < 5 or (place.done() - begun < place.seconds / 4 and len(seconds) < 100):
        before = place.done()
        run()
        seconds.append(place.done() - before)
    return statistics.median(seconds)


# -- the tests that need a GPU -----------------------------------------------------------------------------------------


def tests(place: Place) -> Iterator[dict[str, Any]]:
    """Each file of tests that are marked `gpu`, with the counts that pytest states."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    for path in marked:
        begun = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        said = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", ended.stdout)}
        yield {
            "file": path.relative_to(ROOT).as_posix(),
            **{word: said.get(word, 0) for word in ("passed", "failed", "skipped", "error")},
            "seconds": time.perf_counter() - begun,
            "told": [line[:300] for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))],
        }


# -- parts and their time ----------------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Place], Iterator[dict[str, Any]]]] = {
    "training": training,
    "compiled": partial(training, compiled=True),
    "batched": batched,
    "serving": serving,
    "tests": tests,
}


def measure(part: str, place: Place, out: Path) -> None:
    """Measure one part; the file is written anew after each row."""
    rows: list[dict[str, Any]] = []
    for row in ROWS[part](place):
        rows.append(row)
        fresh = out.with_suffix(".new")
        fresh.write_text(json.dumps(rows))
        fresh.replace(out)
        print(f"{part}: {json.dumps(row)}", flush=True)


def machine(device: str) -> dict[str, Any]:
    """What it was measured on."""
    gpu: dict[str, Any] = {}
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        gpu = {"name": facts.name, "bytes": facts.total_memory, "cuda": torch.version.cuda}
    return {
        "device": device,
        "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "vpeft": vpeft.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    """Run the parts within the time."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it has ended")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test this program")
    parser.add_argument("--parts", default=",".join(PARTS), help="only these, separated by commas")
    parser.add_argument("--only-part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    options = parser.parse_args()
    place = Place(options.device, options.tiny, 0.2 if options.tiny else options.seconds)
    if options.only_part:
        measure(options.only_part, place, options.out)
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU here; use --device cpu --tiny to test the program", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that is running is stopped too
    chosen = [part for part in PARTS if part in options.parts.split(",")]
    end = started + 60 * options.minutes - 20  # imports came before, and the file comes after
    result: dict[str, Any] = {**machine(options.device), "tiny": options.tiny, "minutes": options.minutes, "parts": {}}
    for number, part in enumerate(chosen):
        later = sum(PARTS[one] for one in chosen[number:])
        begun = time.monotonic()
        rows, ended = in_time(part, options, (end - begun) * PARTS[part] / later)
        result["parts"][part] = {"rows": rows, "ended": ended, "seconds": time.monotonic() - begun}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{sum(len(one['rows']) for one in result['parts'].values())} rows in {options.out}")
    return 0


def in_time(part: str, options: argparse.Namespace, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The rows of a part that were measured within the time, and how it ended: "done", "time" or an error."""
    file = options.out.with_name(f"{options.out.stem}.{part}.part")
    file.unlink(missing_ok=True)
    if seconds < STARTING:
        return [], "time"
    command = [sys.executable, str(Path(__file__).resolve()), "--only-part", part, "--out", str(file)]
    command += ["--device", options.device, "--seconds", str(options.seconds), *(["--tiny"] if options.tiny else [])]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
        ended = "done" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        ended = "time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)  # its compilers and tests too
            process.wait()
    rows = json.loads(file.read_text()) if file.exists() else []
    file.unlink(missing_ok=True)
    return rows, ended


if __name__ == "__main__":
    sys.exit(main())
