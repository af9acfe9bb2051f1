"""`vpeft hub push` and `vpeft hub pull`: adapters on the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from cyclopts import App
from rich.text import Text

from vpeft.atomic import replace_file
from vpeft.cli import show
from vpeft.cli.flags import Switch
from vpeft.interop.hub import pull as pulled
from vpeft.interop.hub import push as pushed

app = App(name="hub", help="Push adapters to the Hugging Face Hub with a card, and pull them.")


@app.command
def push(adapter: Path, repository: str, /, *, private: Switch = False, endpoint: str | None = None) -> None:
    """Put an adapter file and a card made of its manifest into a repository of the Hub.

    Parameters
    ----------
    adapter:
        The file that `vpeft train` saved.
    repository:
        USER/NAME; it is made if it is not there.
    private:
        Make it private.
    endpoint:
        Another Hub; by default HF_ENDPOINT or huggingface.co.
    """
    address = pushed(adapter, repository, private=private, endpoint=endpoint)
    show.console().print(Text(f"pushed: {address}"))


@app.command
def pull(repository: str, out: Path | None = None, /, *, endpoint: str | None = None) -> None:
    """Fetch the adapter of a repository; commands that take an adapter file take hf:USER/NAME too.

    Parameters
    ----------
    repository:
        USER/NAME, with @REVISION for another one than the newest.
    out:
        Copy it to this file; without it, the file in the Hub's cache is named.
    endpoint:
        Another Hub; by default HF_ENDPOINT or huggingface.co.
    """
    found = pulled(repository, endpoint=endpoint)
    if out is not None:
        replace_file(out, lambda fresh: _copy(found, fresh))
    show.console().print(Text(f"pulled: {out or found}"))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
