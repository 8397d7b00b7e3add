"""The folded line below each figure and table of a built page: where it comes from, its data."""

import csv
import io
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from tipmini_lab.book.site.provenance import Facts

DATA = "_static/data"
NAMED = "article figure[id], article table[id]"


def add(soup: BeautifulSoup, name: str, html: Path, facts: Facts) -> None:
    """Below everything that has a label; its data go into the folder `DATA` of the book."""
    for shown in soup.select(NAMED):
        number = shown.select_one(".caption-number")
        if number is None:
            continue
        label = shown["id"]
        text = as_csv(shown) if shown.name == "table" else _plotted(shown, facts)
        address = ""
        if text:
            file = html / DATA / f"{label}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            address = "../" * name.count("/") + f"{DATA}/{label}.csv"
        box = shown.parent if shown.name == "table" else shown
        box.insert_after(line(soup, shown, name, address, facts))


def _plotted(figure: Tag, facts: Facts) -> str:
    """Of a notebook's figure by its label, of a page's by its file."""
    image = figure.select_one("img[src]")
    named = Path(image["src"]).stem if image else ""
    return facts.csv.get(figure["id"], facts.csv.get(named, ""))


def line(soup: BeautifulSoup, shown: Tag, name: str, data: str, facts: Facts) -> Tag:
    """Of one figure or table of the page `name`; data: the address of its CSV, if it has one."""
    label, number = shown["id"], shown.select_one(".caption-number").text.strip()
    caption = " ".join(shown.select_one(".caption-text").text.split())
    told = facts.shown.get(label) or {"Page": name.removesuffix(".html")}
    told = told | ({"Commit": facts.commit} if facts.commit else {})

    box = soup.new_tag("details", attrs={"class": "provenance"})
    summary = soup.new_tag("summary")
    summary.string = f"Where {number} comes from"
    listing = soup.new_tag("dl")
    for what, text in told.items():
        term, words = soup.new_tag("dt"), soup.new_tag("dd")
        term.string, words.string = what, text
        listing.extend([term, words])
    links = soup.new_tag("p")
    if data:
        link = soup.new_tag("a", href=data, download=f"{label}.csv")
        link.string = "Download the data (CSV)"
        links.append(link)
    texts = {
        "BibTeX": bibtex(label, f"{number}: {caption}", facts),
        "Markdown": markdown(f"{number}: {caption}", facts),
    }
    for form, text in texts.items():
        attrs = {"type": "button", "class": "copied", "data-form": form, "data-text": text}
        button = soup.new_tag("button", attrs=attrs)
        button.string = f"Copy as {form}"
        links.append(button)
    box.extend([summary, listing, links])
    return box


def bibtex(label: str, title: str, facts: Facts) -> str:
    fields = {"title": title, "author": f"{{{facts.author}}}", "year": facts.year}
    commit = f", commit {facts.commit}" if facts.commit else ""
    fields["note"] = f"In: {facts.title}{commit}"
    if facts.address:
        fields["url"] = facts.address
    lines = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
    return f"@misc{{tipmini-{label},\n{lines}}}"


def markdown(title: str, facts: Facts) -> str:
    commit = f"commit {facts.commit}" if facts.commit else ""
    source = ", ".join(filter(None, [facts.title, commit, facts.address]))
    return f"*{title}* ({source})"


def as_csv(table: Tag) -> str:
    """The cells of a table as they are shown, a line break as a space."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in table.select("tr"):
        cells = row.find_all(["th", "td"], recursive=False)
        writer.writerow([" ".join(cell.get_text(" ").split()) for cell in cells])
    return out.getvalue()
