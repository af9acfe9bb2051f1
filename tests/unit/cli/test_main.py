"""The entry point: exit codes, one message for a mistake, a report for a bug, and a start without torch."""

from __future__ import annotations

import errno
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from cyclopts import App

from vpeft.cli import _COMMANDS, build, main
from vpeft.cli.failure import BUG, DONE, INTERRUPTED, MISTAKE, guarded
from vpeft.data.problems import DataWarning
from vpeft.errors import VpeftError
from vpeft.version import __version__


def app_that(raised: BaseException) -> App:
    app = App(result_action="return_value", suppress_keyboard_interrupt=False)

    @app.default
    def _fail(*words: str, out: str = "") -> None:
        raise raised

    return app


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == DONE
    shown = capsys.readouterr().out
    for name, *_ in _COMMANDS:
        assert name in shown
    assert main(["--version"]) == DONE
    assert __version__ in capsys.readouterr().out


def test_a_mistyped_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == MISTAKE
    caught = capsys.readouterr()
    assert "Did you mean 'train'?" in caught.err
    assert caught.out == ""


def test_the_help_of_the_whole_does_not_import_torch() -> None:
    code = (
        "import sys; from vpeft.cli import main; main(['--help']); main(['trian']); main(['--version']);"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name, *_ in _COMMANDS])
def test_each_command_has_a_help_and_refuses_an_unknown_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == DONE
    assert f"vpeft {name}" in capsys.readouterr().out
    assert main([name, "--no-such-flag-at-all"]) == MISTAKE
    caught = capsys.readouterr()
    assert "--no-such-flag-at-all" in caught.err
    assert "Traceback" not in caught.err


def test_a_users_mistake_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app_that(VpeftError("Asked for x. There is y. Do z.")), []) == MISTAKE
    assert capsys.readouterr().err == "error: Asked for x. There is y. Do z.\n"


def test_a_full_disk_is_not_called_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app_that(OSError(errno.ENOSPC, "No space left on device", "a/b")), []) == MISTAKE
    assert capsys.readouterr().err == "error: No space left on device: a/b\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
        (RuntimeError("numel: integer multiplication overflow"), "A number is too large"),
        (OverflowError("Python int too large to convert to C long"), "A number is too large"),
        ("a\udcffb".encode, "A name cannot be written as utf-8: a\\udcffb"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "Not a directory: a/b"),
        (RuntimeError("Could not determine home directory."), "begins with ~"),
    ],
)
def test_what_the_machine_or_a_name_causes_is_not_called_a_bug(
    raised: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isinstance(raised, Exception):
        with pytest.raises(UnicodeEncodeError) as caught:
            raised("utf-8")  # type: ignore[operator]
        raised = caught.value
    assert guarded(app_that(raised), []) == MISTAKE
    assert said in capsys.readouterr().err


def test_an_interrupt_is_not_called_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(app_that(KeyboardInterrupt()), []) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert guarded(app_that(ZeroDivisionError("by nought")), ["demo", "--out", "a b"]) == BUG
    said = capsys.readouterr().err
    (report,) = tmp_path.glob("vpeft-bug-*.txt")
    assert str(report) in said
    assert "Traceback" not in said
    text = report.read_text(encoding="utf-8")
    assert "command: vpeft demo --out 'a b'" in text
    assert f"vpeft: {__version__}" in text
    assert "torch: " in text
    assert "ZeroDivisionError: by nought" in text
    assert "in _fail" in text


def test_our_warnings_are_remarks_without_a_file_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    app = App(result_action="return_value")

    @app.default
    def _warn() -> None:
        warnings.simplefilter("always")
        warnings.warn("3 files cannot be read.", DataWarning, stacklevel=1)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)

    assert guarded(app, []) == DONE
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: 3 files cannot be read."
    assert lines[1].startswith("warning: (DeprecationWarning, test_main.py:")


def test_the_number_that_a_command_returns_is_the_exit_code() -> None:
    app = App(result_action="return_value")

    @app.default
    def _one() -> int:
        return 1

    assert guarded(app, []) == 1


def test_each_command_is_listed_under_its_own_name() -> None:
    app = build()
    for name, *_ in _COMMANDS:
        assert name in app
