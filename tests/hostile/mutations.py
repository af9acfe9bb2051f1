"""Adapter files changed at random: what happens to them, counted.

Two kinds. A *damaged* file has other bytes than it was saved with: every one must be refused. A *forged* file has
another manifest or other tensors and a fitting seal, as a stranger can make one: it may be a valid file, but whatever
it says, loading it raises nothing but `VpeftError`, needs neither time nor memory that it does not justify, and leaves
nothing behind where it fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vpeft
from tests.models import tiny_vit
from vpeft.backbones import digest
from vpeft.injection.adapter_file import read, sealed_bytes

SECONDS, MEBIBYTES = 1.0, 100.0
METHODS = ("lora", "ssf", "vpt_deep", "adaptformer", "bitfit")


@dataclass
class Counts:
    """How many files, and what became of them."""

    files: int = 0
    refused: int = 0
    other_exceptions: int = 0
    bombs: int = 0
    damaged_but_accepted: int = 0
    forged_and_valid: int = 0
    left_behind: int = 0
    slowest_seconds: float = 0.0
    most_mebibytes: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return not (self.other_exceptions or self.bombs or self.damaged_but_accepted or self.left_behind)


def base() -> nn.Module:
    """The same backbone each time."""
    torch.manual_seed(0)
    return tiny_vit()


def saved(folder: Path, method: str) -> Path:
    """A sound adapter file."""
    tuned = vpeft.tune(base(), vpeft.methods.get(method)(), num_classes=3, verify=False, show=False)
    stated = {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    return tuned.save(
        folder / f"{method}.safetensors", labels=["cat", "dog", "owl"], preprocessing=stated, scores={"top1": 0.5}
    )


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes of a file with a few of them changed, gone, doubled or exchanged."""
    changed = bytearray(data)
    kind = draw.randrange(6)
    # half of all changes in the header, where they mean something
    end = 8 + int.from_bytes(data[:8], "little") if draw.random() < 0.5 else len(data)
    at = draw.randrange(end)
    if kind == 0:
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        for _ in range(draw.randrange(1, 20)):
            changed[draw.randrange(end)] = draw.randrange(256)
    elif kind == 2:
        del changed[at : at + draw.randrange(1, 40)]
    elif kind == 3:
        changed[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 40)))
    elif kind == 4:
        other, size = draw.randrange(end), draw.randrange(1, 40)
        changed[at : at + size] = data[other : other + size]
    else:
        digits = [n for n in range(8, end) if data[n : n + 1].isdigit()]
        changed[draw.choice(digits)] = draw.choice(b"0123456789") if digits else 0
    return bytes(changed)


EXTREME: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 2**16, 200_000, 10**8, 2**31, 2**53, 10**19, -(2**40)),
    *(0.0, 0.5, -1.5, 1e300, -1e300, 5e-324, True, False, None),
    *("", "x", "nan", "inf", "\x1b[31m", "a.b", "../x", "x" * 5000, "\u202eabc", "lora", "mlp", "cosine"),
    *([], {}, [0], ["a"], [["a"]], ["cat", "cat"], {"a": 1}, {"name": "x"}, [[[[[[]]]]]]),
    *(["q"] * 500, [10**9] * 3, [0.5] * 9),
)


def forged(manifest: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> bytes:
    """A file whose manifest says something else, or which holds other tensors, with a fitting seal."""
    said, held = copy.deepcopy(manifest), dict(tensors)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        _change(said, draw)
    if draw.random() < 0.3:
        _exchange(held, draw)
    if draw.random() < 0.9:  # the figures that tell are made to fit
        said["tensors_digest"] = digest.tensors_digest(held)
        said["parameters"] = sum(value.numel() for value in held.values())
    said["format"] = 2 if draw.random() < 0.95 else said.get("format")
    return sealed_bytes(said, held)


def _change(value: Any, draw: random.Random) -> None:
    """Change one part of plain data, somewhere in it."""
    while True:
        if isinstance(value, dict):
            keys: list[Any] = list(value)
        elif isinstance(value, list):
            keys = list(range(len(value)))
        else:
            return
        if not keys:
            if isinstance(value, dict):
                value["x"] = draw.choice(EXTREME)
            else:
                value.append(draw.choice(EXTREME))
            return
        key = draw.choice(keys)
        if isinstance(value[key], (dict, list)) and draw.random() < 0.8:
            value = value[key]
            continue
        kind = draw.randrange(5)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, list):
            value.extend(copy.deepcopy(value) * draw.choice((1, 10, 1000)))
        elif kind == 1:
            value[f"{key}{draw.choice('x. ')}"] = value[key]
        elif kind == 2 and isinstance(value[key], (int, float)):
            product = value[key] * draw.choice((-1, 0, 2, 10**6, 10**12))
            value[key] = product if math.isfinite(product) else 1e308  # JSON has no infinity
        else:
            value[key] = copy.deepcopy(draw.choice(EXTREME))
        return


def _exchange(tensors: dict[str, Tensor], draw: random.Random) -> None:
    """Change one tensor: its values, type, shape, or name."""
    name = draw.choice(list(tensors))
    value, kind = tensors[name], draw.randrange(7)
    if kind == 0:
        tensors[name] = torch.full_like(value, draw.choice((float("nan"), float("inf"), 1e38, 0.0)))
    elif kind == 1:
        types = (torch.int64, torch.bool, torch.float16, torch.complex64, torch.uint8, torch.bfloat16, torch.float64)
        tensors[name] = value.to(draw.choice(types))
    elif kind == 2:
        tensors[name] = value.flatten()
    elif kind == 3:
        tensors[name] = value[None]
    elif kind == 4:
        tensors[name + "x"] = tensors.pop(name)
    elif kind == 5:
        tensors[name] = torch.zeros(0)
    else:
        del tensors[name]


def count(files: int, seed: int = 0) -> Counts:
    """Make and load so many changed files, three of five damaged, the others forged."""
    draw, counts = random.Random(seed), Counts()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        paths = [saved(Path(folder), method) for method in METHODS]
        sound = [(path.read_bytes(), *read(path)) for path in paths]
        for path in paths:
            vpeft.load(base(), path)  # what is imported late is not counted
        target, changed = base(), Path(folder) / "changed.safetensors"
        before = {key: value.clone() for key, value in target.state_dict().items()}
        for number in range(files):
            data, manifest, tensors = draw.choice(sound)
            is_damaged = draw.random() < 0.6
            try:
                made = damaged(data, draw) if is_damaged else forged(manifest.model_dump(mode="json"), tensors, draw)
            except vpeft.VpeftError:  # nothing that a file can hold
                continue
            if made == data:
                continue
            changed.write_bytes(made)
            counts.files += 1
            memory, began = peak_mebibytes(), time.process_time()
            said = _tried(target, changed)
            seconds, mebibytes = time.process_time() - began, peak_mebibytes() - memory
            counts.slowest_seconds = max(counts.slowest_seconds, seconds)
            counts.most_mebibytes = max(counts.most_mebibytes, mebibytes)
            wrong = None
            if seconds > SECONDS or mebibytes > MEBIBYTES:
                counts.bombs += 1
                wrong = f"{seconds:.1f} s, {mebibytes:.0f} MiB"
            if said == "refused":
                counts.refused += 1
                if differs(target, before):
                    counts.left_behind += 1
                    wrong, target = "left something behind", base()
            elif said == "accepted":
                counts.damaged_but_accepted += is_damaged
                counts.forged_and_valid += not is_damaged
                wrong, target = "accepted" if is_damaged else wrong, base()
            else:
                counts.other_exceptions += 1
                wrong, target = said, base()
            if wrong and len(counts.examples) < 10:
                counts.examples.append(f"file {number} of seed {seed}: {wrong}")
    return counts


def _tried(target: nn.Module, path: Path) -> str:
    try:
        vpeft.load(target, path)
    except vpeft.VpeftError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "accepted"


def differs(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether a model has other tensors, hooks or frozen parameters than before."""
    now = model.state_dict()
    hooks = any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    frozen = not all(parameter.requires_grad for parameter in model.parameters())
    return hooks or frozen or now.keys() != before.keys() or any(not now[key].equal(before[key]) for key in now)


def peak_mebibytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--address-space-gib", type=float, default=8.0)
    chosen = parser.parse_args()
    limit = int(chosen.address_space_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(asdict(count(chosen.files, chosen.seed))))
