"""The flags of a data set: `--data` for the source, `--data.<field>` for the rest."""

from __future__ import annotations

from cyclopts import Group

from vpeft.cli.flags import Flag, flags_of
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.config import DataConfig

DATA_PANEL = Group("The data", sort_key=20)


def data_flags(path: tuple[str, ...] = ()) -> list[Flag]:
    """Return one flag per field of `DataConfig`, those of clips as `--clip.<field>`; the values go under `path`."""
    names = {"source": ("--data", "--data.source"), "strict": ("--data.strict", "--strict")}
    return [
        *flags_of(DataConfig, group=DATA_PANEL, prefix="data.", path=path, skip=("clip",), renamed=names),
        *flags_of(ClipConfig, group=DATA_PANEL, prefix="clip.", path=(*path, "clip")),
    ]
