"""Every page of the book in a real browser: a telephone in light mode, a desktop in dark mode."""

import functools
import http.server
import io
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import standins
from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright

from tipmini_lab import paths

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
BUILT = paths.BUILD / "html"
# The book that `make book` left is opened too, once there is one.
BOOKS = ["stand-in", "built"] if (BUILT / "index.html").is_file() else ["stand-in"]

MARKUP = re.compile(r"\{\{|\$\$|\{(cite|eq|numref|ref|doc|figure)\}")  # that stayed unrendered
TEXT = """() => { const page = document.querySelector("article").cloneNode(true);
  page.querySelectorAll("pre, code, mjx-container").forEach(node => node.remove());
  return page.textContent; }"""
IMAGES = """() => [...document.images].map(
  i => ({source: i.currentSrc.slice(0, 99), drawn: i.naturalWidth > 0, alt: i.alt.trim()}))"""
LINKS = """() => [...document.querySelectorAll("a[href]")].map(a => a.href.split(/[?#]/)[0])"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=BOOKS)
def html(request, tmp_path_factory) -> Path:
    """The folder of a built book."""
    if request.param == "built":
        return BUILT
    return standins.built(tmp_path_factory.getbasetemp() / "book")


@pytest.fixture
def address(html):
    """The address under which a server on this machine hands out the book."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Keep the test's output free of one line a request."""

    handler = functools.partial(Quiet, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "no chromium on this machine: run scripts/debian-packages"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Opens windows, which are closed after the test: each holds some 300 MB."""
    visitors = []

    def opened(width: int, scheme: str) -> "Visitor":
        visitors.append(Visitor(browser, width, scheme))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.page.close()


class Visitor:
    """A browser window that notes every defect of the pages it opens."""

    def __init__(self, browser, width: int, scheme: str):
        size = {"width": width, "height": 900}
        self.page: Page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.set_default_timeout(20_000)
        self.defects: list[str] = []
        self.page.route("**/*", self._stay)
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self._note(f"script error: {error}"))

    def _note(self, defect: str):
        self.defects.append(f"{self.page.url}: {defect}")

    def _stay(self, route: Route):
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            return route.continue_()
        self._note(f"asks {route.request.url}")
        return route.abort()

    def _listen(self, message):
        if message.type in ("error", "warning"):
            self._note(f"console: {message.text}")

    def open(self, url: str):
        """Go to `url` and note what every page must be: complete, typeset, readable."""
        self.page.goto(url)
        written = self.page.locator(".math").count()
        typeset = "n => document.querySelectorAll('.math mjx-container').length >= n"
        if written:
            self.page.wait_for_function(typeset, arg=written)
        if self.page.locator("mjx-merror").count():
            self._note("an equation that MathJax cannot read")
        if markup := MARKUP.search(self.page.evaluate(TEXT)):
            self._note(f"unrendered markup {markup[0]!r}")
        for image in self.page.evaluate(IMAGES):
            if not image["drawn"] or not image["alt"]:
                self._note(f"image broken or without alt text: {image}")
        for figure in self.page.locator("article figure").all():
            parts = ("img[alt], table", "figcaption")
            if not all(figure.locator(part).count() for part in parts):
                self._note("a figure without an image, a table or a caption")

    def must_fit(self):
        width = self.page.evaluate("document.documentElement.scrollWidth")
        if width > self.page.viewport_size["width"]:
            self._note(f"is {width} pixels wide")

    def must_be_dark(self):
        self._dark("the page", self.page.screenshot())
        for image in self.page.locator("article img").all():
            self._dark(image.get_attribute("alt"), image.screenshot())

    def _dark(self, what: str, picture: bytes):
        grey = Image.open(io.BytesIO(picture)).convert("L")
        inset = 3  # the picture of an element may begin a pixel beside it
        across, down = (inset, grey.width - 1 - inset), (inset, grey.height - 1 - inset)
        corners = [grey.getpixel((x, y)) for x in across for y in down]
        if max(corners) > 100:
            self._note(f"{what}: a bright corner in dark mode, {corners}")


def _pages(html: Path) -> list[str]:
    pages = [p.relative_to(html).as_posix() for p in sorted(html.rglob("*.html"))]
    return [page for page in pages if not page.startswith(("_static", "search"))]


def test_every_page_on_a_telephone(html, address, visit):
    visitor = visit(390, "light")
    for page in _pages(html):
        visitor.open(address + page)
        visitor.must_fit()
    assert visitor.defects == []


def test_every_page_on_a_desktop_in_dark_mode(html, address, visit):
    visitor = visit(1280, "dark")
    for page in _pages(html):
        visitor.open(address + page)
        visitor.must_be_dark()
    assert visitor.defects == []


def test_every_link_within_the_book_leads_to_a_file(html, address, visit):
    visitor = visit(1280, "light")
    targets = set()
    for page in _pages(html):
        visitor.page.goto(address + page, wait_until="domcontentloaded")
        targets |= set(visitor.page.evaluate(LINKS))
    inside = {t.removeprefix(address) for t in targets if t.startswith(address)}
    assert {t for t in inside if not (html / t).exists()} == set()


def test_the_search_finds_a_page(address, visit):
    visitor = visit(1280, "light")
    visitor.page.goto(address + "search.html?q=adapter")
    visitor.page.locator("ul.search li a").first.wait_for()
    assert visitor.defects == []


def test_a_table_is_sorted_by_a_column(html, address, visit):
    """By the mouse and by the keyboard, there and back; what has no value stays at the end."""
    if html == BUILT:
        pytest.skip("the numbers of the stand-in are known")
    visitor = visit(390, "light")
    visitor.open(address + "notebooks/06_ledger.html")
    table = visitor.page.locator("table.sortable").first
    order = lambda: table.locator("tbody td:first-child").all_inner_texts()  # noqa: E731
    head = table.locator("thead th").nth(1)
    assert order() == ["1", "2", "3"]
    head.get_by_role("button").click()
    assert order() == ["3", "1", "2"] and head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert order() == ["1", "3", "2"] and head.get_attribute("aria-sort") == "descending"
    assert visitor.defects == []


def test_the_book_opens_from_the_file_system(html, visit):
    visitor = visit(1280, "light")
    for page in ("index.html", "notebooks/02_dynamic_sparsity.html"):
        visitor.open((html / page).as_uri())
    assert visitor.defects == []
