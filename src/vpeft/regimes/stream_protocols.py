"""Protocols of continual learning by id: how classes arrive, in which order, and how images are prepared.

Those that end in @pilot are LAMDA-PILOT's (github.com/sun-hailong/LAMDA-PILOT), which gives images from 0 to 1 to
weights that expect them from -1 to 1; its numbers are only comparable with runs that do the same. Those that end in @1
are the same streams with the images prepared as the weights expect. A protocol never changes: what alters a number gets
a new id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vpeft.errors import VpeftError, nearest
from vpeft.regimes.stream import ORDER_SEED, class_order

# The weights behind PILOT's names; timm has given the bare names to other weights since.
IN21K_1K, IN21K = "vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224.augreg_in21k"


class UnknownProtocol(VpeftError):
    """No protocol has this id."""


@dataclass(frozen=True)
class StreamProtocol:
    """One protocol.

    Attributes:
        id: data set, notation, and @ with whose it is.
        classes: of the data set, so that another one is refused.
        fields: of a `ContinualRecipe`, under those that the user states.
        note: what to know before numbers are compared.
        domains: in a stream of domains, the folders of the domains within that of the data, in their order.
    """

    id: str
    classes: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    domains: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """The numbers of the classes in the order in which they come."""
        seed = self.fields.get("order_seed")
        return tuple(int(name) for name in class_order([str(n) for n in range(self.classes)], seed))


# Data set: classes, classes of a task, seed of the order (None: as they are).
_STREAMS: dict[str, tuple[int, int, int | None]] = {
    "cifar100-b0-inc10": (100, 10, ORDER_SEED),
    "cifar100-b0-inc5": (100, 5, ORDER_SEED),
    "imagenet-r-b0-inc20": (200, 20, ORDER_SEED),
    "imagenet-r-b0-inc10": (200, 10, ORDER_SEED),
    "imagenet-a-b0-inc20": (200, 20, ORDER_SEED),
    "cub-b0-inc10": (200, 10, ORDER_SEED),
    "cub-b0-inc20": (200, 20, ORDER_SEED),
    "omnibenchmark-b0-inc30": (300, 30, ORDER_SEED),
    "vtab-b0-inc10": (50, 10, None),
}
_NOTES = {
    "imagenet-r": "The data set has no split. Unpacked as it comes it gets the 24,000 and 6,000 images that CODA-Prompt"
    " published; PILOT has a random split of its own of the same size, for which give a folder with train/ and test/."
    " The default weights have seen these classes in ImageNet-1k.",
    "imagenet-a": "The published split is a random one, which is not shipped here. The default weights have seen these"
    " classes in ImageNet-1k.",
    "cub": "Unpacked as it comes it has the official split of 5,994 and 5,794 images; for PILOT's own split give a"
    " folder with train/ and test/.",
    "vtab": "RESISC45, DTD, Pets, EuroSAT and Flowers, ten classes each, in this order.",
}
# Data set: classes, domains in the order of RanPAC's and of CORe50's new instances.
_DOMAINS: dict[str, tuple[int, tuple[str, ...]]] = {
    "domainnet-di6": (345, ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")),
    "core50-di8": (50, ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")),
}


def stream_protocols() -> dict[str, StreamProtocol]:
    """All protocols by id, sorted."""
    found = {}
    for name, (classes, increment, seed) in _STREAMS.items():
        note = next((text for start, text in _NOTES.items() if name.startswith(start)), "")
        common = {"increment": increment, "first": 0, "order_seed": seed, "backbone": IN21K_1K}
        pilot = {**common, "inputs": "unit", "data": {"augmentation": "wide"}}
        own = {**common, "inputs": "own", "data": {"augmentation": "crop"}}
        for kind, fields in (("pilot", pilot), ("1", own)):
            found[f"{name}@{kind}"] = StreamProtocol(f"{name}@{kind}", classes, fields, note)
    for name, (classes, domains) in _DOMAINS.items():
        fields = {"inputs": "own", "backbone": IN21K_1K, "data": {"augmentation": "crop"}}
        note = f"The tasks are {', '.join(domains)}, folders within that of the data."
        found[f"{name}@1"] = StreamProtocol(f"{name}@1", classes, fields, note, domains)
    return dict(sorted(found.items()))


def stream_protocol(id: str) -> StreamProtocol:
    """The protocol with this id.

    Raises:
        UnknownProtocol: with the nearest ids.
    """
    known = stream_protocols()
    if id not in known:
        raise UnknownProtocol(f"There is no protocol {id!r}. {nearest(id, known)}")
    return known[id]
