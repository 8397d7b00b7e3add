"""Every page of the book in a real browser: a telephone and a desktop, in light and dark mode."""

import functools
import http.server
import io
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import standins
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from PIL import Image
from playwright.sync_api import Page, Route

from tipmini_lab import paths
from tipmini_lab.book.site import finishing

BUILT = paths.BUILD / "html"
# The book that `make book` left is opened too, once there is one.
BOOKS = ["stand-in", "built"] if (BUILT / "index.html").is_file() else ["stand-in"]

MARKUP = re.compile(r"\{\{|\$\$|\{(cite|eq|numref|ref|doc|figure)\}")  # that stayed unrendered
TEXT = """() => { const page = document.querySelector("article").cloneNode(true);
  page.querySelectorAll("pre, code, mjx-container").forEach(node => node.remove());
  return page.textContent; }"""
IMAGES = """() => [...document.images].filter(i => !i.naturalWidth || !i.alt.trim())
  .map(i => i.currentSrc.slice(0, 99))
  .concat([...document.querySelectorAll("svg.drawn")].filter(
    s => !s.getAttribute("aria-label").trim()).map(s => s.outerHTML.slice(0, 99)))"""
FIGURES = """() => [...document.querySelectorAll("article figure")].filter(
  f => !f.querySelector("img, svg.drawn, table") || !f.querySelector("figcaption")).length"""
SMALLEST = """() => Math.min(99, ...[...document.querySelectorAll("svg.drawn text")].map(t => {
  const {a, b} = t.getScreenCTM();
  return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(a, b); }))"""
COPIED = "start => navigator.clipboard.readText().then(text => text.startsWith(start))"
HEAVIEST = 1_500_000
LEGIBLE = 9  # pixels
PAINTED = """() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime"""
SCROLLING = """() => [...document.querySelectorAll(
        ".pst-scrollable-table-container, .output:has(> table)")]
    .filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => (box.querySelector("caption") || box).textContent.trim().slice(0, 60))"""
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
RULES["preload"] = False  # it would ask for the style sheets once more
TYPESET = "n => document.querySelectorAll('.math mjx-container').length >= n"

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


@pytest.fixture
def visit(browser):
    """Opens a window of a width and a scheme, which must see no defect and is closed at the end:
    each holds some 300 MB."""
    visitors = []

    def opened(width: int, scheme: str) -> "Visitor":
        visitors.append(Visitor(browser, width, scheme))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.page.close()
        assert visitor.defects == []


class Visitor:
    """A browser window that notes every defect of the pages it opens."""

    def __init__(self, browser, width: int, scheme: str):
        size = {"width": width, "height": 900}
        self.page: Page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.set_default_timeout(20_000)
        self.defects: list[str] = []
        self.page.route("**/*", self._stay)
        self.page.on("console", lambda m: self.note(m.type in ("error", "warning"), m.text))
        self.page.on("pageerror", lambda error: self.note(True, f"script error: {error}"))

    def note(self, wrong: object, defect: str):
        if wrong:
            self.defects.append(f"{self.page.url}: {defect}")

    def _stay(self, route: Route):
        away = urlsplit(route.request.url).hostname not in ("127.0.0.1", None)
        self.note(away, f"asks {route.request.url}")
        return route.abort() if away else route.continue_()

    def open(self, url: str):
        """Go to `url` and note what every page must be: complete, typeset, readable."""
        self.page.goto(url)
        if written := self.page.locator(".math").count():
            self.page.wait_for_function(TYPESET, arg=written)
        self.note(self.page.locator("mjx-merror").count(), "an equation that MathJax cannot read")
        markup = MARKUP.search(self.page.evaluate(TEXT))
        self.note(markup, f"unrendered markup {markup and markup[0]!r}")
        images = self.page.evaluate(IMAGES)
        self.note(images, f"images broken or without alt text: {images}")
        figures = self.page.evaluate(FIGURES)
        self.note(figures, f"{figures} figures without an image, a table or a caption")

    def must_fit(self):
        width = self.page.evaluate("document.documentElement.scrollWidth")
        self.note(width > self.page.viewport_size["width"], f"is {width} pixels wide")

    def must_show_tables_whole(self):
        """On a laptop; on a telephone they scroll in their boxes."""
        for caption in self.page.evaluate(SCROLLING):
            self.note(caption, f"a table that scrolls: {caption!r}")

    def must_be_legible(self):
        smallest = self.page.evaluate(SMALLEST)
        self.note(smallest < LEGIBLE, f"a figure with text of {smallest:.1f} pixels")

    def must_be_accessible(self):
        """Nothing that axe calls serious or critical, by the rules of WCAG 2.1 AA."""
        found = Axe().run(self.page, options=RULES)
        for rule in found.response["violations"]:
            told = f"axe: {rule['id']}: {rule['nodes'][0]['html'][:160]}"
            self.note(rule["impact"] in ("serious", "critical"), f"{told} ({len(rule['nodes'])})")

    def must_be_dark(self):
        pictures = {"the page": self.page.screenshot()}
        for image in self.page.locator("article svg.drawn").all():
            pictures[image.get_attribute("aria-label")] = image.screenshot()
        for what, picture in pictures.items():
            grey = Image.open(io.BytesIO(picture)).convert("L")
            # Inwards of the corners: the picture of an element may begin a pixel beside it.
            places = [(x, y) for x in (3, grey.width - 4) for y in (3, grey.height - 4)]
            bright = max(map(grey.getpixel, places))
            # A heat map reaches the corners, in colours of middle lightness; a white box is whiter.
            self.note(bright > 160, f"{what}: a bright corner in dark mode, {bright}")


def pages(html: Path) -> list[str]:
    found = [p.relative_to(html).as_posix() for p in sorted(html.rglob("*.html"))]
    return [page for page in found if not page.startswith(("_static", "search"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page(html, address, visit, width, scheme):
    """axe sees each width and each scheme once."""
    visitor = visit(width, scheme)
    for page in pages(html):
        visitor.open(address + page)
        visitor.must_fit()
        visitor.must_be_legible()
        if width > 600 and html == BUILT:  # the stand-in's tables are too wide on purpose
            visitor.must_show_tables_whole()
        if scheme == "dark":
            visitor.must_be_dark()
        if (width < 600) == (scheme == "dark"):
            visitor.must_be_accessible()


def test_every_link_within_the_book_leads_to_a_file(html):
    for page in pages(html):
        soup = BeautifulSoup((html / page).read_text(), "html.parser")
        for link in soup.select("a[href]"):
            target = unquote(urlsplit(link["href"]).path)
            inside = target and not re.match(r"\w+:", link["href"])
            assert not inside or ((html / page).parent / target).exists(), (page, link["href"])


def test_every_page_is_light_and_a_long_one_lists_its_parts(html):
    """Bytes with all that a page loads but MathJax."""
    for page in pages(html):
        assert finishing.weight(html / page) < HEAVIEST, page
        soup = BeautifulSoup((html / page).read_text(), "html.parser")
        read = int(soup.select_one(".reading-time").text.split()[0])
        assert read <= finishing.LONG or soup.select(".parts li"), page


def test_every_figure_and_table_says_where_it_comes_from_and_offers_its_data(html, address, visit):
    visitor = visit(390, "light")
    visitor.open(address + "notebooks/b_readings.html")
    page = visitor.page
    lines = page.locator("details.provenance")
    assert lines.count() == page.locator("article :is(figure, table)[id]").count() > 0
    lines.first.locator("summary").press("Enter")
    told = lines.first.inner_text()
    for fact in ("notebooks/b_readings.ipynb", "Profile", "Machine", "SHA-256"):
        assert fact in told
    with page.expect_download() as download:
        lines.first.get_by_role("link", name="Download the data").click()
    assert "," in download.value.path().read_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for form, start in (("BibTeX", "@misc{tipmini-"), ("Markdown", "| ")):
        lines.first.get_by_role("button", name=f"Copy as {form}").click()
        page.wait_for_function(COPIED, arg=start)


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("01_importance", "a.internal[href='#equation-tip-eq-1']", "mjx-container"),
        ("b_readings", "a.internal[href^='#tab-']", "table"),
        ("b_readings", "a[href*='bibliography.html#']", "text=In "),
        ("01_importance", "a.term", "dd"),
    ],
)
def test_a_link_shows_what_it_leads_to(address, visit, page, link, shown):
    """To the pointer and to the keyboard, until Escape."""
    visitor = visit(1280, "light")
    visitor.open(f"{address}notebooks/{page}.html")
    preview = visitor.page.locator("#preview")
    first = visitor.page.locator(f"article {link}").first
    first.hover()
    preview.locator(shown).first.wait_for()
    visitor.page.keyboard.press("Escape")
    preview.wait_for(state="hidden")


def test_the_search_finds_where_a_word_is_defined(address, visit):
    visitor = visit(1280, "light")
    visitor.page.goto(address + "search.html?q=Linear%2C tuned")
    first = visitor.page.locator("ul.search li a").first
    first.wait_for()
    assert first.get_attribute("href").endswith("glossary.html#term-Linear-tuned")


@pytest.mark.parametrize("html", ["stand-in"], indirect=True)  # whose numbers are known
def test_a_table_is_sorted_by_a_column(address, visit):
    """By the mouse and by the keyboard, there and back; what has no value stays at the end."""
    visitor = visit(390, "light")
    visitor.open(address + "notebooks/b_readings.html")
    table = visitor.page.locator("table.sortable").first
    order = lambda: table.locator("tbody td:first-child").all_inner_texts()  # noqa: E731
    head = table.locator("thead th").nth(1)
    assert order() == ["1", "2", "3"]
    head.get_by_role("button").click()
    assert order() == ["3", "1", "2"] and head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert order() == ["1", "3", "2"] and head.get_attribute("aria-sort") == "descending"


def test_the_book_opens_from_the_file_system(html, visit):
    visitor = visit(1280, "light")
    for page in ("index.html", "notebooks/02_dynamic_sparsity.html"):
        visitor.open((html / page).as_uri())
        print(f"{page}: first paint after {visitor.page.evaluate(PAINTED):.0f} ms")
