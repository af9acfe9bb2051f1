"""Pictures of a run beside its record: predictions next to the truth, and the scores of each class.

```
ledger/pictures/<key>/<name>.png
```

They show validation samples that the model was not trained on. A ledger is complete without them: numbers stand in the
records alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from vpeft.atomic import write_bytes
from vpeft.errors import VpeftError
from vpeft.guarded import MEBI, read_bytes

FOLDER = "pictures"
# A panel of a few samples has a tenth of it.
MOST_BYTES = 4 * MEBI
_PNG = b"\x89PNG\r\n\x1a\n"


class BadPicture(VpeftError):
    """A picture of a ledger that cannot be read."""


def keep_pictures(ledger: Path, key: str, pictures: Mapping[str, bytes]) -> None:
    """Write the pictures of a run, PNG files by name, in place of those that it had."""
    drop_pictures(ledger, key)
    for name, data in pictures.items():
        path = ledger / FOLDER / key / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)


def drop_pictures(ledger: Path, key: str) -> None:
    """Remove the pictures of a run, if there are any."""
    shutil.rmtree(ledger / FOLDER / key, ignore_errors=True)


def pictures_of(ledger: Path, key: str) -> dict[str, bytes]:
    """The pictures of a run by name; empty where it has none. Raises BadPicture for a file that is no PNG."""
    found = {}
    for path in sorted((ledger / FOLDER / key).glob("*.png")):
        data = read_bytes(path, str(path), BadPicture, MOST_BYTES)
        if not data.startswith(_PNG):
            raise BadPicture(f"{path} is no PNG file. Remove it: pictures are no part of the results.")
        found[path.stem] = data
    return found
