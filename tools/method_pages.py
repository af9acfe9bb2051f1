"""The properties of all methods, and what is said of them on pages.

The properties and the results that the package carries are written beside `vpeft/taxonomy`, and the picture of which
method builds on which into docs/images. The page and the picture of each method are kept nowhere: `make docs-site`
makes them (`site_pages`). The tables of docs/methods.md are `index`, which tools/docs.py writes.

python tools/method_pages.py              write; memory is measured where a method's other properties have changed
python tools/method_pages.py --measure    write; memory is measured for all methods (about a minute)
python tools/method_pages.py --check      say what is stale, and exit with 1 if anything is; nothing is measured

Accuracies on the offline suite are read from docs/pocket/results.json where that file is:

    {"title": "pocket smoke, pocket_vit, three seeds", "source": "how and when it was measured",
     "methods": {"lora": {"count": {"mean": 0.81, "std": 0.01, "seeds": 3}, ...}, ...}}
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "docs" / "pocket" / "results.json"
GENEALOGY = ROOT / "docs" / "images" / "genealogy.svg"
FOLDER = "methods"  # of the built pages
ALL = "[All methods](../methods.md)"


def own_methods() -> dict[str, Any]:
    """The methods of this package by name; those that somebody else registers are left out."""
    from vpeft.methods import all_methods

    return {name: kind for name, kind in all_methods().items() if kind.__module__.startswith("vpeft.")}


def made(measure: bool, keep_memory: bool) -> dict[Path, str]:
    """Every generated file that the repository keeps, with its fresh text.

    Args:
        measure: measure the memory of all methods.
        keep_memory: measure nothing that is stored, even if the method has changed since.
    """
    from vpeft.errors import VpeftError
    from vpeft.taxonomy import results
    from vpeft.taxonomy.genealogy import ancestors, genealogy
    from vpeft.taxonomy.properties import STORED, on_meta, properties_of, stored

    found: list[Any] = []
    own = own_methods()
    for name, kind in own.items():
        old = {} if measure else stored().get(name, {})
        try:
            tuned = on_meta(kind())
        except VpeftError:  # no such place on any of these backbones, or a setting without a default
            continue
        one = properties_of(kind(), memory=old.get("memory"), tuned=tuned)
        if old and not keep_memory and _plain(one) != old:
            one = properties_of(kind(), tuned=tuned)
        found.append(one)
    return {
        GENEALOGY: genealogy(ancestors(own)),
        results.STORED: _results(),
        STORED: json.dumps({one.name: _plain(one) for one in found}, indent=1, sort_keys=True) + "\n",
    }


def site_pages() -> dict[str, str]:
    """The pages and pictures of the methods, by their paths in the site.

    Properties are the stored ones; a method of which none are stored is measured.
    """
    from vpeft.errors import VpeftError
    from vpeft.taxonomy.picture import picture
    from vpeft.taxonomy.properties import BACKBONES, on_meta, properties_of, stored_properties

    own = own_methods()
    stored = {one.name: one for one in stored_properties()}
    files: dict[str, str] = {}
    found: dict[str, Any] = {}
    plans: dict[str, Any] = {}
    for name, kind in own.items():
        try:
            tuned = on_meta(kind())
        except VpeftError as error:  # no such place on any of these backbones, or a setting without a default
            files[f"{FOLDER}/{name}.md"] = _page_without_figures(kind, str(error))
            continue
        found[name] = stored[name] if name in stored else properties_of(kind(), tuned=tuned)
        plans[name] = tuned.plan()
    for name, one in found.items():
        if one.backbone == BACKBONES[0]:
            title = f"Where {name} acts in a vision transformer"
            files[f"{FOLDER}/{name}.svg"] = picture(plans[name], one.reads, title)
        files[f"{FOLDER}/{name}.md"] = _page(own[name], one, plans[name], list(found.values()))
    files[f"{FOLDER}/published.md"] = _published_tables()
    return files


def index() -> str:
    """All methods by their stored properties: how to ask, tables, and the survey's answers beside ours.

    Each method is a link to its section of the same page, docs/methods.md.
    """
    from vpeft.taxonomy.properties import stored_properties

    own = own_methods()
    found = [one for one in stored_properties() if one.name in own]
    return _index(found, [kind for name, kind in own.items() if name not in {one.name for one in found}])


def _plain(one: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(one)))
    return plain


def _results() -> str:
    """The scores of the offline suite in the form that `vpeft methods --like` reads: one table for each protocol."""
    from vpeft.bench.suites import suite

    found = json.loads(POCKET.read_text(encoding="utf-8")) if POCKET.exists() else {"source": "", "methods": {}}
    groups = suite("pocket").groups
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for method, protocols in found["methods"].items():
        for protocol, tasks in protocols.items():
            tables.setdefault(protocol, {})[method] = {task: one["mean"] for task, one in sorted(tasks.items())}
    plain = {
        "source": found["source"],
        "tables": [
            {
                "protocol": protocol,
                "higher_is_better": True,
                "tasks": {task: groups[task] for task in groups if any(task in one for one in scores.values())},
                "scores": dict(sorted(scores.items())),
            }
            for protocol, scores in sorted(tables.items())
        ],
    }
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _near(one: Any, found: Sequence[Any]) -> list[str]:
    """What a method builds on, what builds on it, and the methods whose edits are most alike."""
    from vpeft.cli.method_answer import lineage
    from vpeft.taxonomy.neighbours import neighbours

    here = {other.name for other in found}
    told = [
        f"{words}: {', '.join(f'[{name}]({name}.md)' for name in names)}."
        for words, there in zip(("Builds on", "Built on it"), lineage(one.name).values(), strict=True)
        if (names := [name for name in there if name in here])
    ]
    rows = [
        (f"[{near.method}]({near.method}.md)", f"{near.likeness:.2f}", near.difference)
        for near in neighbours(one, found)
    ]
    table = [_table(("method", "likeness", "what differs"), rows)] if rows else ["No other method has a like pattern."]
    return ["## Near it", *(["\n".join(told)] if told else []), *table]


def _page(kind: Any, one: Any, plan: Any, found: Sequence[Any]) -> str:
    from vpeft.cli.about import property_rows
    from vpeft.taxonomy.properties import BACKBONES, CLASSES

    rows = [
        (f"`{row.place}`", row.verb, f"`{row.layer}`", row.shape, f"{row.parameters:,}", _yes(not row.unmergeable))
        for row in plan.folded
    ]
    return (
        "\n\n".join(
            [
                *_about(kind),
                f"![Where {one.name} acts]({one.name}.svg)"
                if one.backbone == BACKBONES[0]
                else "It does not run on a plain vision transformer, so there is no picture.",
                *_near(one, found),
                *_settings(kind),
                f"## On {one.backbone} with these defaults",
                _table(("property", "value"), property_rows(one, plan, CLASSES)),
                _table(("place", "verb", "layer", "largest tensor", "trained", "merges"), rows)
                if rows
                else "Nothing inside the backbone is changed.",
                *_literature(kind.name),
                *_pocket(kind.name),
                f"`vpeft explain {one.name} --backbone {one.backbone}` prints this, also for other settings and"
                f" backbones. {ALL}",
            ]
        )
        + "\n"
    )


def _literature(name: str) -> list[str]:
    """Recipe, traps and published figures; what was measured here stands elsewhere."""
    from vpeft.cli.about import published_figures
    from vpeft.taxonomy.facts import facts_of

    facts, figures = facts_of(name), published_figures(name)
    rows = [(one["figure"], one["parameters"], one["source"]) for one in figures]
    doubts = "None of these was measured here. [What is doubtful about the tables](published.md)."
    return [
        "## Recipe",
        facts.recipe or "None is recorded.",
        "## Traps",
        "\n".join(f"- {trap}" for trap in facts.traps) or "None is recorded.",
        "## Published figures",
        doubts if rows else "None that could be read at its source.",
        *([_table(("figure", "parameters", "source"), rows)] if rows else []),
    ]


def _published_tables() -> str:
    """One page about the tables that the methods' pages quote: source, protocol, doubts."""
    from vpeft.report.published import names, published

    parts = [
        "# Published tables",
        "Imported as reported and never mixed with what is measured here. `vpeft report --reported NAME` sets one"
        " beside a ledger. Which row is which method is stated with the table, in `src/vpeft/report/published/`.",
    ]
    for name in names():
        table = published(name)
        rows = {theirs: ours for ours, theirs in table.about.names.items()}
        listed = ", ".join(f"[{rows[r.method]}]({rows[r.method]}.md)" for r in table.rows if r.method in rows)
        without = ", ".join(row.method for row in table.rows if row.method not in rows)
        slips = [f"{row.method}: {slip}." for row in table.rows for slip in row.slips()]
        parts += [
            f"## {table.about.title}",
            f"`{name}`. From {table.about.source}. Protocol: {table.about.protocol}. Score: {table.about.score}.",
            "\n".join(f"- {doubt}" for doubt in (*table.about.caveats, *slips)),
            f"Methods: {listed}." + (f" Rows without a method here: {without}." if without else ""),
        ]
    return "\n\n".join([*parts, ALL]) + "\n"


def _pocket(name: str) -> list[str]:
    """Accuracies on the offline suite, from what a sweep has left in docs/."""
    found = json.loads(POCKET.read_text(encoding="utf-8")) if POCKET.exists() else {}
    protocols = found.get("methods", {}).get(name, {})
    if not protocols:
        return ["## On pocket", "Not measured yet."]
    rows = [
        (
            protocol,
            task,
            f"{100 * one['mean']:.1f} %" + (f" ± {100 * one['std']:.1f}" if one["std"] else ""),
            one["seeds"],
        )
        for protocol, tasks in protocols.items()
        for task, one in tasks.items()
    ]
    text = _table(("protocol", "task", "accuracy", "seeds"), [(*row[:3], str(row[3])) for row in rows])
    return ["## On pocket", f"{found['source']}; [the whole table](../pocket.md).", text]


def _page_without_figures(kind: Any, why: str) -> str:
    parts = [*_about(kind), *_settings(kind), "## Figures", f"There are none here: {why}", *_literature(kind.name)]
    parts.append(ALL)
    return "\n\n".join(parts) + "\n"


def _about(kind: Any) -> list[str]:
    """The title, where it stands in the literature, and the docstring."""
    from vpeft.cli.methods import describe_method
    from vpeft.taxonomy.facts import facts_of

    title = facts_of(kind.name).title
    parts = (title and f"*{title}*", _paper(kind.paper), _venue(kind))
    published = ", ".join(part for part in parts if part) or "no paper of its own"
    return [
        f"# {kind.name}",
        f"`vpeft.methods.{kind.__name__}`; {_family(kind)}; {published}.",
        describe_method(kind)["doc"],
    ]


def _settings(kind: Any) -> list[str]:
    from vpeft.cli.methods import describe_method

    rows = [
        (f"`{key}`", f"`{field['type']}`", f"`{field['default']}`", field["description"])
        for key, field in describe_method(kind)["fields"].items()
    ]
    return ["## Settings", _table(("setting", "type", "default", "meaning"), rows) if rows else "It has no settings."]


def _index(found: list[Any], refused: list[Any]) -> str:
    from vpeft.taxonomy.properties import BATCH
    from vpeft.taxonomy.survey import ASPECTS, SURVEY, computed, disagreements

    parts = [
        "## By their properties",
        "Default settings on ViT-B/16 at 224 pixels, or on another backbone where a method needs one. Memory is what"
        " one forward pass keeps for backward at a batch of"
        f" {BATCH}, relative to full fine-tuning; parameters are those that train, without the head. The same figures"
        ' answer `vpeft methods --where "mergeable and memory < 0.5"`.',
        "Three ways in: the tables below; `vpeft methods --like"
        ' "merges, no latency, under 0.5 % parameters, good on structured"`, which says which words it knows if one is'
        " unknown; and *Near it* in what `vpeft methods NAME` prints, which names the methods that do almost the same"
        " and says what differs.",
        "## Asking",
        _grammar(),
        "## Which builds on which",
        "The date is that of the first version of the paper; a line leads from each method to those that begin from"
        " it, as their facts files say (`src/vpeft/taxonomy/facts`).",
        "![Which method builds on which, by year](images/genealogy.svg)",
    ]
    for category in dict.fromkeys(sorted((one.category for one in found), key=_CATEGORIES.index)):
        rows = [
            (
                f"[{one.name}](#{one.name})",
                one.family,
                _venue(one),
                f"{one.parameters:,}",
                f"{one.memory:.2f}",
                _yes(one.mergeable),
                _yes(one.keeps_structure),
                one.reach,
            )
            for one in sorted(found, key=lambda one: (one.family, one.year, one.name))
            if one.category == category
        ]
        columns = ("method", "family", "published", "parameters", "memory", "merges", "keeps structure", "gradients")
        parts += [f"## {category.capitalize()}", _table(columns, rows)]
    parts += ["## By property", _by_property(found)]
    if refused:
        links = ", ".join(f"[{kind.name}](#{kind.name})" for kind in refused)
        parts += ["## Without figures", f"These do not run on the backbones here with default settings: {links}."]
    table = computed(found)
    parts += [
        "## The survey's table, computed",
        "The survey (arXiv 2402.02242, version 2) answers four questions for each family: "
        + ", ".join(f"{short}: {meaning}" for short, meaning in ASPECTS.items())
        + ". Before the bar is its answer, behind it how many of the methods here say yes. Memory counts as saved when"
        " less than half of full fine-tuning's is kept. The survey's column SP was read in translation.",
        _table(
            ("family", *ASPECTS),
            [
                (
                    family,
                    *(
                        f"{_yes(SURVEY[family][aspect]) if family in SURVEY else 'not asked'} / {yes} of {count}"
                        for aspect, (yes, count) in table[family].items()
                    ),
                )
                for family in [*SURVEY, *sorted(set(table) - set(SURVEY))]
                if family in table
            ],
        ),
        "## Where computation and survey disagree",
        _table(
            ("method", "family", "question", "survey", "computed because"),
            [
                (f"[{d.method}](#{d.method})", d.family, ASPECTS[d.aspect], _yes(d.survey), d.because)
                for d in disagreements(found)
            ],
        ),
    ]
    return "\n\n".join(parts)


def _grammar() -> str:
    """What `vpeft methods --like` understands."""
    from vpeft.taxonomy.results import stored_results
    from vpeft.taxonomy.wishes import WORDS

    measured = ", ".join(stored_results().names)
    rows = [
        *((f"`{word}`, `no {word}`", meaning, f"`{filter_}`") for word, (filter_, meaning) in WORDS.items()),
        ("a family or category, such as `prompt`", "belongs to it", "`family == 'prompt'`"),
        ("`under 0.5 % parameters`, `at most 1M parameters`", "trains so few", "`share < 0.005`"),
        ("`under 50 % memory`", "keeps so little for backward", "`memory < 0.5`"),
        ("`since 2023`, `before 2023`", "was published then", "`year >= 2023`"),
        ("`like lora`", "has a like pattern of edits", ""),
        (f"`good on NAME`: {measured}", "is in the upper third of the methods of its table", ""),
    ]
    said = (
        "Wishes stand with commas between them, and all must hold. `--ledger FOLDER` takes results of your own instead"
        " of those of the offline suite; a method that was never measured there is named and not chosen."
    )
    return said + "\n\n" + _table(("wish", "the method", "as `--where`"), rows)


FILTERS = (
    ("folds into the weights: no cost at inference", "mergeable"),
    ("keeps less than half of full fine-tuning's bytes for backward", "memory < 0.5"),
    ("no gradient enters the frozen backbone", "reach == 'none'"),
    ("gradients stop before the first block", "reach != 'full'"),
    ("fewer than 100,000 trained parameters", "parameters < 100000"),
    ("fewer than 1 % of the backbone's parameters", "share < 0.01"),
    ("starts as the frozen backbone", "identity"),
    ("adds no module", "not adds_modules"),
    ("keeps the way through the blocks", "keeps_structure"),
    ("changes attention from inside", "'attn.core' in places"),
    ("adds tokens", "'insert_tokens' in verbs"),
    ("needs another backbone than a plain ViT", "backbone != 'vit_base_patch16_224'"),
)


def _by_property(found: list[Any]) -> str:
    """For each question the methods that answer yes, and the filter that finds them."""
    from vpeft.taxonomy.where import Filter

    rows = []
    for question, text in FILTERS:
        passes = Filter(text, dataclasses.asdict(found[0]))
        names = [f"[{one.name}](#{one.name})" for one in found if passes(dataclasses.asdict(one))]
        rows.append((question, f'`vpeft methods --where "{text}"`', ", ".join(names) or "none"))
    return _table(("property", "filter", "methods"), rows)


_CATEGORIES = ["baseline", "addition", "partial", "unified", "multi-task"]


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _family(one: Any) -> str:
    return one.category if one.category == one.family else f"{one.category}, {one.family}"


def _venue(one: Any) -> str:
    return f"{one.venue} {one.year}" if one.year else ""


def _paper(paper: str) -> str:
    return f"[arXiv {paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else ""


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *cells))


def run(arguments: list[str]) -> int:
    """Write or check; the number of stale files when checking."""
    check = "--check" in arguments
    files = made(measure="--measure" in arguments, keep_memory=check)
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(files[path], encoding="utf-8")
    if check and stale:
        print(f"\n{len(stale)} stale; run `make docs` and commit.")
    return len(stale) if check else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(1 if run(sys.argv[1:]) else 0)
