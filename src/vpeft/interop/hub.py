"""Adapters on the Hugging Face Hub: push one with its card, pull one as a file.

An adapter is one file of a repository, `adapter.safetensors`. What is pulled is read like any file of a stranger.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import VpeftError, need_extra
from ..injection.adapter_file import read, read_manifest
from .model_card import FILE, model_card

PREFIX = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class HubError(VpeftError):
    """The Hub has no such adapter, or does not take one."""


def push(
    file: str | Path,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Adapter",
) -> str:
    """Put an adapter file and its card into a repository, which is made if it is not there; return its address.

    Args:
        file: what `tuned.save` or `vpeft train` wrote; it is checked first.
        repository: USER/NAME, with or without `hf:`.
        private: of a repository that is made.
        token: of the user; by default the one that `hf auth login` keeps.
        endpoint: another Hub; by default HF_ENDPOINT or huggingface.co.
        message: of the commit.

    Raises:
        BadAdapterFile: the file is damaged.
        HubError: the name is none, or the Hub refuses.
    """
    manifest, _ = read(file)
    name = repository_of(repository)
    hub: Any = need_extra("huggingface_hub", "hf")
    api = hub.HfApi(endpoint=endpoint, token=token)
    card = model_card(manifest, name).encode()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        made = api.create_commit(
            name,
            operations=[
                hub.CommitOperationAdd(path_in_repo=FILE, path_or_fileobj=Path(file).read_bytes()),
                hub.CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card),
            ],
            commit_message=message,
        )
    except Exception as error:
        raise _said(error, name, "does not take the adapter") from error
    return str(getattr(made, "repo_url", f"https://huggingface.co/{name}"))


def pull(
    repository: str, *, revision: str | None = None, token: str | None = None, endpoint: str | None = None
) -> Path:
    """Download the adapter of a repository into the Hub's cache and return the file, which is checked.

    Args:
        repository: USER/NAME or hf:USER/NAME, with @REVISION if another one than the newest is wanted.
        revision: a branch, tag or commit.
        token, endpoint: as for `push`.

    Raises:
        HubError: there is no such repository, or no adapter in it.
        BadAdapterFile: the file there is no adapter, or is damaged.
    """
    name, _, stated = repository.removeprefix(PREFIX).partition("@")
    name = repository_of(name)
    hub: Any = need_extra("huggingface_hub", "hf")
    try:
        found = Path(
            hub.hf_hub_download(name, FILE, revision=revision or stated or None, token=token, endpoint=endpoint)
        )
    except Exception as error:
        raise _said(error, name, f"gives no {FILE}") from error
    read_manifest(found)
    return found


def repository_of(given: str) -> str:
    """USER/NAME of a repository as it was typed.

    Raises:
        HubError: it is none.
    """
    name = given.removeprefix(PREFIX)
    if not _REPOSITORY.fullmatch(name):
        raise HubError(f"{given!r} is no repository of the Hub. Write it as USER/NAME.")
    return name


def adapter_path(given: str | Path) -> Path:
    """An adapter file as the user named it: a path, or hf:USER/NAME, which is pulled unless a file has that name."""
    text = str(given)
    if text.startswith(PREFIX) and not Path(text).exists():
        return pull(text)
    return Path(given)


def _said(error: Exception, name: str, what: str) -> HubError:
    said = str(error).strip().partition("\n")[0][:300] or type(error).__name__
    return HubError(f"The repository {name} {what}: {said}")
