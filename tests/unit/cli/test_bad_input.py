"""Bad input is never called a bug of ours: every command ends with 1 and one message, or does its work."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bad_input import BESIDES, FILES, WORDS, commands, flags, give, lay_out

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


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_with_wrong_words_and_files(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag gets three of the wrong words in turn, as a call of `train` costs a third of a second to parse."""
    words, wrong = command.split(), (*WORDS[:6], *FILES[:2])
    for place, (flag, switch) in enumerate(flags(COMMANDS[command])):
        for value in (wrong[(3 * place + step) % len(wrong)] for step in range(3)):
            given = [f"{flag}={value}"] if switch else [flag, value]
            give([*words, *BESIDES.get(tuple(words), ()), *given], capsys)
