"""What built pages get: reading time, descriptions, previews, terms, figures in their mode."""

import json

import pytest
from bs4 import BeautifulSoup

from tipmini_lab.book.site import finishing, inlining, previews, printing, provenance_lines
from tipmini_lab.book.site.provenance import Facts

FACTS = Facts(
    **{"title": "A book", "author": "its authors", "year": "2026", "commit": "abc"},
    **{"address": "https://a.b", "csv": {"fig-x": "x,y\n1,2\n"}},
    shown={"tab-x": {"Notebook": "notebooks/x.ipynb, cell 3"}},
)
WORD = "word " * 240
GLOSSARY = """<html><head></head><body><article class="bd-article"><h1>G</h1><dl class="glossary">
<dt id="term-rank">rank<a class="headerlink" href="#term-rank">#</a></dt><dd><p>Inner.</p></dd>
<dt id="term-TIP">TIP</dt><dd><p>A method.</p></dd></dl></article></body></html>"""
PAGE = f"""<html><head><title>x</title><link href="../_static/a.css" rel="stylesheet"></head><body>
<ul class="bd-sidenav__home-link"><li><a href="../index.html">A long title</a></li></ul>
<script src="f/fontawesome/6/js/all.min.js?digest=1"></script>
<article class="bd-article"><section><h1><span class="section-number">1. </span>Title<a
class="headerlink" href="#title">#</a></h1><p>The first sentence, of ranks. And TIPS of TIP.</p>
<div class="pst-scrollable-table-container"><table class="table" id="tab-x"><caption>
<span class="caption-number">Table 1.1 </span><span class="caption-text">A caption</span></caption>
<thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1<br/>± 2</td><td>x, y</td></tr></tbody>
</table></div><figure id="fig-x"><a href="f.svg"><img alt="What it says" src="f.svg"/></a>
<figcaption><span class="caption-number">Fig. 1.1 </span><span class="caption-text">Lines</span>
</figcaption></figure><section id="one"><h2>One</h2><p>{WORD * 10}</p><pre>{WORD}</pre></section>
<p><a class="reference internal" href="#tab-x">Table 1.1</a>
<a class="reference internal" href="../book/glossary.html#term-rank">the rank</a></p>
</section></article></body></html>"""
SVG = """<?xml version="1.0"?><svg width="72pt" height="72pt" viewBox="0 0 72 72"><metadata>m
</metadata><g id="figure_1"><path id="m1" style="stroke: #757575"/><use href="#m1"/>
<text style="fill: #2F86C1">text</text></g></svg>"""


def test_marks_of_one_style_have_it_once_and_indents_are_left_out():
    marks = '<g clip-path="url(#c)">\n  <use href="#m" x="1" style="fill: red"/>\n'
    marks += '  <use xlink:href="#m" x="2.0123" style="fill: red"/>\n</g>'
    lean = inlining.svg(f'<svg viewBox="0 0 72 72">{marks}</svg>', "", "")
    assert lean.count("fill: red") == 1 and '<g clip-path="url(#c)" style="fill: red">' in lean
    assert lean.count("<use ") == 2 and "\n " not in lean
    assert '<use href="#m" x="2.01"/>' in lean
    two = marks.replace('x="2.0123" style="fill: red"', 'x="2" style="fill: blue"')
    kept = inlining.svg(f'<svg viewBox="0 0 72 72">{two}</svg>', "", "")
    assert kept.count('style="fill') == 2


def test_what_a_bibliography_lists_are_items_of_a_list_without_icons(tmp_path):
    link = '<a class="github reference external" href="https://github.com/a/b">a/b</a>'
    item = f'<div class="citation">A {link}</div>'
    article = f'<h1>A</h1><div class="citation-list" role="list">{item}</div>'
    page = f'<html><head></head><body><article class="bd-article">{article}</article></body></html>'
    (tmp_path / "x.html").write_text(page)
    finishing.finish(tmp_path, FACTS)
    found = (tmp_path / "x.html").read_text()
    assert 'class="citation" role="listitem"' in found
    assert '<a class="reference external" href="https://github.com/a/b">a/b</a>' in found


def folded(code: str, output: str = "", tag: str = "") -> str:
    summary = "<summary><p>Show code</p><p>Hide code</p></summary>"
    inside = f'{summary}<div class="cell_input"><pre>{code} </pre></div>'
    told = f'<div class="cell_output">{output}</div>' if output else ""
    return f'<div class="cell {tag}"><details class="hide">{inside}</details>{told}</div>'


SETUP = folded("a=1", tag="tag_parameters") + folded("b=2")
FOUND = folded("found()", '<div class="found admonition"><p>Yes.</p></div>')
ALL = "Show codeHide codefound() Yes."
BLOCK = "Show the code of the setupHide the code of the setup"


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (SETUP + FOUND + folded("c=3"), f"Yes.{BLOCK}a=1 b=2 found() Show codeHide codec=3 "),
        (SETUP + folded("c=3", "three"), f"{BLOCK}a=1 b=2 Show codeHide codec=3 three"),
        (SETUP + f"<p>text</p>{FOUND}", f"{BLOCK}a=1 b=2 textShow codeHide codefound() Yes."),
        (
            SETUP + folded("c").replace("details", "div") + FOUND,
            f"{BLOCK}a=1 b=2 Show codeHide codec Show codeHide codefound() Yes.",
        ),
        (SETUP + FOUND.replace("</details>", "") + "</details>", f"{BLOCK}a=1 b=2 {ALL}"),
        (SETUP.replace("details", "div"), "Show codeHide codea=1 Show codeHide codeb=2 "),
        (FOUND + SETUP, f"Show codeHide codefound() Yes.{BLOCK}a=1 b=2 "),
        ("<p>text</p>", "text"),
    ],
)
def test_setup_is_one_folded_block_below_what_was_found(cells, read):
    soup = BeautifulSoup(f"<article><h1></h1>{cells}</article>", "html.parser")
    finishing.answer_first(soup.article)
    assert soup.article.text == read


@pytest.fixture
def book(tmp_path):
    """Two built pages, finished."""
    for name, text in {"notebooks/x.html": PAGE, "book/glossary.html": GLOSSARY}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "notebooks/f.svg").write_text(SVG)
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/a.css").write_text("p{}")
    weights = finishing.finish(tmp_path, FACTS)
    page = (tmp_path / "notebooks/x.html").read_text()
    assert weights["notebooks/x.html"] == len(page.encode()) + len("p{}")
    return tmp_path


@pytest.fixture
def page(book):
    return BeautifulSoup((book / "notebooks/x.html").read_text(), "html.parser")


def test_a_long_page_says_how_long_it_takes_and_lists_its_parts(page):
    """Code isn't read."""
    assert page.select_one(".reading-time").text == "11 min to read"
    assert page.select_one(".parts li").text == "One 11 min"
    assert (
        not page.select("script[src]") and page.select_one(".bd-sidenav__home-link").text == "Home"
    )


def test_a_link_elsewhere_shows_the_first_sentence(page):
    told = {tag["property"]: tag["content"] for tag in page.select("meta[property]")}
    assert told["og:title"] == "Title"
    assert told["og:description"] == "The first sentence, of ranks."


def test_the_line_below_says_where_a_table_comes_from_and_has_its_data(book, page):
    line = page.select_one(".pst-scrollable-table-container + details.provenance")
    assert "notebooks/x.ipynb, cell 3" in line.text and "abc" in line.text
    assert (book / "_static/data/tab-x.csv").read_text() == 'a,b\n1 ± 2,"x, y"\n'
    assert line.a["href"] == "../_static/data/tab-x.csv"
    bibtex = line.select_one("[data-form=BibTeX]")["data-text"]
    assert "title = {Table 1.1: A caption}" in bibtex and "commit abc" in bibtex
    assert "url = {https://a.b}" in bibtex
    assert (book / "_static/data/fig-x.csv").read_text() == FACTS.csv["fig-x"]


def test_previews_are_in_the_page_and_hold_neither_links_nor_labels(page):
    known = json.loads(page.select_one("#previews").text)
    assert set(known) == {
        "#tab-x",
        "../book/glossary.html#term-rank",
        "../book/glossary.html#term-TIP",
    }
    assert "± 2" in known["#tab-x"] and 'id="' not in known["#tab-x"]
    assert "Inner." in known["../book/glossary.html#term-rank"]
    assert "<a" not in known["../book/glossary.html#term-rank"]


def test_the_first_mention_of_a_term_leads_to_the_glossary(page):
    """Names as they are written, other words in the plural too; no mention inside a link."""
    assert [(a.text, a["href"]) for a in page.select("a.term")] == [
        ("ranks", "../book/glossary.html#term-rank"),
        ("TIP", "../book/glossary.html#term-TIP"),
    ]


def test_a_figure_is_a_part_of_the_page_and_its_greys_follow_the_mode(book):
    text = (book / "notebooks/x.html").read_text()
    page = BeautifulSoup(text, "html.parser")
    drawn = page.select_one("figure > svg.drawn")
    assert drawn["aria-label"] == "What it says" and drawn["role"] == "img"
    assert "width: 96px" in drawn["style"] and "metadata" not in text
    assert drawn.select_one("path")["style"] == "stroke: var(--grey-757575,#757575)"
    assert drawn.select_one("text")["style"] == "fill: #2F86C1"
    assert drawn.select_one("g").get("id") is None and drawn.select_one("path")["id"] == "m1"
    assert "--grey-757575:#" in page.style.text and "@media screen" in page.style.text


def test_the_style_sheet_keeps_the_icons_that_pages_have():
    font = '@font-face{font-family:"Font Awesome 6 Brands";src:url(fa-brands-400.woff2)}'
    sheet = '.fa-a:before{content:"1"}.fa-b:before,.fa-c:before{content:"2"}.fa{color:red}' + font
    kept = finishing.fewer_icons(sheet, '<i class="fas fa-c"></i>')
    assert kept == '.fa-b:before,.fa-c:before{content:"2"}.fa{color:red}'
    assert finishing.fewer_icons(sheet, '<i class="fab fa-a"></i>').endswith(font)


@pytest.mark.parametrize("grey", ["#000000", "#333333", "#595959", "#757575"])
def test_text_reads_in_both_modes(grey):
    """Contrast by WCAG with the theme's near-black; at least 4.5."""

    def luminance(colour: str) -> float:
        share = int(colour[1:3], 16) / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    assert (luminance(inlining.opposite(grey)) + 0.05) / (luminance("#121212") + 0.05) >= 4.5


@pytest.mark.parametrize(("colour", "grey"), [("#757575", True), ("#fff8f8", False)])
def test_colours_keep_their_meaning(colour, grey):
    assert inlining.is_grey(colour) is grey


def test_the_whole_book_in_one_page_keeps_its_links(book):
    front = '<a class="internal" href="#">Home</a><a class="internal" href="notebooks/x.html">1</a>'
    (book / "index.html").write_text(
        f'<html><head></head><body><nav class="bd-links">{front}</nav>'
        '<article class="bd-article"><p><a href="notebooks/x.html#tab-x">there</a></p></article>'
    )
    assert printing.pages(book) == ["index.html", "notebooks/x.html"]
    whole = printing.one_page(book)
    assert whole.select_one("article a")["href"] == "#notebooks-x--tab-x"
    assert whole.select("table#notebooks-x--tab-x") and not whole.select("details.provenance")
    assert whole.select_one("use")["href"] == "#notebooks-x--m1"
    assert whole.select_one(".drawn path")["id"] == "notebooks-x--m1"


def test_previews_of_other_pages_show_their_images():
    figure = BeautifulSoup('<figure id="f"><img src="../_images/a.svg"></figure>', "html.parser")
    shown = previews.preview(figure.figure, "f", "notebooks/x.html", "index.html")
    assert 'src="_images/a.svg"' in shown


def test_a_csv_has_the_cells_as_they_are_shown():
    table = BeautifulSoup("<table><tr><td>a<br>b</td><td></td></tr></table>", "html.parser").table
    assert provenance_lines.as_csv(table) == "a b,\n"
