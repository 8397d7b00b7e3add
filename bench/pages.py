"""How long each page of the built book takes to its first paint, opened from disk in Chromium.

`python -m bench.pages` prints it; nothing is stored.
"""

import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import BrowserContext, sync_playwright

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.site import printing

REPEATS = 3
SLOW = 1000  # milliseconds; longer than this is worth a look
PAINTED = """() => new Promise(done => {
  const told = list => list.getEntriesByName("first-contentful-paint")
    .forEach(paint => done(paint.startTime));
  new PerformanceObserver(told).observe({type: "paint", buffered: true});
})"""


def measure(html: Path) -> dict[str, float]:
    """{page: milliseconds to its first contentful paint}: medians of `REPEATS` visits.

    Each visit is a tab of its own, after one of the front page, which warms the browser up. Raises
    TipminiError where there is no book, or no Chromium.
    """
    names = printing.pages(html) if (html / "index.html").is_file() else []
    if not names:
        raise TipminiError(f"pages: no book in {html}; run `make book` first")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=printing.chromium("pages"), args=printing.FLAGS
        )
        _painted(browser, html / names[0])
        found = {
            name: statistics.median(_painted(browser, html / name) for _ in range(REPEATS))
            for name in names
        }
        browser.close()
    return found


def _painted(browser: BrowserContext, page: Path) -> float:
    tab = browser.new_page()
    tab.goto(page.resolve().as_uri())
    taken = tab.evaluate(PAINTED)
    tab.close()
    return taken


def report(found: dict[str, float]) -> str:
    """A line a page, the slowest first, and how many are slow."""
    lines = [f"{taken:6.0f} ms  {name}" for name, taken in sorted(found.items(), key=_slowest)]
    slow = sum(taken > SLOW for taken in found.values())
    return "\n".join([*lines, f"above {SLOW} ms: {slow} of {len(found)} pages"])


def _slowest(one: tuple[str, float]) -> float:
    return -one[1]


if __name__ == "__main__":
    print(report(measure(paths.BUILD / "html")))
