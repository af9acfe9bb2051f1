"""Time and memory that each hostile adapter file of the corpus costs: `python -m tests.hostile.measure`, JSON."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import torch

import vpeft
from tests.hostile.make_files import CORPUS
from tests.hostile.mutations import base, peak_mebibytes, saved
from vpeft.cli.loaded import open_adapter

ADDRESSES = 8 * 2**30


def main() -> None:
    """Measure each file in this process, after one sound file has made everything be imported."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        vpeft.load(base(), saved(Path(folder), "lora"))
        pocket = vpeft.tune(
            vpeft.create_backbone("pocket_vit"), vpeft.methods.get("lora")(), num_classes=2, verify=False, show=False
        )
        open_adapter(pocket.save(Path(folder) / "pocket.safetensors", labels=["a", "b"]), device="cpu")
    target, found = base(), {}
    held = tempfile.TemporaryDirectory()
    with zipfile.ZipFile(CORPUS) as archive:
        archive.extractall(held.name)
    for path in sorted(Path(held.name).glob("adapter_*")):
        began, before = time.process_time(), peak_mebibytes()
        try:
            if path.name.startswith("adapter_origin"):
                open_adapter(path, device="cpu")
            else:
                vpeft.load(target, path)
            said = "accepted"
        except vpeft.VpeftError:
            said = "refused"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:200]
        found[path.name] = (said, round(time.process_time() - began, 3), round(peak_mebibytes() - before, 1))
    held.cleanup()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
