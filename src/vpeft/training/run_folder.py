"""The folder of a run: it can be written, and one training at a time writes into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from vpeft.errors import VpeftError
from vpeft.guarded import short
from vpeft.training.processes import launched

LOCK = ".training.lock"

_HELD: ContextVar[frozenset[Path]] = ContextVar("vpeft_run_folders", default=frozenset())


class UnusableFolder(VpeftError):
    """A run cannot write into its folder: it is a file, cannot be made, or another training writes there."""


class SeveralProcesses(VpeftError):
    """A launcher has started the command several times."""


@contextmanager
def own_folders(*folders: Path | None) -> Iterator[None]:
    """Make the folders, and keep every other training out of them until the end; None stands for no folder.

    A call inside another one of the same thread finds the folders in its own hands. The operating system lets go of a
    folder when its process dies, however it dies. Folders that
    were made for the run and stay empty are removed.

    Raises:
        UnusableFolder: another training writes there, or the folder cannot be made or written.
    """
    held = _HELD.get()
    wanted = {_resolved(folder): folder for folder in folders if folder is not None}
    with ExitStack() as stack:
        for path, folder in wanted.items():
            if path not in held:
                stack.enter_context(_locked(path, folder))
        token = _HELD.set(held | wanted.keys())
        try:
            yield
        finally:
            _HELD.reset(token)


def refuse_several_processes() -> None:
    """Raise `SeveralProcesses` where `torchrun` or `accelerate launch` has started more than one process.

    For everything but the training of one recipe, whose processes share the work.
    """
    _, count = launched()
    if count > 1:
        raise SeveralProcesses(
            f"A launcher such as torchrun has started this run {count} times, and only `vpeft train` with one recipe"
            " shares its work among processes. Start it without the launcher."
        )


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _unusable(folder, error) from None


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    made = [one for one in (path, *path.parents) if not one.exists()]
    lock = FileLock(path / LOCK, timeout=0, mode=0o666)
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except NotImplementedError:  # a file system without locks
            (path / LOCK).touch()
    except Timeout:
        raise UnusableFolder(
            f"Another training writes into {short(str(folder), 200)} at the moment. Wait for its end, or name another"
            " folder (--out)."
        ) from None
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (path / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # the first that is not empty ends it
            for one in made:
                one.rmdir()


def _unusable(folder: Path, error: Exception) -> UnusableFolder:
    if folder.exists() and not folder.is_dir():
        what = "is a file"
    else:
        what = f"cannot be made or written ({getattr(error, 'strerror', None) or error})"
    return UnusableFolder(f"The folder of the run, {short(str(folder), 200)}, {what}. Name another one (--out).")
