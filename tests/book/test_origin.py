"""Whose copy the book says it is, and that nothing on a page leads nowhere."""

import subprocess
from pathlib import Path

import pytest
from checkouts import git

from tipmini.errors import TipminiError
from tipmini_lab.book.site import about, buttons
from tipmini_lab.book.site.origin import ARCHIVED, Commit, Origin, origin, settings

CI = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "them/fork"}
CITATION = "title: tipmini\nversion: 1.2.3\nauthors:\n- name: some people\n"
COMMIT = Commit("0123456789abcdef0123456789abcdef01234567", "2026-01-02T03:04:05+00:00", False)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder that may be a copy of the project, in no repository."""
    (tmp_path / "CITATION.cff").write_text(CITATION)
    (tmp_path / ARCHIVED).write_text("$Format:%H %cI$\n")
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "cited", "address", "provider"),
    [
        ({}, "", None, None),
        ({}, "https://gitlab.com/a/b/c", "https://gitlab.com/a/b/c", "gitlab"),
        (CI, "https://gitlab.com/a/b", "https://github.com/them/fork", "github"),
        (CI | {"TIPMINI_REPOSITORY": "https://e.org/x/y.git"}, "", "https://e.org/x/y", None),
        (
            CI | {"GITHUB_SERVER_URL": "https://git.e.org"},
            "",
            "https://git.e.org/them/fork",
            "github",
        ),
        ({"GITHUB_SERVER_URL": "https://github.com"}, "", None, None),
    ],
)
def test_the_address_is_the_settings_then_the_cis_then_the_citations(
    copy, environ, cited, address, provider
):
    (copy / "CITATION.cff").write_text(f"{CITATION}repository-code: '{cited}'\n")
    known = origin(environ, copy)
    assert (known.address, known.provider, known.commit) == (address, provider, None)


@pytest.mark.parametrize("wrong", ["them/fork", "http://e.org/x/y", "https://e.org/x y/z"])
def test_what_is_no_address_is_refused(copy, wrong):
    with pytest.raises(TipminiError, match="must be as https://HOST/OWNER/NAME"):
        origin({"TIPMINI_REPOSITORY": wrong}, copy)


def test_the_commit_is_gits_or_that_of_the_packed_sources(copy):
    git(copy, "init", "-q")
    (copy / ".gitattributes").write_text(f"{ARCHIVED} export-subst\n")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "x", "--date", COMMIT.date)
    known = origin({}, copy)
    assert known.pinned == known.commit.name and "changes" not in str(known.commit)

    inside = copy / "inside"  # the packed sources, in another project's folder
    inside.mkdir()
    git(copy, "archive", "--output", "inside/packed.tar", "HEAD")
    subprocess.run(["tar", "xf", "packed.tar"], cwd=inside, check=True)
    assert origin({}, inside).commit == known.commit

    (inside / ARCHIVED).unlink()
    assert origin({}, inside).commit is None

    changed = origin({}, copy)
    assert changed.pinned is None and str(changed.commit).endswith(", with uncommitted changes")


def test_a_reader_s_own_settings_of_git_have_no_say(copy):
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "x")
    known = origin({}, copy)
    head, _, message = git(copy, "cat-file", "commit", "HEAD").partition("\n\n")
    signed = f"{head}\ngpgsig -----BEGIN PGP SIGNATURE-----\n x\n\n{message}"
    name = git(copy, "hash-object", "-t", "commit", "-w", "--stdin", given=signed).strip()
    git(copy, "reset", "--hard", "-q", name)
    git(copy, "config", "log.showSignature", "true")
    git(copy, "config", "status.showUntrackedFiles", "no")
    assert origin({}, copy).commit == known.commit._replace(name=name)
    (copy / "new").touch()
    assert origin({}, copy).commit.changed


def options(address: str | None, provider: str | None, commit: Commit | None) -> dict:
    known = Origin({"version": "1.2.3"}, address, provider, commit)
    config = {"sphinx": {"config": {"html_theme_options": {"kept": True}, "other": 1}}}
    made = settings(config, known)["sphinx"]["config"]
    assert made["other"] == 1 and made["html_context"]["origin"]["version"] == "1.2.3"
    return made["html_theme_options"]


def test_without_an_address_or_a_commit_no_button_needs_one():
    assert (
        options(None, None, COMMIT) == options("https://e.org/x/y", None, COMMIT) == {"kept": True}
    )
    unpinned = options("https://github.com/x/y", "github", COMMIT._replace(changed=True))
    assert unpinned["use_issues_button"] and unpinned["use_repository_button"]
    assert not {"use_source_button", "repository_branch", "launch_buttons"} & unpinned.keys()


def test_with_both_buttons_name_the_commit():
    made = options("https://github.com/x/y", "github", COMMIT)
    assert made["kept"] and made["use_source_button"]
    assert made["repository_branch"] == COMMIT.name
    assert {"binderhub_url", "colab_url"} <= made["launch_buttons"].keys()
    assert "colab_url" not in options("https://gitlab.com/x/y", "gitlab", COMMIT)["launch_buttons"]
    assert options("https://git.e.org/x/y", "github", COMMIT)["launch_buttons"] == {}


def button(label: str, url: str = "", text: str = "") -> dict:
    return {"label": label, "url": url, "text": text}


def test_no_button_leads_nowhere(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.md").touch()
    source, download = button("source-file-button", "c/index.md?plain=1"), "download-source-button"
    given = [{"label": "group", "buttons": [source, button(download)]}, button("fullscreen-button")]
    group, other = buttons.mended(given, "index.md", tmp_path)
    assert [b["url"] for b in group["buttons"]] == ["c/book/index.md?plain=1"]
    assert other == given[1]
    made_at_build = buttons.mended([source], "runs.md", tmp_path)
    assert made_at_build == []
    assert buttons.mended([button(download)], "notebooks/x.ipynb", tmp_path) == [button(download)]


def test_colab_opens_the_notebook_that_runs_alone():
    theirs = "https://colab/github/x/y/blob/c0ffee/notebooks/01_importance.ipynb"
    (made,) = buttons.mended([button("", theirs, "Colab")], "notebooks/01_importance.ipynb")
    assert made["url"] == "https://colab/github/x/y/blob/notebooks/c0ffee/01_importance.ipynb"


def test_the_foot_and_the_page_say_where_errors_go():
    pathto = "../{}.html".format
    told = {"version": "1.2.3", "commit": None, "errata": None}
    foot = buttons.foot(told, pathto)
    assert "tipmini 1.2.3 ·" in foot and '"../book/about.html#errata"' in foot
    foot = buttons.foot(told | {"commit": str(COMMIT), "errata": "https://e.org/issues"}, pathto)
    assert "commit 0123456789 of 2026-01-02 ·" in foot and '"https://e.org/issues"' in foot

    cited = {"title": "tipmini", "version": "1.2.3", "authors": []}
    none, there = Origin(cited), Origin(cited, "https://github.com/x/y", "github")
    assert "format-patch" in about.errata(none)
    assert about.page_values(none)["source"].startswith("from the copy that")
    assert about.page_values(there)["source"].startswith(
        "from <https://github.com/x/y> or the copy"
    )
    assert about.errata(there) == "Report it at <https://github.com/x/y/issues>."


def test_the_citation_is_bibtex_of_the_file_and_the_commit(copy):
    known = origin({"TIPMINI_REPOSITORY": "https://e.org/x/y"}, copy)._replace(commit=COMMIT)
    assert about.page_values(known)["cite"].splitlines() == [
        "```bibtex",
        "@software{tipmini,",
        "  title = {tipmini},",
        "  author = {{some people}},",
        "  version = {1.2.3},",
        "  year = {2026},",
        f"  note = {{Commit {COMMIT.name}}},",
        "  url = {https://e.org/x/y},",
        "}",
        "```",
    ]
    assert f"/commit/{COMMIT.name})" in about.build(known)
    assert "does not name its commit" in about.build(known._replace(commit=None))
