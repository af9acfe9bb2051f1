"""The command line: `vpeft COMMAND ...`.

Each command is a file that is imported only when the command is called, so `vpeft --help` and a mistyped command answer
at once, without importing torch. Exit codes: 0 done; 1 an error that the user can correct (one message, no traceback);
2 a bug of vpeft (a report file is written and named).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, Group

from vpeft.cli import flags
from vpeft.cli.failure import MISTAKE, guarded, say_error
from vpeft.cli.flags import ALL
from vpeft.errors import nearest
from vpeft.version import __version__

_WORK = Group("Adapt and use", sort_key=1)
_FILES = Group("Look into adapter files", sort_key=2)
_PASS = Group("Exchange with other libraries", sort_key=3)
_COMPARE = Group("Compare", sort_key=4)
_LOOK = Group("Look things up", sort_key=5)

_HELP = """Adapt a pre-trained vision model to your own images with few trained parameters.

Start with `vpeft demo`, or with your own folder of images, one sub-folder per class:
`vpeft train --data photos/ --backbone pocket_vit --method lora --out runs/a`, then
`vpeft predict runs/a/adapter.safetensors photo.jpg`.
"""

# Command, where it lives, what it does in one line, and the panel of `vpeft --help` that shows it.
_COMMANDS: tuple[tuple[str, str, str, Group], ...] = (
    ("train", "vpeft.cli.train:train", "Adapt a backbone to your images; saves one small adapter file.", _WORK),
    ("auto", "vpeft.cli.auto:auto", "Choose method, size and learning rate for your images, in a time.", _WORK),
    ("predict", "vpeft.cli.predict:predict", "Predict labels, numbers or maps with a saved adapter.", _WORK),
    ("evaluate", "vpeft.cli.evaluate:evaluate", "Evaluate a saved adapter on samples with known targets.", _WORK),
    ("continual", "vpeft.cli.continual:continual", "Learn a stream of tasks, classes by and by, and measure.", _WORK),
    ("extend", "vpeft.cli.extend:extend", "Add new classes to a saved adapter without its old images.", _WORK),
    ("fuse", "vpeft.cli.fuse:fuse", "Make one adapter of several on one backbone, without training.", _WORK),
    ("meta", "vpeft.cli.meta:meta", "Retrain a backbone on several tasks, so that adapters of new ones fit.", _WORK),
    ("fewshot", "vpeft.cli.fewshot:fewshot", "Tune on a few images of a few classes, many times, and measure.", _WORK),
    ("shots", "vpeft.cli.shots:shots", "Few images of each class and the names of the classes.", _WORK),
    ("multitask", "vpeft.cli.multitask:multitask", "Learn several tasks with one adapter, and compare.", _WORK),
    ("serve", "vpeft.cli.serve:serve", "Serve a folder of adapters over HTTP, with a page to try them.", _WORK),
    ("demo", "vpeft.cli.demo:demo", "Train, compare, reload and predict, offline, in minutes; writes a page.", _WORK),
    ("export", "vpeft.cli.export:export", "Write an adapter for peft, as a plain checkpoint, or as ONNX.", _PASS),
    ("import", "vpeft.cli.import_peft:import_peft", "Make an adapter file of a folder of peft.", _PASS),
    ("hub", "vpeft.cli.hub:app", "Push adapters to the Hugging Face Hub, and pull them.", _PASS),
    ("verify", "vpeft.cli.verify:verify", "Check an adapter file: digests, weights, kept outputs.", _FILES),
    ("inspect", "vpeft.cli.inspect_adapters:inspect_adapters", "Show what adapters changed, and how alike.", _FILES),
    ("diff", "vpeft.cli.diff:diff", "Show what differs between two adapter files.", _FILES),
    ("bench", "vpeft.cli.bench:bench", "Run methods x data sets x seeds, with one record per run.", _COMPARE),
    ("search", "vpeft.cli.search:search", "Choose settings by trials on validation images.", _COMPARE),
    ("report", "vpeft.cli.report:report", "Turn run records into a table, a picture and a page.", _COMPARE),
    ("query", "vpeft.cli.query:query", "Ask the records of a ledger in SQL.", _COMPARE),
    ("methods", "vpeft.cli.methods:methods", "List the methods with their settings.", _LOOK),
    ("tasks", "vpeft.cli.tasks:tasks", "List the tasks and the heads with their options.", _LOOK),
    ("recipes", "vpeft.cli.recipes:recipes", "List the recipes of published comparisons that ship with it.", _LOOK),
    ("backbones", "vpeft.cli.backbones:backbones", "List the backbones that can be adapted.", _LOOK),
    ("explain", "vpeft.cli.explain:explain", "Show what a method does to a backbone, without weights.", _LOOK),
    ("data", "vpeft.cli.data:app", "List, check and export data sets.", _LOOK),
    ("doctor", "vpeft.cli.doctor:doctor", "Check this installation and name what is missing.", _LOOK),
)


def build(called: str | None = None) -> App:
    """Return the application with all its commands, none of them imported yet.

    The command that is `called` shows its docstring as its help; the others need only their line in the list.
    """
    app = App(
        name="vpeft",
        help=_HELP,
        version=f"vpeft {__version__}",
        help_format="markdown",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for order, (name, path, summary, group) in enumerate(_COMMANDS):
        app.command(path, name=name, help=None if name == called else summary, group=group, sort_key=order)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (those of the process by default) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    names = [name for name, *_ in _COMMANDS]
    # Checked here because cyclopts would import every command, and torch with them, for the same answer.
    if given and not given[0].startswith("-") and given[0] not in names:
        say_error(f"There is no command {given[0]!r}. {nearest(given[0], names)}\nRun `vpeft --help` to see all.")
        return MISTAKE
    if given and given[0] != "train" and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        from vpeft.training.run_folder import SeveralProcesses, refuse_several_processes

        try:
            refuse_several_processes()
        except SeveralProcesses as error:
            say_error(str(error))
            return MISTAKE
    if ALL in given:  # before a command is imported, which makes its flags
        flags.show_all = True
        given = [word for word in given if word != ALL] + ["--help"]
    return guarded(build(given[0] if given else None), given)
