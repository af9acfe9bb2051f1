"""What happens if a command fails: one message for an error of the user, a report file for a bug."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cyclopts import App, CycloptsError
from rich.text import Text

from vpeft.errors import VpeftError
from vpeft.safe_text import SafeConsole, visible, visible_line
from vpeft.version import __version__

DONE, MISTAKE, BUG, INTERRUPTED = 0, 1, 2, 130

# Conditions of the machine and of names that no code of ours can mend; the system's own sentence names the file.
_SURROUNDINGS = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "EIO", "ENXIO", "EBUSY", "ETXTBSY", "ESTALE"),
        *("ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "ENAMETOOLONG", "EINVAL", "EILSEQ"),
        *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ENODEV", "EOVERFLOW"),
    )
    if hasattr(errno, name)
)

# What torch says of sizes that no memory holds, and of numbers that 64 bits do not hold.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
_TOO_LARGE = ("multiplication overflow", "calculation overflowed", "Overflow when unpacking long")

# What a report lists besides vpeft, in the order in which one looks.
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "pydantic",
    "cyclopts",
    "rich",
    "accelerate",
    "torchmetrics",
)


def guarded(app: App, arguments: Sequence[str]) -> int:
    """Run `app` on `arguments`; return an exit code and, on failure, print one message on stderr."""
    with warnings.catch_warnings():
        warnings.showwarning = _shown_as_remark
        return _guarded(app, arguments)


def _guarded(app: App, arguments: Sequence[str]) -> int:
    try:
        code = app(arguments, exit_on_error=False, print_error=False, verbose=False)
        sys.stdout.flush()
    except CycloptsError as error:
        say_error(f"{error}\n{_hint(arguments, app)}")
        return MISTAKE
    except VpeftError as error:
        say_error(str(error))
        return MISTAKE
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Python would complain once more when it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else DONE
    except Exception as error:
        if (said := _of_the_machine(error)) is not None:
            say_error(said)
            return MISTAKE
        path = write_report(arguments, error)
        say_error(
            f"vpeft found a bug in itself: {type(error).__name__}: {error}\n"
            f"A report with the traceback, the versions and the command is in {path}"
        )
        return BUG
    return code if isinstance(code, int) else DONE


def _of_the_machine(error: Exception) -> str | None:
    """What is said of an error that comes from the machine or from a name, and not from vpeft; None for all others."""
    if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
        return f"{error.strerror}: {error.filename if error.filename is not None else 'no file named'}"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return (
            f"There is not enough memory: {str(error)[:300] or 'no figures are known'}. Take smaller sizes or batches."
        )
    if isinstance(error, OverflowError) or any(words in str(error) for words in _TOO_LARGE):
        return f"A number is too large to compute with: {str(error).splitlines()[0][:300]}. Take smaller ones."
    if isinstance(error, UnicodeEncodeError):
        part = error.object[max(0, error.start - 30) : error.end + 30]
        return f"A name cannot be written as {error.encoding}: {visible_line(part)}. Rename it."
    if isinstance(error, RuntimeError) and str(error) == "Could not determine home directory.":
        return "A path begins with ~ and the name of a user that this machine does not know."
    return None


def say_error(message: str) -> None:
    """Print one message on stderr, in red if the terminal can."""
    console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
    with suppress(OSError):  # a terminal that was closed
        console.print(Text.assemble(("error: ", "bold red"), visible(message.rstrip())))


def say_warning(message: str) -> None:
    """Print one remark on stderr; the command goes on."""
    console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
    with suppress(OSError):  # a terminal that was closed
        console.print(Text.assemble(("warning: ", "bold yellow"), visible(message.rstrip())))


def _shown_as_remark(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one remark; a warning of another library with the library's name."""
    ours = category.__module__.startswith("vpeft")
    say_warning(str(message) if ours else f"({category.__name__}, {Path(filename).name}:{lineno}) {message}")


def versions() -> dict[str, str]:
    """Return the versions that decide a result: vpeft, Python, the platform and the installed libraries."""
    found = {"vpeft": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_report(arguments: Sequence[str], error: BaseException) -> Path:
    """Write a report of a bug into a file here, or in the temporary folder if that fails."""
    name = f"vpeft-bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    lines = [
        f"command: {shlex.join(['vpeft', *arguments])}",
        *(f"{package}: {version}" for package, version in versions().items()),
        "",
        "".join(traceback.format_exception(error)),
    ]
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (folder / name).write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return Path("(no folder could be written)")


def _hint(arguments: Sequence[str], app: App) -> str:
    """Return where the complete list of options is printed."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return f"Run `vpeft {command} --help` to see all." if command in app else "Run `vpeft --help` to see all."
