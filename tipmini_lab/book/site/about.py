"""What the page about the book names as {{ value }}: how to cite it, what it was built of."""

from tipmini_lab.book.site.origin import Origin, origin


def page_values(known: Origin | None = None) -> dict[str, str]:
    """Markdown for every {{ name }} of book/about.md."""
    known = known or origin()
    given = "the copy that the environment variable `TIPMINI_SOURCE` names, an address or a folder"
    source = f"from <{known.address}> or {given}" if known.address else f"from {given}"
    cite = f"```bibtex\n{bibtex(known)}\n```"
    return {"cite": cite, "build": build(known), "errata": errata(known), "source": source}


def bibtex(known: Origin) -> str:
    """CITATION.cff as BibTeX, with the commit: another has other numbers."""
    facts, commit = known.citation, known.commit
    fields = {
        "title": facts["title"],
        "author": " and ".join(_name(author) for author in facts["authors"]),
        "version": facts["version"],
        "year": commit and commit.date[:4],
        "note": commit and f"Commit {commit.name}",
        "doi": facts.get("doi"),
        "url": known.address,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@software{{{facts['title']},", *lines, "}"])


def _name(author: dict[str, str]) -> str:
    """A person's, or one in braces, which BibTeX leaves whole."""
    if "name" in author:
        return f"{{{author['name']}}}"
    return f"{author['family-names']}, {author['given-names']}"


def build(known: Origin) -> str:
    """Version and commit, with the day of the commit."""
    commit = known.commit
    if commit is None:
        return f"Version {known.citation['version']}, of a copy that does not name its commit."
    named = f"[{commit}]({known.address}/commit/{commit.name})" if known.address else str(commit)
    return f"Version {known.citation['version']}, commit {named}."


def errata(known: Origin) -> str:
    """Where an error is reported."""
    if known.issues:
        return f"Report it at <{known.issues}>."
    return (
        "This copy was built without a repository's address: tell those from whom you have it, or "
        "send them the change itself, as `git format-patch` writes it into a file."
    )
