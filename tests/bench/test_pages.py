"""First paints of built pages: each page of the navigation is opened, the slowest told first."""

import pytest

from bench import pages
from tipmini.errors import TipminiError

LINK = '<nav class="bd-links"><a class="internal" href="one.html">One</a></nav>'


def test_what_is_slow_is_told_first_and_counted():
    told = pages.report({"a.html": 90.4, "b.html": 1001.0, "c.html": 1000.0}).splitlines()
    assert told[:2] == ["  1001 ms  b.html", "  1000 ms  c.html"]
    assert told[-1] == "above 1000 ms: 1 of 3 pages"


@pytest.mark.browser
def test_every_page_of_the_book_is_opened(tmp_path):
    for name in ("index.html", "one.html", "unlisted.html"):
        (tmp_path / name).write_text(f"<html><body>{LINK}<p>text</p></body></html>")
    found = pages.measure(tmp_path)
    assert list(found) == ["index.html", "one.html"] and min(found.values()) > 0


def test_without_a_book_it_says_so(tmp_path):
    with pytest.raises(TipminiError, match=r"no book in .*; run `make book` first"):
        pages.measure(tmp_path)
