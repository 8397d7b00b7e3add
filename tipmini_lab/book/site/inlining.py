"""Figures as a part of their page: text is text, and greys follow the page's light or dark mode.

Colours tell methods apart and are the same in both modes. Greys, of text and axes, are variables:
as drawn in light mode and on paper, of the opposite lightness in dark mode.
"""

import colorsys
import html
import re
from pathlib import Path

from bs4 import BeautifulSoup

COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)
# Ids that matplotlib counts up in every figure; two figures of a page would share them.
COUNTED = re.compile(r' id="(?:[a-z_]*\d*[a-z]+_\d+|\w+axis_\d+)"')
SIZE = re.compile(r'<svg[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', re.DOTALL)
PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
HEAD = re.compile(r"<svg[^>]*>", re.DOTALL)
INDENT = re.compile(r"\n\s+")
# Marks that follow one another in a group: each repeats the style that the group can have.
MARKS = re.compile(r"<g( [^>]*)?>\s*((?:<use [^>]*/>\s*){2,})</g>")
PLACE = re.compile(r'( [xy]="-?\d+\.\d\d)\d+')  # of a mark; a hundredth of a point is enough
STYLE = re.compile(r' style="[^"]*"')
BROAD = 0.02  # saturation, as a share of lightness, above which a colour is none of the greys
LIGHTEST = 0.93  # of what black turns into


def inlined(soup: BeautifulSoup, page: Path) -> str:
    """The page's text with the SVG files of its figures in their places."""
    drawn: dict[str, str] = {}
    greys: set[str] = set()
    for image in soup.select('article img[src$=".svg"]'):
        file = page.parent / image["src"]
        picture = file.read_text()
        if not SIZE.search(picture):
            continue
        name = f"inlined-figure-{len(drawn)}"
        drawn[name] = svg(picture, image.get("alt", ""), image.get("style", ""))
        greys |= set(COLOUR.findall(drawn[name]))
        place = soup.new_tag(name)
        link = image.parent
        (link if link.name == "a" and not link.text.strip() else image).replace_with(place)
    greys = {colour for colour in greys if is_grey(colour)}
    if greys:
        style = soup.new_tag("style")
        turned = "".join(f"{_variable(g)}:{opposite(g)};" for g in sorted(greys))
        style.string = f'@media screen{{html[data-theme="dark"]{{{turned}}}}}'
        soup.head.append(style)
    text = str(soup)
    for name, picture in drawn.items():
        picture = COLOUR.sub(lambda m: _var(m[0]) if m[0] in greys else m[0], picture)
        text = text.replace(f"<{name}></{name}>", picture)
    return text


def svg(picture: str, alt: str, style: str) -> str:
    """An SVG file's text as an element of a page, with a description and its own width."""
    width, _ = SIZE.search(picture).groups()
    box = SIZE.search(picture)
    wide = style or f"width: {float(width) * 4 / 3:.0f}px"  # points to pixels
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" '
        f'class="drawn" viewBox="0 0 {box[1]} {box[2]}" role="img" '
        f'aria-label="{html.escape(alt)}" style="{wide}">'
    )
    bare = METADATA.sub("", PROLOGUE.sub("", picture, count=1))
    lean = MARKS.sub(_of_one_style, INDENT.sub("\n", bare))
    lean = PLACE.sub(r"\1", lean).replace("xlink:href", "href")
    return COUNTED.sub("", HEAD.sub(head, lean, count=1))


def _of_one_style(marks: re.Match) -> str:
    """A group of marks with their style on the group, where all have the same."""
    own, uses = marks[1] or "", marks[2]
    styles = set(STYLE.findall(uses))
    if len(styles) != 1 or uses.count(" style=") != uses.count("<use ") or "style=" in own:
        return marks[0]
    return f"<g{own}{styles.pop()}>{STYLE.sub('', uses)}</g>"


def _var(colour: str) -> str:
    return f"var({_variable(colour)},{colour})"


def _variable(colour: str) -> str:
    return f"--grey-{colour[1:].lower()}"


def is_grey(colour: str) -> bool:
    red, green, blue = _parts(colour)
    return max(red, green, blue) - min(red, green, blue) <= BROAD


def opposite(colour: str) -> str:
    """A grey of the opposite lightness."""
    lightness = colorsys.rgb_to_hls(*_parts(colour))[1]
    turned = round(255 * LIGHTEST * (1 - lightness) + 255 * (1 - LIGHTEST) * lightness)
    return f"#{turned:02x}{turned:02x}{turned:02x}"


def _parts(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
