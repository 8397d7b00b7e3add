"""How a notebook shows its figures, tables and functions, in Jupyter and in the book alike."""

import hashlib
import inspect
import io
import re
import textwrap
from collections.abc import Callable

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

CLIP = re.compile(r'(id="|url\(#)(p[0-9a-f]{10})\b')
POSITION = re.compile(r"(?<!scale\()-?\d+\.\d{6}\b")


def svg(figure: Figure) -> str:
    """The figure as transparent SVG text, the same at every run: no date, no random ids."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tipmini", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _named_clips(_rounded(buffer.getvalue()))


def _rounded(picture: str) -> str:
    """Positions to a thousandth of a point: a layout's last digits may differ by run.

    They are moved by 3e-6 first, since eighths of a point lie where rounding changes.
    """
    return POSITION.sub(lambda m: f"{float(m[0]) + 3e-6:z.3f}", picture)


def _named_clips(picture: str) -> str:
    """Ids of clip paths by their order and the rest of the picture.

    matplotlib makes them of unrounded positions (see `_rounded`).
    """
    order = {name: n for n, name in enumerate(dict.fromkeys(m[2] for m in CLIP.finditer(picture)))}
    bare = CLIP.sub(lambda m: f"{m[1]}{order[m[2]]}", picture)
    own = hashlib.sha256(bare.encode()).hexdigest()[:10]
    return CLIP.sub(lambda m: f"{m[1]}{own}-{order[m[2]]}", picture)


def figure(figure: Figure) -> None:
    """Show a figure once, as SVG. Figures here never enter pyplot, so none is left to close."""
    from IPython.display import SVG, display

    display(SVG(svg(figure)))


def table(frame: pd.DataFrame) -> None:
    """Show a frame as an HTML table; in the book it scrolls in its own box."""
    from IPython.display import HTML, display

    display(HTML(frame.to_html(border=0)))


def numbered(
    frame: pd.DataFrame, caption: str, *, name: str, note: str = "", sortable: bool = False
) -> None:
    """Show a frame as a captioned table that pages refer to by `name`, with a note below.

    sortable: in the book a click on a column's head orders the rows by it. The book needs
    `mystnb: {markdown_format: myst}` in the cell's metadata.
    """
    options = f":name: {name}\n" + (":class: sortable\n" if sortable else "")
    text(f":::{{table}} {caption}\n{options}\n{markdown_table(frame)}\n\n:::\n\n{note}\n")


def markdown_table(frame: pd.DataFrame) -> str:
    """The frame with its index as a Markdown table; cells are shown by `str`."""
    head = [frame.index.name or "", *frame.columns]
    rows = [[index, *row] for index, row in zip(frame.index, frame.to_numpy(object), strict=True)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|")


def text(markdown: str) -> None:
    """Show computed Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))


def source(*functions: Callable) -> None:
    """Show the very functions that are called, as highlighted code."""
    listing = "\n\n".join(textwrap.dedent(inspect.getsource(f)).strip() for f in functions)
    text(f"```python\n{listing}\n```")
