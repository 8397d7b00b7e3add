"""The whole book as one PDF: its pages one after another in one file, which Chromium prints."""

import posixpath
import re
import shutil
import subprocess
import tempfile
import unicodedata
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader
from pypdf.errors import PdfReadError

from tipmini.errors import TipminiError
from tipmini.models.files import one_line

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PRINTED = ["--no-pdf-header-footer", "--generate-pdf-document-outline"]
PATIENCE = 600_000  # milliseconds of the page's own clock, for its equations
ENDING = 20  # letters at the book's end by which a whole print is known
UNPRINTED = "details.provenance, details.hide, .headerlink, .parts, script, .tooltip"
REFERS = re.compile(r"url\(#([^)]+)\)")


def pdf(html: Path, out: Path) -> None:
    """Print the book in the folder `html` to the file `out`.

    Raises TipminiError where no browser is found, there is no book, or not all of it was printed.
    """
    browser = chromium("pdf")
    if not (html / "index.html").is_file():
        raise TipminiError(f"pdf: no book in {html}; run `tipmini book` first")
    page = html / "whole-book.html"  # in the folder, so that addresses beside it hold
    whole = one_page(html)
    page.write_text(str(whole))
    try:
        with tempfile.TemporaryDirectory() as folder:
            printed = Path(folder) / "book.pdf"
            command = [browser, *FLAGS, *PRINTED, f"--user-data-dir={folder}/profile"]
            command += [f"--virtual-time-budget={PATIENCE}", f"--print-to-pdf={printed}"]
            run = subprocess.run([*command, page.resolve().as_uri()], capture_output=True)
            if run.returncode or not printed.is_file():
                raise TipminiError(f"pdf: {browser} wrote no file (exit {run.returncode})")
            refuse_unfinished(printed, whole.body.get_text())
            shutil.move(printed, out)
    finally:
        page.unlink()


def chromium(command: str) -> str:
    """The path of a browser that prints and opens pages; TipminiError where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise TipminiError(f"{command}: no Chromium on this machine; install it, then try again")
    return browser


def refuse_unfinished(file: Path, text: str) -> None:
    """Raise TipminiError unless a file is a PDF whose last page ends as the text does."""
    try:
        last = PdfReader(file).pages[-1].extract_text()
    except (PdfReadError, IndexError) as error:
        raise TipminiError(f"pdf: the file is no PDF: {one_line(error)}") from None
    if _letters(text)[-ENDING:] not in _letters(last):
        raise TipminiError("pdf: the file ends before the book does; print it again")


def _letters(text: str) -> str:
    """Without what print spaces, breaks and joins in another way."""
    return "".join(filter(str.isalpha, unicodedata.normalize("NFKC", text)))


def one_page(html: Path) -> BeautifulSoup:
    """All pages of the book in the order of its contents, each link to where its target now is."""
    order = pages(html)
    soups = {name: BeautifulSoup((html / name).read_text(), "html.parser") for name in order}
    whole = BeautifulSoup(
        "<!DOCTYPE html><html lang='en' data-theme='light'></html>", "html.parser"
    )
    whole.html.extend([_head(soups), whole.new_tag("body", attrs={"class": "whole-book"})])
    body = whole.html.body
    for name, soup in soups.items():
        chapter = whole.new_tag("article", attrs={"class": "bd-article", "id": _anchor(name)})
        chapter.extend(list(soup.select_one("article.bd-article").children))
        body.append(moved(chapter, name, order))
    return whole


def pages(html: Path) -> list[str]:
    """The front page and what its navigation lists, in its order."""
    front = BeautifulSoup((html / "index.html").read_text(), "html.parser")
    links = [link["href"].partition("#")[0] for link in front.select("nav.bd-links a.internal")]
    return list(dict.fromkeys(["index.html", *(link for link in links if link)]))


def _head(soups: dict[str, BeautifulSoup]) -> Tag:
    """Of a page that has equations, its addresses as from the book's folder."""
    name, soup = next(
        (each for each in soups.items() if each[1].select("script[src*=mathjax]")),
        next(iter(soups.items())),
    )
    head = soup.head
    for part in head.select("[href], [src]"):
        for attribute in {"href", "src"} & part.attrs.keys():
            part[attribute] = _beside(name, part[attribute])
    kept = "mathjax", "MathJax"
    for script in head.select("script"):
        if not any(word in f"{script.get('src')}{script.string}" for word in kept):
            script.decompose()
    for style in head.select("style"):
        style.decompose()
    return head


def moved(chapter: Tag, name: str, order: list[str]) -> Tag:
    """A page's article with labels and addresses that hold in the whole book."""
    for part in chapter.select(UNPRINTED):
        part.decompose()
    for part in chapter.select("[id]"):
        part["id"] = f"{_anchor(name)}--{part['id']}"
    for part in chapter.select("svg.drawn *"):
        for attribute, value in part.attrs.items():
            if attribute != "id" and isinstance(value, str):
                value = REFERS.sub(rf"url(#{_anchor(name)}--\1)", value)
                part[attribute] = f"#{_anchor(name)}--{value[1:]}" if value[:1] == "#" else value
    for image in chapter.select("img[src]"):
        image["src"] = _beside(name, image["src"])
    for link in chapter.select("a[href]"):
        page, _, label = _beside(name, link["href"]).partition("#")
        if page in order:
            link["href"] = f"#{_anchor(page)}--{label}" if label else f"#{_anchor(page)}"
    return chapter


def _beside(name: str, address: str) -> str:
    """An address on the page `name`, as from the book's folder."""
    if re.match(r"[a-z]+:", address):
        return address
    page, mark, label = address.partition("#")
    page = posixpath.normpath(posixpath.join(posixpath.dirname(name), page)) if page else name
    return f"{page}{mark}{label}"


def _anchor(name: str) -> str:
    return name.removesuffix(".html").replace("/", "-")
