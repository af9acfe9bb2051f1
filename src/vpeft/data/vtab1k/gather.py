"""Where a copy of VTAB-1k comes from: an archive on disk, or one on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from vpeft.data.archives import unpack
from vpeft.data.problems import DataError
from vpeft.errors import need_extra

# The survey's copy, which has the layout of NOAH's; a file in a data set of the hub is named owner/name:file.
HUB = "XiN0919/VTAB-1k:vtab-1k.zip"


def from_archive(archive: Path, out: Path) -> int:
    """Unpack an archive of VTAB-1k into a new folder; the number of files. Raises `DataError`."""
    return unpack(archive.expanduser(), out)


def download(source: str, cache: Path | None = None) -> Path:
    """Fetch one file of a data set of the hub with the hub's own client.

    Args:
        source: owner/name:file, perhaps with @revision after the name.
        cache: folder of the client's cache, its own by default; a download that was cut off goes on there.

    Raises:
        DataError: the hub cannot be reached, or has no such file.
    """
    hub = need_extra("huggingface_hub", "hf")
    name, _, file = source.partition(":")
    name, _, revision = name.partition("@")
    if not file or name.count("/") != 1:
        raise DataError(f"{source!r} does not name a file of a data set of the hub: owner/name:file, such as {HUB}.")
    try:
        return Path(hub.hf_hub_download(name, file, repo_type="dataset", revision=revision or None, cache_dir=cache))
    except Exception as error:  # the client and its transports raise too many kinds to list
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise DataError(
            f"The hub does not give {source} ({said}). Check the name and the network, or fetch the file by other means"
            " and use --from archive."
        ) from error
