"""Offline sets for retrieval: many kinds of drawings, two dozen pictures of each, half of the kinds for training.

The outlines are those of DejaVu Sans, which matplotlib ships. They are drawn as pocket/glyphs draws letters.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpeft.data.drawn_splits import kept_arrays, random_of_split, read_digests
from vpeft.data.pocket.glyphs import outline, picture_of

EACH = 24  # pictures of one kind
VERSION = 1  # raised when a picture of a released set changes
SEED = 20_240_202
FACE = "DejaVuSans"
DIGESTS = Path(__file__).with_name("pocket_retrieval.json")
WHOLE = "all"  # the one split that digests are of

# Faces differ in eyes and mouths alone; symbols in everything.
SETS: Mapping[str, str] = {
    "emoji": (
        "😀😁😂😃😄😅😆😇😈😉😊😋😌😍😎😏😐😑😒😓😔😕😖😗😘😙"
        "😚😛😜😝😞😟😠😡😢😣😥😦😧😨😩😪😫😭😮😯😰😱😲😳😴😵"
        "😶😷😸😹😺😻😼😽😾😿"
    ),
    "symbols": (
        "☀☁☂☃★☄☎☔☕☘☠☢☣☤☮☯☸☹☺☼☽♀♂♈♉♊♋♌♍♎♏♐♑♒♓♔♕♖♗♘♙♠♡♢♣♨♪♫♭♯"
        "♲♿⚀⚁⚂⚃⚄⚅⚐⚓⚔⚖⚘⚙⚛⚜⚠⚡✁✆✈✉✌✍✎✒✓✗✚✠✡✦✩✰✴✸✻✽✿❀❄❆❏❖❡❤❦❧➔➙"
        "➟➢➲➸➽"
    ),
}


def labels_of(name: str) -> list[str]:
    """The names of the kinds, as Unicode calls them, in the order of the set."""
    return [unicodedata.name(letter).lower() for letter in SETS[name]]


@cache
def pictures(name: str) -> NDArray[np.uint8]:
    """The pictures (N, 64, 64, 3) of a set, 24 of each kind in order; kept in the cache after the first call."""
    stored = read_digests(DIGESTS).get(name, {}).get(WHOLE)
    if stored is None:  # a set in the making
        return drawn(name)
    file = f"pocket_retrieval/{name}-v{VERSION}"
    return kept_arrays(file, stored, lambda: {"images": drawn(name)}, lambda found: digest(found["images"]))["images"]


def drawn(name: str) -> NDArray[np.uint8]:
    """The pictures made anew, past the cache."""
    made = [
        picture_of(outline(FACE, letter), rng)
        for place, letter in enumerate(SETS[name])
        for rng in [random_of_split(SEED, VERSION, place, name)]
        for _ in range(EACH)
    ]
    return np.stack(made)


def digest(images: NDArray[np.uint8]) -> str:
    """sha256 over shape and pixels."""
    found = hashlib.sha256(repr(images.shape).encode())
    found.update(np.ascontiguousarray(images).tobytes())
    return found.hexdigest()
