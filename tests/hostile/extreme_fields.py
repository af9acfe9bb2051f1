"""Every hyper-parameter of every method set to extremes in a sealed adapter file.

`python -m tests.hostile.extreme_fields [PART PARTS]` prints how many were tried, and those that were slow, large,
raised something else than `VpeftError`, or left something. With PART and PARTS it tries every PARTS-th method only.
"""

from __future__ import annotations

import copy
import json
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import vpeft
from tests.hostile.mutations import MEBIBYTES, base, differs, peak_mebibytes
from vpeft.injection.adapter_file import read, sealed_bytes
from vpeft.method import Method, all_methods

SECONDS = 2.0  # a long list that is valid costs a pass over the layers that it names
END = 30.0  # of processor time: what has not ended then is ended
ADDRESSES = 8 * 2**30


def extremes(value: Any) -> Iterator[Any]:
    """Values of the same kind, far off, and some of another kind."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (2**20, 2**31, 2**32, 2**53, -1, 0)
    elif isinstance(value, float):
        yield from (1e300, -1e300, 0.0, 2.0)
    elif isinstance(value, str):
        yield "x" * 50
    elif value is None:
        yield from (2**31, 1e300, "q", [0], [2**31], [2**31] * 1000, list(range(5000)))
    elif isinstance(value, list):
        yield from ([], value * 1000)
        if value and isinstance(value[0], int):
            yield from ([2**31], [2**31] * len(value), [2**53] * len(value), list(range(9000)))


def tuned_with(kind: type[Method]) -> Any:
    """The tiny ViT with the first settings of the method that it takes; None where it takes none."""
    for settings in ({}, *kind.variants):
        try:
            return vpeft.tune(base(), kind(**settings), num_classes=3, verify=False, show=False)
        except vpeft.VpeftError:
            continue
    return None


def main(part: int = 0, parts: int = 1) -> None:
    """Try all methods, or the `part`-th of `parts` interleaved shares of them."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tried, wrong = 0, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in list(all_methods().items())[part::parts]:
            tuned = tuned_with(kind)
            if tuned is None:
                continue
            path = tuned.save(Path(folder) / "sound.safetensors")
            vpeft.load(base(), path)
            manifest, tensors = read(path)
            raw = manifest.model_dump(mode="json")
            for field, value in raw["methods"][0]["fields"].items():
                for extreme in extremes(value):
                    said = copy.deepcopy(raw)
                    said["methods"][0]["fields"][field] = extreme
                    (Path(folder) / "extreme.safetensors").write_bytes(sealed_bytes(said, tensors))
                    tried += 1
                    problem = _tried(Path(folder) / "extreme.safetensors")
                    if problem:
                        wrong.append(f"{name}.{field} = {str(extreme)[:40]}: {problem}")
    print(json.dumps({"tried": tried, "wrong": wrong}))


class DidNotEnd(Exception):
    """A file took more than `END` seconds of processor time."""


def _stop(signum: int, frame: object) -> None:
    raise DidNotEnd(f"still loading after {END:.0f} s")


def _tried(path: Path) -> str:
    signal.signal(signal.SIGPROF, _stop)
    target = base()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    began, memory, problem = time.process_time(), peak_mebibytes(), ""
    signal.setitimer(signal.ITIMER_PROF, END)
    try:
        vpeft.load(target, path)
    except vpeft.VpeftError:
        problem = "left something behind" if differs(target, before) else ""
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds, mebibytes = time.process_time() - began, peak_mebibytes() - memory
    if seconds > SECONDS or mebibytes > MEBIBYTES:
        problem += f" {seconds:.1f} s, {mebibytes:.0f} MiB"
    return problem


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
