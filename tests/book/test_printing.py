"""The printed book: refused unless it is whole."""

import contextlib
import io
import os

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from tipmini.errors import TipminiError
from tipmini_lab.book.site import printing


def printed(*pages: str) -> bytes:
    """A PDF with a line of text a page."""
    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})
    fonts = DictionaryObject({NameObject("/F"): font})
    for text in pages:
        page, content = writer.add_blank_page(width=400, height=100), DecodedStreamObject()
        content.set_data(f"BT /F 9 Tf 10 50 Td ({text}) Tj ET".encode())
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        page[NameObject("/Contents")] = content
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (printed("The first page.", "The book ends  here, and nowhere else: 1."), None),
        (printed("The book ends here, and nowhere else.", "1"), "ends before the book does"),
        (printed("The book ends"), "ends before the book does"),
        (printed(), "no PDF"),
        (b"<html>The book ends here, and nowhere else.</html>", "no PDF"),
        (b"", "no PDF"),
    ],
)
def test_a_print_that_is_not_whole_is_refused(tmp_path, content, told):
    file = tmp_path / "book.pdf"
    file.write_bytes(content)
    refused = pytest.raises(TipminiError, match=told) if told else contextlib.nullcontext()
    with refused as error:
        printing.refuse_unfinished(file, "Much before. The book ends here, and nowhere else.")
    assert not told or "\n" not in str(error.value)


def test_an_unfinished_print_leaves_the_last_one(monkeypatch, tmp_path):
    """A browser that says that all went well, and wrote nothing into its file."""
    page = '<html><head></head><body><article class="bd-article">All of it</article></body></html>'
    (tmp_path / "index.html").write_text(page)
    browser, out = tmp_path / "chromium", tmp_path / "book.pdf"
    write = 'case "$a" in --print-to-pdf=*) : > "${a#*=}";; esac'
    browser.write_text(f"#!/bin/sh\nfor a; do {write}; done\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    out.write_text("the last one")
    with pytest.raises(TipminiError, match="no PDF"):
        printing.pdf(tmp_path, out)
    assert out.read_text() == "the last one" and not (tmp_path / "whole-book.html").exists()
