"""Bad input is never called a bug of ours: every command ends with 1 and one message, or does its work."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bad_input import BESIDES, FILES, WORDS, commands, flags, give, lay_out

from vpeft.method import all_methods

COMMANDS = {" ".join(words): app for words, app in commands()}
# Whatever the words are, these do something that takes long.
_BUSY = ("demo",)


@pytest.fixture(autouse=True)
def _among_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_all_commands_are_there() -> None:
    assert {"train", "predict", "data check", "recipes"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in _BUSY])
def test_wrong_words_and_files(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (*WORDS[:4], *FILES[:3]):
        give([*command.split(), value], capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_some_flags_with_wrong_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    there = flags(COMMANDS[command])
    for place, (flag, switch) in enumerate(there[:: 1 + len(there) // 4]):
        value = WORDS[place % 4]
        given = [f"{flag}={value}"] if switch else [flag, value]
        give([*words, *BESIDES.get(tuple(words), ()), *given], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in _BUSY])
def test_all_wrong_words_and_files(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (*WORDS, *FILES):
        give([*command.split(), value], capsys)
        give([*command.split(), value, value], capsys)


# Commands that have the flags of all methods, which are read in one way: every flag is tried on one of them.
_METHOD_FLAGS = ("explain", "search", "train")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_with_wrong_words_and_files(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag of a command gets three of the wrong words in turn, and each flag of a method one, on one command.

    A call of `train` costs a third of a second to parse, and three commands have the 500 flags of the methods.
    """
    words, wrong = command.split(), (*WORDS[:6], *FILES[:2])
    share = _METHOD_FLAGS.index(command) if command in _METHOD_FLAGS else 0
    of_methods = 0
    for place, (flag, switch) in enumerate(flags(COMMANDS[command])):
        tries = 3
        if command in _METHOD_FLAGS and flag.lstrip("-").split(".")[0].replace("-", "_") in all_methods():
            of_methods += 1
            tries = int(of_methods % len(_METHOD_FLAGS) == share)
        for value in (wrong[(3 * place + step) % len(wrong)] for step in range(tries)):
            given = [f"{flag}={value}"] if switch else [flag, value]
            give([*words, *BESIDES.get(tuple(words), ()), *given], capsys)
    assert bool(of_methods) == (command in _METHOD_FLAGS)
