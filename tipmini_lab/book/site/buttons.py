"""A Sphinx extension: the theme's buttons, where what they offer is of use; the foot of each page.

The theme thinks that every page lies in the repository where the book has it, that every source can
be read, and that Colab opens notebooks which run alone. `origin.settings` says what is known.
"""

from html import escape
from pathlib import Path

from sphinx.application import Sphinx

from tipmini_lab import paths

COLAB_BRANCH = (
    "notebooks"  # to which the workflow pushes those that run alone, in a folder a commit
)
FRONT_PAGE = "index.md", "book/index.md"  # in the book, in the repository


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; the theme adds its buttons at 501."""
    app.connect("html-page-context", _mend, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mend(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    context["theme_extra_footer"] = foot(app.config.html_context["origin"], context["pathto"])
    context["header_buttons"] = mended(
        context.get("header_buttons", []), page + context.get("page_source_suffix", "")
    )


def foot(origin: dict[str, str | None], pathto) -> str:
    """What a page says at its foot: what it was built of, and where to cite and report."""
    commit = f", commit {origin['commit']}" if origin["commit"] else ""
    about = pathto("book/about").removesuffix("#")  # what pathto says of the page itself
    links = {"cite": f"{about}#cite-this", "changes": pathto("book/changes")}
    links["report an error"] = origin["errata"] or f"{about}#errata"
    told = " · ".join(f'<a href="{escape(link)}">{name}</a>' for name, link in links.items())
    return f"<p>tipmini {escape(origin['version'] + commit)} · {told}</p>"


def mended(buttons: list[dict], file: str, repository: Path = paths.REPOSITORY) -> list[dict]:
    """The buttons of the page made of `file`, without those that would lead nowhere.

    Pages of Markdown have substitutions: their sources are read in the repository alone.
    """
    own = FRONT_PAGE[1] if file == FRONT_PAGE[0] else file
    kept = []
    for button in buttons:
        label, url = button.get("label"), button.get("url", "")
        if "buttons" in button:
            inner = mended(button["buttons"], file, repository)
            kept += [button | {"buttons": inner}] if inner else []
        elif label == "download-source-button" and not file.endswith(".ipynb"):
            continue
        elif label == "source-file-button":
            if (repository / own).is_file():
                kept.append(button | {"url": url.replace(f"/{file}?", f"/{own}?")})
        elif button.get("text") == "Colab":
            kept.append(button | {"url": of_colab(url)})
        else:
            kept.append(button)
    return kept


def of_colab(url: str) -> str:
    """The address of a notebook that runs alone: .../blob/COMMIT/notebooks/x.ipynb is another."""
    start, commit, _, name = url.rsplit("/", 3)
    return f"{start}/{COLAB_BRANCH}/{commit}/{name}"
