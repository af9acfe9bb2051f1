"""Where and with what a run is made, in words that mean something to others: no host names, users or paths."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from vpeft.bench.record import Provenance
from vpeft.version import __version__

# What numbers can depend on; the rest of the environment is not recorded.
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "scikit-learn")


def provenance(threads: int | None, accelerator: str = "") -> Provenance:
    """The provenance of a run made by this process, now."""
    return Provenance(versions=versions(), hardware=hardware(accelerator), system=system(), threads=threads)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """The versions of Python, vpeft and the packages that numbers can depend on, where installed."""
    found = {"python": platform.python_version(), "vpeft": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(accelerator: str = "") -> str:
    """The machine in words, such as "2 cores of Intel Xeon Gold 6342, 16 GiB"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    words = f"{cores} {'core' if cores == 1 else 'cores'} of {_processor()}"
    memory = _memory()
    words += f", {memory / 2**30:.0f} GiB" if memory else ""
    return f"{accelerator}; {words}" if accelerator else words


def system() -> str:
    """The operating system in words, such as "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return " ".join(value.replace("(R)", "").replace("(TM)", "").replace("(tm)", "").split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "an unknown processor"


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
