"""Write the generated parts of README.md and docs/, or check that they are fresh.

    python tools/docs.py            write
    python tools/docs.py --check    say what is stale, and exit with 1 if anything is

A generated part stands between `<!-- generated: KIND ARGUMENTS -->` and `<!-- end -->`. The kinds:

    file PATH [NAME]     the text of a file, or of the part of it between `# [NAME]` and `# [/NAME]`
    methods              the table of all methods
    properties           all methods by their stored properties
    settings             for each method its settings
    backbones            the table of families
    help COMMAND ...     what `vpeft COMMAND ... --help` prints
    effective_rank       the table of benchmarks/results/effective_rank.json
    auto_regret          the table of benchmarks/results/auto_regret.json
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

# Before anything asks for the terminal: what is written must not depend on where it is made.
os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")

ROOT = Path(__file__).resolve().parent.parent
_PART = re.compile(r"(<!-- generated: (?P<what>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".txt": "text"}


def pages() -> list[Path]:
    """The files that have generated parts."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def rendered(text: str) -> str:
    """`text` with all its generated parts made anew."""

    def fresh(match: re.Match[str]) -> str:
        kind, *arguments = match["what"].split()
        if kind not in _KINDS:
            raise SystemExit(f"There is no generated part of the kind {kind!r}; there are {', '.join(_KINDS)}.")
        return f"{match[1]}{_KINDS[kind](*arguments).strip()}\n{match[3]}"

    return _PART.sub(fresh, text)


def file(path: str, name: str | None = None) -> str:
    """A file of the repository, or a named part of it, as a fenced block; markers of parts are left out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if name is not None:
        found = re.search(
            rf"^ *# \[{re.escape(name)}\]\n(.*?)^ *# \[/{re.escape(name)}\]", text, re.DOTALL | re.MULTILINE
        )
        if found is None:
            raise SystemExit(f"{path} has no part [{name}].")
        text = textwrap.dedent(found[1])
    text = "".join(line for line in text.splitlines(keepends=True) if not re.match(r" *# \[/?\w+\]$", line))
    text = text.removeprefix("#!/usr/bin/env bash\n")
    return f"```{_LANGUAGES[Path(path).suffix]}\n{text.strip()}\n```"


def methods() -> str:
    """All methods: name, class, family, paper, idea."""
    from vpeft.cli.methods import describe_method
    from vpeft.methods import all_methods

    rows = [describe_method(kind) for kind in all_methods().values()]
    return _table(
        ("method", "class", "family", "paper", "idea"),
        [
            (
                f"[`{row['name']}`](#{row['name']})",
                f"`{row['class']}`",
                row["family"],
                _paper(row["paper"]),
                row["summary"],
            )
            for row in rows
        ],
    )


def properties() -> str:
    """All methods by their stored properties, which tools/method_pages.py writes."""
    return str(_tool("method_pages").index())


def settings() -> str:
    """Every setting of every method, with its default and meaning."""
    from vpeft.cli.methods import describe_method
    from vpeft.methods import all_methods

    parts = []
    for kind in all_methods().values():
        row = describe_method(kind)
        parts.append(f"### {row['name']}\n\n{row['doc']}\n")
        fields = [
            (f"`{name}`", f"`{field['type']}`", f"`{field['default']}`", field["description"])
            for name, field in row["fields"].items()
        ]
        parts.append(_table(("setting", "type", "default", "meaning"), fields) if fields else "It has no settings.")
        parts.append("")
    return "\n".join(parts)


def backbones() -> str:
    """The families with the number of models that timm makes of each."""
    from vpeft.backbones.describe import families
    from vpeft.cli.backbones import model_names

    rows = [
        (
            f"`{entry.name}`",
            entry.summary,
            str(len(model_names(entry))),
            ", ".join(f"`{n}`" for n in model_names(entry)[:3]),
        )
        for entry in families().values()
    ]
    return _table(("family", "what it covers", "models in timm", "for example"), rows)


def help(*command: str) -> str:
    """What the command line says of a command."""
    from vpeft.cli import main

    said = io.StringIO()
    with redirect_stdout(said):
        code = main([*command, "--help"])
    if code != 0:
        raise SystemExit(f"`vpeft {' '.join(command)} --help` ended with {code}.")
    return "```text\n" + "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines()) + "\n```"


def effective_rank() -> str:
    """The ranks of what full fine-tuning changes, a row for each task, means over the matrices and seeds."""
    found = json.loads((ROOT / "benchmarks/results/effective_rank.json").read_text(encoding="utf-8"))
    rows = []
    for name, one in found["tasks"].items():
        mean = one["mean"]
        shares = [f"{100 * mean[key]:.0f} %" for key in ("effective", "of_90", "in_lora")]
        score = f"{one['runs'][0]['metric']} {100 * mean['score']:.0f} %"
        rows.append((name, one["kind"], *shares, f"{100 * mean['change']:.1f} %", score, str(len(one["runs"]))))
    columns = (
        "task",
        "kind",
        "effective rank",
        "rank of 90 % of the energy",
        "energy in 8 directions",
        "size of the change",
    )
    return _table((*columns, "validation", "seeds"), rows)


def auto_regret() -> str:
    """What `vpeft auto` chose on each task of pocket without having seen it, and what it lost."""
    found = json.loads((ROOT / "benchmarks/results/auto_regret.json").read_text(encoding="utf-8"))
    rows = [
        (
            row["task"],
            row["chosen"],
            f"{row['test']:.1f}" + (f" ({row['seeds']} of 3 seeds)" if row["seeds"] < 3 else ""),
            f"{row['best_test']:.1f} ({row['best']})",
            f"{row['lora_test']:.1f}",
            f"{100 * row['share']:.1f} %",
        )
        for row in found["tasks"]
    ]
    summary = found["summary"]
    regret, gain = (
        f"{value:.2f} points (95 % interval {low:.2f} to {high:.2f})"
        for value, low, high in (summary["regret"], summary["over_tuned_lora"])
    )
    always = sorted(summary["regret_of_always"].items(), key=lambda item: item[1])[:3]
    others = ", ".join(f"{name} {value:.1f}" for name, value in always)
    table = _table(("task", "chosen", "test", "best of the table", "LoRA, its rate searched", "cost"), rows)
    return (
        f"{table}\n\nMean regret against the best of {summary['methods']} methods on each task: {regret}. Over LoRA"
        f" with a searched rate: {gain}. Cost: {100 * summary['share']:.1f} % of the grid on average, at most"
        f" {100 * summary['most_share']:.1f} % on one task. For comparison, the regret of always taking one method,"
        f" after a full search of its rate: {others}."
    )


_KINDS: dict[str, Callable[..., str]] = {
    "file": file,
    "methods": methods,
    "properties": properties,
    "settings": settings,
    "backbones": backbones,
    "help": help,
    "effective_rank": effective_rank,
    "auto_regret": auto_regret,
}


def _tool(name: str) -> ModuleType:
    """Another file of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise SystemExit(f"There is no tools/{name}.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _paper(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else paper


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [columns, ("---",) * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(check: bool) -> int:
    """Write or check every page; the number of stale ones when checking."""
    stale = 0
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = rendered(before)
        if before == after:
            continue
        name = str(page.relative_to(ROOT))
        if check:
            stale += 1
            changes = difflib.unified_diff(before.splitlines(), after.splitlines(), name, "fresh", lineterm="", n=1)
            print("\n".join(list(changes)[:40]))
        else:
            page.write_text(after, encoding="utf-8")
            print(f"written: {name}")
    if stale:
        print(f"\n{stale} stale; run `make docs` and commit.")
    return stale


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(1 if run(check="--check" in sys.argv[1:]) else 0)
