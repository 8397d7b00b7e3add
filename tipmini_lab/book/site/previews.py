"""What a link shows before it is followed, and links from words to the glossary.

A page holds the previews of its own links as JSON; `previews.js` shows them.
"""

import copy
import json
import posixpath
import re
from collections.abc import Mapping

from bs4 import BeautifulSoup, NavigableString, Tag

GLOSSARY = "book/glossary.html"
ROWS = 6  # of a table
# What a preview is made of, by what has the label that a link leads to.
SHOWN = "div.math[id], figure[id], table[id], div.citation[id], dl.glossary dt[id]"

# Where a word isn't a link: nor on a card, which is one as a whole.
UNLINKED = re.compile(r"^(table|figcaption|nav|details|a)$")

Targets = Mapping[tuple[str, str], Tag]  # (page, label): what stands there


def targets(soups: Mapping[str, BeautifulSoup]) -> Targets:
    """Of all pages, before anything is changed."""
    found = {}
    for name, soup in soups.items():
        for shown in soup.select("article")[0].select(SHOWN):
            found[name, shown["id"]] = copy.copy(shown.parent if shown.name == "dt" else shown)
    return found


def add(soup: BeautifulSoup, name: str, known: Targets) -> None:
    """The previews of the page's links, by their addresses as they stand there."""
    found = {}
    for link in soup.select("article a.internal[href*='#']"):
        if "headerlink" in link.get("class", ()) or link["href"] in found:
            continue
        page, _, label = link["href"].partition("#")
        page = posixpath.normpath(posixpath.join(posixpath.dirname(name), page)) if page else name
        if shown := known.get((page, label)):
            found[link["href"]] = preview(shown, label, page, name)
    if found:
        script = soup.new_tag("script", attrs={"type": "application/json", "id": "previews"})
        script.string = json.dumps(found, ensure_ascii=False).replace("</", "<\\/")
        soup.body.append(script)


def preview(shown: Tag, label: str, page: str, name: str) -> str:
    """What a link from the page `name` shows of a target on `page`: no ids, no links."""
    shown = copy.copy(shown)
    if "glossary" in shown.get("class", ()):
        term = shown.find("dt", id=label)
        shown = BeautifulSoup(f"<dl>{term}{term.find_next_sibling('dd')}</dl>", "html.parser").dl
    for row in shown.select("tbody tr")[ROWS:]:
        row.decompose()
    for link in shown.select(".headerlink, .label"):
        link.decompose()
    for link in shown.select("a"):
        link.unwrap()
    for image in shown.select("img"):
        away = posixpath.join(posixpath.dirname(page), image["src"])
        image["src"] = posixpath.relpath(away, posixpath.dirname(name) or ".")
    for part in (shown, *shown.select("[id], [tabindex]")):
        for attribute in ("id", "tabindex", "role", "aria-label"):
            part.attrs.pop(attribute, None)
    return str(shown)


# Words of the glossary ----------------------------------------------------------------------------


def link_terms(soup: BeautifulSoup, article: Tag, name: str, known: Targets) -> None:
    """The first mention of each term in a page's paragraphs leads to its definition."""
    address = posixpath.relpath(GLOSSARY, posixpath.dirname(name) or ".")
    terms = {
        label: _pattern(shown, label)
        for (page, label), shown in known.items()
        if page == GLOSSARY and shown.name == "dl"
    }
    for paragraph in article.select("p, li"):
        if paragraph.find_parent(UNLINKED) or paragraph.find_parent(class_="sd-card"):
            continue
        for text in paragraph.find_all(string=True, recursive=False):
            _link(soup, text, terms, address)


def _pattern(glossary: Tag, label: str) -> re.Pattern:
    """A term as it is written, plural or not; at the start of a sentence too if it is no name."""
    term = " ".join(glossary.find("dt", id=label).find(string=True).split())
    flags = 0 if term != term.lower() else re.IGNORECASE
    return re.compile(rf"(?<![\w-]){re.escape(term)}(?:e?s)?(?![\w-])", flags)


def _link(
    soup: BeautifulSoup, text: NavigableString, terms: dict[str, re.Pattern], address: str
) -> None:
    """Links the first term that a text mentions, then those in what follows it."""
    found = {label: match for label, term in terms.items() if (match := term.search(text))}
    if not found:
        return
    # The earliest; of two that begin there, the longer.
    label, match = min(found.items(), key=lambda one: (one[1].start(), -len(one[1][0])))
    del terms[label]
    attrs = {"class": "reference internal term", "href": f"{address}#{label}"}
    link = soup.new_tag("a", attrs=attrs)
    link.string = match[0]
    before, after = text[: match.start()], NavigableString(text[match.end() :])
    text.replace_with(NavigableString(before), link, after)
    _link(soup, after, terms, address)
