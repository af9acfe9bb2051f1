"""Wrong names, numbers, files and folders, and a way to give them to every command of the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from vpeft.cli import build, main
from vpeft.cli.failure import DONE, MISTAKE

WORDS = (
    "",
    "nothing",
    "\x1b[31mred\u202e\x9b",
    "-1",
    "9" * 30,
    "~nosuchuser/x",
    "a\udcffb",
    "x" * 5000,
    " ",
    "0",
    "nan",
    "1e999",
    "a,b",
    "[",
    "{}",
    "lora(rank=",
    "lora(rank=-1)",
    "py:nothing.py:x",
    "hf:",
)
_JUNK = bytes(range(256)) * 4
FILES = (
    "folder",
    "junk.safetensors",
    "text.txt",
    "pipe",
    "junk.toml",
    "text.txt/x",
    "empty",
    "junk.csv",
    "junk.json",
    "junk.npz",
    "junk.parquet",
    "junk.png",
)
# What a command is given besides, so that it cannot begin a long run: something of it is missing or taken.
BESIDES = {
    ("bench",): ("--out", "text.txt"),
    ("demo",): ("--out", "text.txt"),
    ("train",): ("--data", "missing"),
    ("search",): ("--data", "missing"),
    ("continual",): ("--data", "missing", "--method", "simple_cil"),
    ("fewshot",): ("--data", "missing", "--method", "dra"),
    ("multitask",): ("--data", "missing", "--method", "lora", "--tasks", "semantic,depth"),
    ("extend",): ("missing.safetensors", "--data", "missing", "--out", "text.txt"),
    ("fuse",): ("missing.safetensors", "--out", "text.txt"),
    ("meta",): ("--out", "text.txt"),
    ("evaluate",): ("missing.safetensors", "--data", "missing"),
    ("predict",): ("missing.safetensors", "missing.png"),
    ("serve",): ("missing",),
    ("report",): ("missing",),
    ("explain",): ("missing",),
    ("data", "check"): ("missing",),
    ("data", "export"): ("missing", "text.txt"),
}


def lay_out(folder: Path) -> None:
    """Put the files of `FILES` into a folder."""
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("hello\n")
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    for name in FILES:
        if name.startswith("junk."):
            (folder / name).write_bytes(_JUNK)


def commands(app: App | None = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """All commands that do something, with their words, as the application itself lists them."""
    app = build() if app is None else app
    for name in app:
        if not name.startswith("-"):
            inner = [one for one in app[name] if not one.startswith("-")]
            if inner:
                yield from commands(app[name], (*words, name))
            else:
                yield (*words, name), app[name]


def flags(app: App) -> list[tuple[str, bool]]:
    """The flags of a command, and whether they are switches."""
    arguments = [one for one in app.assemble_argument_collection() if one.name.startswith("-")]
    return [(one.name, one.hint is bool) for one in arguments]


def give(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Run the command line; it must end with 0, or with 1 and one message that a terminal can show."""
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr()
    assert code in (DONE, MISTAKE), f"{words}: {code}\n{said.err}"
    for text in (said.out, said.err):
        odd = {letter for letter in text if not (letter.isprintable() or letter in "\n\t\u00a0\u3000")}
        assert not odd, f"{words}: {odd}"
        assert "Traceback" not in text, words
    messages = re.findall("^error: ", said.err, re.MULTILINE)
    assert len(messages) == (code == MISTAKE), f"{words}: {said.err}"
    return code
