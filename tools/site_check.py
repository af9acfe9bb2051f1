"""Check a built site: every internal link leads to a page and a place on it, and nothing is loaded from another host.

python tools/site_check.py build/site

Links that a reader follows to another host are no fault; scripts, styles, pictures and frames from there are.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads by itself; a link with one of these relations, too.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest"}


@dataclass
class Read:
    """What stands in one page."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.read = Read()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.read.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.read.links.append(given["href"])
        if tag in _LOADED and _LOADED[tag] in given:
            self.read.loaded.append(given[_LOADED[tag]])
        if tag == "link" and _RELATIONS & set(given.get("rel", "").split()):
            self.read.loaded.append(given.get("href", ""))


def read_page(text: str) -> Read:
    """The anchors, links and loaded files of a page."""
    reader = _Reader()
    reader.feed(text)
    return reader.read


def _elsewhere(target: str) -> bool:
    return bool(urlsplit(target).netloc)


def faults(site: Path) -> list[str]:
    """A sentence for each link that leads nowhere and each file that would be loaded from another host."""
    pages = {path.relative_to(site).as_posix(): path for path in sorted(site.rglob("*.html"))}
    read = {name: read_page(path.read_text(encoding="utf-8")) for name, path in pages.items()}
    found = []
    for name, page in read.items():
        if name == "404.html":  # its links are those of the root, wherever it is shown
            continue
        found += [f"{name} loads {target}" for target in page.loaded if _elsewhere(target)]
        for target in dict.fromkeys([*page.links, *page.loaded]):
            if urlsplit(target).scheme or _elsewhere(target):
                continue
            path, anchor = unquote(urlsplit(target).path), unquote(urlsplit(target).fragment)
            there = (pages[name].parent / path).resolve() if path else pages[name].resolve()
            if there.is_dir():
                there = there / "index.html"
            if not there.is_relative_to(site.resolve()) or not there.is_file():
                found.append(f"{name} links to {target}, which is not there")
                continue
            to = read.get(there.relative_to(site.resolve()).as_posix())
            if anchor and to is not None and anchor not in to.anchors:
                found.append(f"{name} links to {target}, and there is no such place on that page")
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import", path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site).as_posix()} loads {target or 'another file'}")
    return found


def run(arguments: list[str]) -> int:
    """Print the faults; their number."""
    site = Path(arguments[0])
    found = faults(site)
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages: every link leads somewhere.")
    return len(found)


if __name__ == "__main__":
    sys.exit(1 if run(sys.argv[1:]) else 0)
