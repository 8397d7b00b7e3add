"""What the built pages get that Sphinx doesn't make: the last step of a build.

Each page is parsed once and changed by one function a subject. All that they add stands in the page
itself or in a file beside it, so that the book reads from a folder, offline.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup, Tag

from tipmini_lab.book.site import inlining, previews, provenance_lines
from tipmini_lab.book.site.provenance import Facts

WORDS_A_MINUTE = 220
LONG = 10  # minutes; a longer page begins with a list of its parts
# The theme's icons are drawn by its style sheet; the script of 1.5 MB would draw them again. Its
# hint to load icon fonts early is an error in the console of a book opened as a file.
NEEDLESS = re.compile(
    r'<script src="[^"]*fontawesome[^"]*all\.min\.js[^"]*"></script>\n?'
    r'|<link rel="preload" as="font"[^>]*>\n?'
)
SENTENCE = re.compile(r".+?[.!?:](?=\s|$)", re.DOTALL)
UNREAD = "pre, script, style, details, svg, .headerlink, .eqno, .reading-time, .parts"
BRANDS = re.compile(r"\bfab fa-git(?:hub|lab)\b")  # a font of 0.1 MB for one button
SHORTENED = "a.reference.github, a.reference.gitlab"  # links that the theme gives the same font
ICONS = re.compile(r"((?:\.fa-[\w-]+:+before,?)+)\{content:[^}]*\}")  # of the icons' style sheet
FONT = re.compile(r"@font-face\{[^}]*Font ?Awesome[^}]*\}")
URL = re.compile(r"url\(['\"]?([^'\")]+)")
# What a page loads later or not at all: MathJax, which a page without equations doesn't need, and
# the fonts' older format.
UNLOADED = ("mathjax/", ".ttf")


def finish(html: Path, facts: Facts) -> dict[str, int]:
    """Change every page below `html`; {page: bytes that it is and loads, without MathJax}."""
    pages = {page.relative_to(html).as_posix(): page for page in sorted(html.rglob("*.html"))}
    texts = {name: NEEDLESS.sub("", page.read_text()) for name, page in pages.items()}
    texts = {name: BRANDS.sub("fas fa-code-branch", text) for name, text in texts.items()}
    for name, page in pages.items():
        page.write_text(texts[name])
    pages = {
        name: page for name, page in pages.items() if '<article class="bd-article' in texts[name]
    }
    for sheet in html.glob("_static/vendor/fontawesome/*/css/all.min.css"):
        sheet.write_text(fewer_icons(sheet.read_text(), "".join(texts.values())))
    soups = {name: BeautifulSoup(texts[name], "html.parser") for name in pages}
    targets = previews.targets(soups)
    for name, soup in soups.items():
        article = soup.select_one("article.bd-article")
        read = minutes(article)
        name_home(soup)
        if not soup.select(".bd-toc-nav"):  # or the theme looks for what every link names
            soup.body.attrs.pop("data-bs-spy", None)
        describe(soup, article)
        scrollable(article)
        for citation in article.select('[role="list"] > .citation'):
            citation["role"] = "listitem"  # a list's children, to a screen reader
        for link in article.select(SHORTENED):  # else an icon of the brand stands before it
            link["class"] = ["reference", "external"]
        provenance_lines.add(soup, name, html, facts)
        if article.h1:
            say_how_long(soup, article, read)
        answer_first(article)
        if name != previews.GLOSSARY:
            previews.link_terms(soup, article, name, targets)
        previews.add(soup, name, targets)
    for name, page in pages.items():
        page.write_text(inlining.inlined(soups[name], page))
    return {name: weight(page) for name, page in pages.items()}


def fewer_icons(sheet: str, pages: str) -> str:
    """The style sheet of the icons with those that the pages have: ten of two thousand."""
    used = set(re.findall(r"\bfa-[\w-]+", pages))
    brands = bool({"fa-brands"} & used or re.search(r'class="[^"]*\bfab\b', pages))
    sheet = ICONS.sub(lambda m: m[0] if used & set(re.findall(r"fa-[\w-]+", m[1])) else "", sheet)
    return FONT.sub(lambda m: m[0] if brands or "brands" not in m[0] else "", sheet)


def name_home(soup: BeautifulSoup) -> None:
    """The navigation's first link, which Sphinx calls by the front page's long title."""
    for link in soup.select(".bd-sidenav__home-link a"):
        link.string = "Home"


def minutes(part: Tag) -> float:
    """How long the words of a part take to read, tables included, code and what is folded not."""
    apart = {id(word) for unread in part.select(UNREAD) for word in unread.find_all(string=True)}
    texts = [str(text) for text in part.find_all(string=True) if id(text) not in apart]
    return len(" ".join(texts).split()) / WORDS_A_MINUTE


def say_how_long(soup: BeautifulSoup, article: Tag, read: float) -> None:
    """Below the title; on a long page with its parts, and how long each takes."""
    line = soup.new_tag("p", attrs={"class": "reading-time"})
    line.string = f"{_told(read)} to read"
    article.h1.insert_after(line)
    sections = article.select("section > section > h2")
    if read <= LONG or not sections:
        return
    parts = soup.new_tag("nav", attrs={"class": "parts", "aria-label": "Parts of this page"})
    listing = soup.new_tag("ol")
    parts.append(listing)
    for head in sections:
        item, link = soup.new_tag("li"), soup.new_tag("a", href=f"#{head.parent['id']}")
        link.string = " ".join(_plain(head).split())
        item.extend([link, f" {_told(minutes(head.parent))}"])
        listing.append(item)
    line.insert_after(parts)


def _told(read: float) -> str:
    return f"{max(1, round(read))} min"


def _plain(part: Tag) -> str:
    """The text of a heading or a paragraph, without its number and its link to itself."""
    apart = {id(t) for own in part.select(".headerlink, .section-number") for t in own.strings}
    return "".join(text for text in part.strings if id(text) not in apart).strip()


def answer_first(article: Tag) -> None:
    """The code of a notebook's setup is one folded block, below what the chapter found."""
    cells: list[Tag] = []
    after = article.select_one(".cell.tag_parameters")
    while _is_folded(after) and not after.select(".cell_output"):
        cells.append(after)
        after = after.find_next_sibling()
    if not cells:
        return
    found = _is_folded(after) and after.select_one(".cell > .cell_output .admonition.found")
    blocks = [cell.select_one("details.hide") for cell in [*cells, *([after] if found else ())]]
    summary = blocks[0].summary
    summary.attrs.pop("aria-label", None)  # it would be read in place of these words
    for label, word in zip(summary.select("p"), ("Show", "Hide"), strict=True):
        label.string = f"{word} the code of the setup"
    for block in blocks[1:]:
        blocks[0].append(block.select_one(".cell_input").extract())
        block.decompose()
    for cell in cells[1:]:
        cell.decompose()
    if found:
        after.insert_after(cells[0].extract())


def _is_folded(part: Tag | None) -> bool:
    """Whether it is a cell whose code is folded, and its output, if any, not."""
    is_cell = part is not None and "cell" in part.get("class", ())
    return is_cell and len(part.select("details.hide > .cell_input")) == 1


def describe(soup: BeautifulSoup, article: Tag) -> None:
    """What a link to the page shows elsewhere: its title and its first sentence."""
    first = next(filter(_is_prose, article.select("p")), None)
    text = " ".join(_plain(first).split()) if first else ""
    sentence = match[0] if (match := SENTENCE.match(text)) else text
    title = _plain(article.h1) if article.h1 else soup.title.text
    facts = {"og:type": "article", "og:title": title, "og:description": sentence}
    for name, content in facts.items():
        soup.head.append(soup.new_tag("meta", attrs={"property": name, "content": content}))
    described = {"name": "description", "content": sentence}
    soup.head.append(soup.new_tag("meta", attrs=described))


def _is_prose(paragraph: Tag) -> bool:
    inside = paragraph.find_parent(["table", "figure", "details"])
    return inside is None and not {"admonition-title", "reading-time"} & {
        *paragraph.get("class", ())
    }


def scrollable(article: Tag) -> None:
    """What may scroll sideways can be reached by the keyboard, and says what it is."""
    for box in article.select(".pst-scrollable-table-container, div.math, div.output > table"):
        box = box.parent if box.name == "table" else box
        caption = box.select_one("caption .caption-text")
        label = caption.text if caption else "Equation" if "math" in box["class"] else "Table"
        box.attrs |= {"tabindex": "0", "role": "group", "aria-label": " ".join(label.split())}
    for code in article.select("div.highlight > pre"):
        code["tabindex"] = "0"


def weight(page: Path) -> int:
    """Bytes of a page and of all that it loads from beside it, but `UNLOADED`."""
    soup = BeautifulSoup(page.read_text(), "html.parser")
    named = [tag.get("src") for tag in soup.select("script[src], img[src]")]
    named += [tag["href"] for tag in soup.select('link[rel="stylesheet"], link[rel="icon"]')]
    files = {page, *(_beside(page, name) for name in named)}
    for sheet in [file for file in files if file.suffix == ".css" and file.is_file()]:
        files |= {_beside(sheet, name) for name in URL.findall(sheet.read_text())}
    counted = [f for f in files if f.is_file() and not any(u in f.as_posix() for u in UNLOADED)]
    return sum(file.stat().st_size for file in counted)


def _beside(page: Path, address: str) -> Path:
    return (page.parent / urlsplit(address).path).resolve()
