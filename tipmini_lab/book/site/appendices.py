"""A Sphinx extension: appendices, notebooks/LETTER_name, are lettered and not numbered.

Sphinx counts them on behind the last chapter; here the first part of each of their numbers, in
headings, figures, tables and equations, becomes the letter of the file.
"""

import re
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

APPENDIX = re.compile(r"notebooks/([a-z])_")


def letter(document: str) -> str | None:
    """Of an appendix; None of another page."""
    match = APPENDIX.match(document)
    return match and match[1].upper()


def assign(app: "Sphinx", env: "BuildEnvironment") -> list[str]:
    """Once Sphinx's own collector has counted: the letters, wherever it put its numbers."""
    for document, sections in env.toc_secnumbers.items():
        if not (own := letter(document)):
            continue
        for place, number in sections.items():
            sections[place] = _lettered(own, number)
        named = [*env.tocs[document].findall(nodes.reference), env.titles[document]]
        for node in named:
            if number := node.get("secnumber"):
                node["secnumber"] = list(_lettered(own, number))
        for numbers in env.toc_fignumbers.get(document, {}).values():
            for place, number in numbers.items():
                numbers[place] = _lettered(own, number)
    return []


def _lettered(own: str, number: tuple | list | None) -> tuple | None:
    return (own, *number[1:]) if number else number


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("env-get-updated", assign, priority=900)  # behind the collector's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
