"""What the documentation site has beyond the files of docs/: MkDocs calls this while it builds (mkdocs.yml).

- The repository's README is the first page; CONTRIBUTING, CHANGELOG and SECURITY are pages too.
- Each method has a page and a picture (tools/method_pages.py).
- The public names of `vpeft`, and what the examples import besides, have a reference made from their docstrings.
- A file of the repository that a page links to and that is no page is copied into `source/`.

Links are those of the repository and are turned into those of the site. Every page of docs/ is in the navigation:
`SECTIONS` gives order and names, and a page that it lacks comes into the last section.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
SOURCE = "source"
MORE = "More"
SECTIONS: dict[str, tuple[str, ...]] = {
    "Start": ("pages.md", "installation.md", "first_adapter.md", "own_model.md", "command_line.md"),
    "Tasks": (
        "dense.md",
        "dense_data.md",
        "video.md",
        "retrieval.md",
        "multi_task.md",
        "two_towers.md",
        "multimodal.md",
        "autoregressive.md",
        "applications.md",
    ),
    "Learning over time": ("continual.md", "few_shot.md", "meta_learning.md", "fusion.md"),
    "Methods": ("methods.md",),
    "Backbones": ("backbones.md", "coverage.md", "breadth.md", "live_sites.md", "counts.md"),
    "Training": ("acceleration.md", "speed.md", "many_devices.md", "many_machines.md", "search.md", "auto.md"),
    "Benchmarks": ("records.md", "suites.md", "pocket.md", "pocket_dense.md", "statistics.md"),
    "The adapter": ("adapter_file.md", "interop.md", "serving.md"),
    "Extending": ("writing_a_method.md", "writing_a_task.md", "contributing.md"),
    "Reference": (),
    MORE: ("changelog.md", "security.md"),
}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.MULTILINE | re.DOTALL)


# Links


def links(text: str) -> list[str]:
    """The targets of the links and pictures of a page, outside of code, that lead to files."""
    return [
        match["target"]
        for part in _FENCE.split(text)
        if not part.startswith(("```", "~~~"))
        for match in _LINK.finditer(part)
        if _leads_to_a_file(match["target"])
    ]


def _leads_to_a_file(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:|#|/", target)


def resolved(page: str, target: str) -> str:
    """The path in the repository that `target` on the page of the repository means, without its anchor."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target.partition("#")[0]))


def with_links_of_the_site(text: str, page: str, places: Mapping[str, str], methods: Iterable[str]) -> str:
    """A page's text whose links lead to pages of the site.

    Args:
        text: of the page.
        page: its path in the repository.
        places: for each file of the repository that is on the site its path there.
        methods: their names; a link to the section of one in docs/methods.md leads to its own page.
    """
    here = posixpath.dirname(places[page])
    sections = {f"docs/methods.md#{name}": f"methods/{name}.md" for name in methods}

    def fresh(match: re.Match[str]) -> str:
        target = match["target"]
        anchor = target.partition("#")[2]
        of_methods = page == "docs/methods.md" and target.startswith("#")
        if not _leads_to_a_file(target) and not of_methods:
            return match[0]
        path = page if of_methods else resolved(page, target)
        there = sections.get(f"{path}#{anchor}")
        if there is None and of_methods:
            return match[0]
        if there is None and path in places:
            there = places[path] + (f"#{anchor}" if anchor else "")
        if there is None:
            # A folder is no page. Anything else stays, and the strict build names it.
            return match["text"] if (ROOT / path).is_dir() else match[0]
        return f"{match['image']}[{match['text']}]({posixpath.relpath(there, here or '.')})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith(("```", "~~~")) else _LINK.sub(fresh, part) for part in parts)


def copied(pages: Iterable[str], on_site: Iterable[str]) -> dict[str, str]:
    """The files of the repository that pages link to and that are not on the site yet, with their paths there.

    What a copied page links to is copied too.
    """
    known, found, waiting = set(on_site), {}, list(pages)
    while waiting:
        page = waiting.pop()
        for target in links((ROOT / page).read_text(encoding="utf-8")):
            path = resolved(page, target)
            if path in known or not (ROOT / path).is_file():
                continue
            known.add(path)
            found[path] = f"{SOURCE}/{path}"
            if path.endswith(".md"):
                waiting.append(path)
    return found


# The navigation


def navigation(pages: Iterable[str], methods: Iterable[str], reference: Iterable[str]) -> list[dict[str, Any]]:
    """Sections with their pages: first the given ones that exist, then, in the last section, all others."""
    left = dict.fromkeys(pages)
    made: list[dict[str, Any]] = [{"vpeft": "index.md"}]
    left.pop("index.md", None)
    for section, names in SECTIONS.items():
        listed: list[Any] = [name for name in names if name in left]
        for name in listed:
            del left[name]
        if section == "Methods":
            listed += ["methods/published.md", *(f"methods/{name}.md" for name in methods)]
        if section == "Reference":
            listed += list(reference)
        if section == MORE:
            listed += sorted(left)
        if listed:
            made.append({section: listed})
    return made


# The reference


def public_names() -> dict[str, list[str]]:
    """What a user imports, by the part of the package in which it is: dotted names without those of modules.

    They are the names of `vpeft.__all__`, all tasks and heads, and what the examples import from deeper modules.
    """
    import vpeft
    from vpeft.head import all_heads
    from vpeft.task import all_tasks

    objects = [getattr(vpeft, name) for name in vpeft.__all__ if name != "__version__"]
    registered = (*all_tasks().values(), *all_heads().values())
    objects += [kind for kind in registered if kind.__module__.startswith("vpeft.")]
    objects += [getattr(importlib.import_module(module), name) for module, name in _imported_by_examples()]
    found: dict[str, list[str]] = {}
    for one in objects:
        if isinstance(one, ModuleType):
            if one.__name__.startswith("vpeft.interop."):
                found.setdefault("interop", []).append(one.__name__)
            continue
        dotted = f"{one.__module__}.{one.__qualname__}"
        _, part, *rest = one.__module__.split(".")
        found.setdefault(part if rest else "core", []).append(dotted)
    return {
        part: sorted(dict.fromkeys(names), key=lambda n: n.rpartition(".")[2].lower()) for part, names in found.items()
    }


def _imported_by_examples() -> list[tuple[str, str]]:
    """Pairs of a module below `vpeft` and a name; methods are left out, they have pages of their own."""
    found = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vpeft."):
                module = str(node.module)
                found += [(module, alias.name) for alias in node.names if module != "vpeft.methods"]
    return found


def reference_pages() -> dict[str, str]:
    """The pages of the reference by their paths in the site: one for each part of the package, and an index."""
    parts = public_names()
    files, rows = {}, []
    for part in sorted(parts, key=lambda part: (part != "core", part)):
        title = "vpeft" if part == "core" else f"vpeft.{part}"
        module = importlib.import_module(title)
        about = inspect.getdoc(module) or "" if part != "core" else "What methods, tasks and heads are made of."
        directives = "\n\n".join(f"::: {name}" for name in parts[part])
        files[f"reference/{part}.md"] = f"# {title}\n\n{about}\n\n{directives}\n"
        for name in parts[part]:
            first, _, short = name.rpartition(".")
            summary = _summary(
                importlib.import_module(name) if _is_module(name) else getattr(sys.modules[first], short)
            )
            rows.append((short, f"| [`{short}`]({part}.md#{name}) | `{first}` | {summary} |"))
    table = "\n".join(line for _, line in sorted(rows, key=lambda row: row[0].lower()))
    files["reference/index.md"] = (
        "# Reference\n\nThe public names, from their docstrings. Those of `vpeft.__all__` are imported from `vpeft`:"
        " `vpeft.tune`, `vpeft.fit`. Methods are classes of `vpeft.methods`, with [pages of their own]"
        "(../methods.md).\n\n"
        f"| name | module | what it is |\n| --- | --- | --- |\n{table}\n"
    )
    return files


def _is_module(name: str) -> bool:
    return name in sys.modules


def _summary(one: Any) -> str:
    return (inspect.getdoc(one) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


# What MkDocs calls


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_REPOSITORY: dict[str, str] = {}
"""for each page of the site that is a file of the repository the path of that file"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/ and state the navigation."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(ROOT / "src"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    method_pages = _tool("method_pages")
    names = list(method_pages.own_methods())

    files.remove(next(file for file in files if file.src_uri == "README.md"))
    places = {f"docs/{file.src_uri}": file.src_uri for file in files} | ROOT_PAGES
    pages = [path for path in places if path.endswith(".md")]
    further = copied(pages, places)
    _REPOSITORY.clear()
    _REPOSITORY.update({uri: path for path, uri in (places | further).items()})
    for path, uri in (ROOT_PAGES | further).items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    reference = reference_pages()
    for uri, text in (method_pages.site_pages() | reference).items():
        files.append(File.generated(config, uri, content=text))
    listed = [places[path] for path in pages]
    config.nav = navigation(listed, names, sorted(reference, key=lambda uri: uri != "reference/index.md"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into those of the site, and leave out what has pages of its own."""
    path = _REPOSITORY.get(page.file.src_uri)
    if path is None:
        return markdown
    if path == "docs/methods.md":
        markdown = without_settings(markdown)
    methods = [uri.removeprefix("methods/").removesuffix(".md") for uri in files.src_uris if uri.startswith("methods/")]
    text = with_links_of_the_site(markdown, path, {there: uri for uri, there in _REPOSITORY.items()}, methods)
    return re.sub(r"^<!-- .*? -->\n?", "", text, flags=re.MULTILINE)


def without_settings(text: str) -> str:
    """The page of all methods without their settings, which stand on their own pages."""
    return re.sub(
        r"(?<=\n## Settings\n\n)<!-- generated: settings -->.*?<!-- end -->",
        "They stand on the page of each method.",
        text,
        flags=re.DOTALL,
    )
