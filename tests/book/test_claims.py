"""The claims audit: its files, its verdicts, its refusals and its page, for every paper."""

import dataclasses
import inspect
import json
import re
import shutil
import sys
import types

import numpy as np
import pytest
import yaml
from claimed import found

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import staging
from tipmini_lab.book.claims import Claim, Verdict, checks, declared, page
from tipmini_lab.book.claims.checks import CHECKS, Evidence, together
from tipmini_lab.commands import main
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.store import Cell

PAPERS = declared()
CLAIMS = [claim for paper in PAPERS.values() for claim in paper.claims]
FIRST, SECOND = CLAIMS[0].id, CLAIMS[1].id
HANGUL = re.compile("[가-힣]")
each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)


# The files ----------------------------------------------------------------------------------------


def test_every_declared_verdict_is_the_computed_one(audited):
    page.refuse_changed(list(audited.values()))


def test_ids_titles_and_cite_keys():
    assert PAPERS.keys() == {file.stem for file in paths.CLAIMS.glob("*.yaml")}
    titles = [claim.title for claim in CLAIMS]
    assert len(set(titles)) == len(titles)
    known = (paths.BOOK / "references.bib").read_text()
    assert all(f"{{{paper.cite}," in known for paper in PAPERS.values())


def test_every_check_is_of_use():
    """A check that no claim names is not kept. And of what is measured none takes the printed
    number, which may be a share that is pruned, or a number of bits."""
    checks.modules()
    here = [inspect.signature(check).parameters for check, _ in CHECKS["here"].values()]
    assert not any("printed" in parameters for parameters in here)
    parts = [part for claim in CLAIMS for part in (claim.in_print, claim.here)]
    for part in parts:
        parts += [*part.all_of, *part.both_of]
    assert {p.check for p in parts if p.check} == CHECKS["in_print"].keys() | CHECKS["here"].keys()


@each_claim
def test_form_of_a_claim(claim):
    assert bool(HANGUL.search(claim.quote)) == (claim.english is not None)
    assert not HANGUL.search(f"{claim.english} {claim.title}")
    assert claim.quote == " ".join(claim.quote.split()) or "  " in claim.quote
    digits = f"{claim.printed:g}" if isinstance(claim.printed, float) else claim.printed
    assert claim.printed is None or digits in claim.quote


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the files in their place."""
    copy = shutil.copytree(paths.CLAIMS, tmp_path / "claims")
    for function in (declared, page.audit, page.page_values):
        others = function.__defaults__[1:]
        monkeypatch.setattr(function, "__defaults__", (copy, *others))
    return copy


def change(folder, edit) -> None:
    """Edit TIP's file; anchors are written out."""
    content = json.loads(json.dumps(yaml.safe_load((folder / "tip.yaml").read_text())))
    edit(content)
    (folder / "tip.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def first(**fields):
    return lambda content: content["claims"][0].update(fields)


def check(**fields):
    return first(in_print={"verdict": "holds"} | fields)


PAIR = {"higher": ["tip"], "lower": ["dare"]}
TEXTS = {"shown": "-", "words": "-"}
WRONG = [
    (first(verdict="holds"), "claims.0.verdict: Extra inputs are not permitted"),
    (check(check="above", verdict="perhaps"), "claims.0.in_print.verdict: Input should"),
    (check(check="above", all_of=[{"check": "above"}]), "give one of check, all_of and both_of"),
    (check(), "give one of check, all_of and both_of"),
    (check(words="It does."), "or words alone for: another setting here; no"),
    (first(id="Not An Id"), "claims.0.id: String should match"),
    (first(id=SECOND), f"claim '{SECOND}' stands there twice"),
    (first(id="lora-x"), "claim 'lora-x' does not begin with tip-"),
    (first(section="appendix"), "no section 'appendix'"),
    (first(quote=""), "claims.0.quote: "),
    (lambda content: content.update(claims=[]), "claims: "),
    (lambda content: content.update(about="{{ nothing }}"), "no value is given for 'nothing'"),
    (check(check="abov"), f"claim {FIRST}, in_print: check 'abov' is not one of "),
    (check(check="above"), "above: missing a required argument: 'higher'"),
    (check(check="above", arguments=PAIR | {"than": 1}), "got an unexpected keyword argument"),
    (
        check(check="above", arguments=PAIR, equals=3),
        "above judges by itself, and takes no 'equals'",
    ),
    (check(check="numbers_of_the_table", number="x"), "'x' is not one of its numbers: tasks"),
    (check(check="numbers_of_the_table", shown="{x}", number="tasks"), "'x' is not one of its"),
    (check(check="numbers_of_the_table", **TEXTS, number="same"), "give equals, above or below"),
]


@pytest.mark.parametrize(("edit", "said"), WRONG)
def test_a_file_that_is_not_valid_is_one_line(folder, evidence, monkeypatch, edit, said):
    monkeypatch.setattr(page, "refuse_changed", lambda audited: None)
    change(folder, edit)
    with pytest.raises(TipminiError) as refusal:
        page.page_values(evidence=evidence)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping_is_one_line(folder, text):
    (folder / "new.yaml").write_text(text)
    with pytest.raises(TipminiError) as refusal:
        declared()
    assert "new.yaml" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_new_paper_is_a_file(folder, evidence):
    """No other file changes: the page, the command and the checks find it."""
    content = yaml.safe_load((folder / "tip.yaml").read_text())
    claim = content["claims"][0] | {"id": "new-claim", "title": "New"}
    head = {
        "name": "New",
        "place": len(PAPERS) + 1,
        "about": "{{ count }} of it",
        "claims": [claim],
    }
    new = content | head | {"recomputed": ""}
    (folder / "new.yaml").write_text(yaml.safe_dump(new, allow_unicode=True))
    values = page.page_values(evidence=evidence)
    assert values["claims_listed"].endswith(", and [New](claims-new), 1 claims")
    assert "(claims-new)=\n## New\n\n1 of it\n\n" in values["claims_of_papers"]
    assert values["claims_of_papers"].count("::::{admonition}") == len(CLAIMS) + 1


# A number is judged -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "printed", "asked", "verdict"),
    [
        (5.0, 5.0, {}, "holds"),
        (5.0, 4.9, {}, "does not hold"),
        (5.0, 5.1, {"tolerance": 0.1}, "holds"),
        (5.0, 5.2, {"tolerance": 0.1}, "does not hold"),
        (5.0, None, {"equals": 5}, "holds"),
        (("c4",), None, {"equals": ["c4"]}, "holds"),
        ([4.0, 5.0], 5.0, {}, "holds"),
        (8.0, 7.0, {}, "holds in points, not relative"),  # what it may be instead
        (5.0, None, {"above": 5}, "does not hold"),
        (5.1, None, {"above": 5}, "holds"),
        (5.0, None, {"below": 5, "otherwise": "not run"}, "not run"),
        (4.9, None, {"below": 5, "agreed": "setting, not tested"}, "setting, not tested"),
        (np.True_, 3.0, {}, "holds"),
        (False, 3.0, {}, "does not hold"),
    ],
)
def test_a_number_is_as_asked(monkeypatch, value, printed, asked, verdict):
    def made_up(evidence):
        return {"value": value, "instead": ([7.0], Verdict.IN_POINTS), "name": "it"}

    monkeypatch.setitem(CHECKS["in_print"], "made_up", (made_up, CHECKS["in_print"]["gain"][1]))
    texts = {"shown": "{value} is", "words": "{name}."}
    told = found(None, "made_up", "in_print", printed, **asked, **texts)
    assert told == (verdict, f"{value} is", "it.")


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two checks are called paired"):
        checks.here(types.FunctionType(checks.title.__code__, {}, "paired"))


NOT, CONTRARY = "not supported at this scale", "the contrary at this scale"


@pytest.mark.parametrize(
    ("verdicts", "verdict", "none_failing"),
    [
        (["holds", "holds"], "holds", "holds"),
        (["holds", "holds in part"], "holds in part", "holds in part"),
        (["holds", NOT], "holds in part", NOT),
        (["holds", CONTRARY], "holds in part", NOT),
        (["holds in part", CONTRARY], "holds in part", NOT),
        ([NOT, CONTRARY], NOT, NOT),
        ([CONTRARY] * 2, CONTRARY, CONTRARY),
        (["holds", "not run"], "not run", "not run"),
        (["same setting here", "another setting here"], *["another setting here"] * 2),
        (["holds", "same setting here"], "holds", "holds"),
    ],
)
def test_a_sentence_of_several_parts(verdicts, verdict, none_failing):
    given = [Verdict(one) for one in verdicts]
    assert together(given) == verdict
    assert together(given, none_failing=True) == none_failing


# Cells of merges ----------------------------------------------------------------------------------


def cells(**wrong: int) -> Evidence:
    """Cells of 20 rows, of which so many are wrong: the first, or where negative the last."""
    facts = {"key": "", "inputs": {}, "code": {}, "profile": "full", "metric": "acc"}
    facts |= {"dtype": "float32", "seconds": 0, "date": "", "machine": {}, "versions": {}}
    made = {}
    for method, count in wrong.items():
        values = [0.0] * abs(count) + [1.0] * (20 - abs(count))
        values = values[::-1] if count < 0 else values
        made[method, "rte"] = Cell(**facts, task="rte", method=method, values=values)
    return Evidence({}, {"splits": {"rte": {"rows": 20}}}, load_profile("full"), made)


@pytest.mark.parametrize(
    ("wrong", "options", "verdict"),
    [
        ({"tip": 0, "linear": 20}, {}, Verdict.HOLDS),
        ({"tip": 20, "linear": 0}, {}, Verdict.CONTRARY),
        ({"tip": 10, "linear": -10}, {}, Verdict.NOT_SUPPORTED),
        ({"tip": 0, "linear": 3}, {}, Verdict.NOT_SUPPORTED),  # p is 0.25
        ({"tip": 0, "linear": 6}, {}, Verdict.HOLDS),  # p is 0.03
        ({"tip": 0, "linear": 6, "dare": 0}, {}, Verdict.NOT_SUPPORTED),  # of two comparisons
        ({"tip": 0, "linear": 20, "dare": 0}, {}, Verdict.IN_PART),
        ({"tip": 0, "linear": 20, "dare": 0}, {"some": True}, Verdict.HOLDS),
        ({"tip": 0, "linear": 20}, {"lower": ["linear", "static"]}, Verdict.NOT_RUN),
    ],
)
def test_cells_are_compared_row_by_row(wrong, options, verdict):
    asked = {"higher": ["tip"], "lower": [*wrong][1:], "tasks": ["rte"]} | options
    told = found(cells(**wrong), "paired", arguments=asked)
    assert told.verdict == verdict and (verdict != Verdict.NOT_RUN or "static" in told.words)


@pytest.mark.parametrize(("rows", "verdict"), [(20, "same setting"), (19, "another setting")])
def test_rows_are_official_where_none_is_missing(rows, verdict):
    made = cells(tip=0)
    made.cells["tip", "rte"].values[rows:] = []
    assert found(made, "rows_are_official").verdict == f"{verdict} here"


# A verdict that changed ---------------------------------------------------------------------------

LINE = (
    f"claim {FIRST}, in print: declared 'does not hold', computed 'holds in part'; "
    "where that is right, declare it in claims/tip.yaml"
)


@pytest.mark.parametrize("command", [["claims"], ["claims", "--json"], ["publish", "nowhere"]])
def test_a_wrong_declared_verdict_fails_in_one_line(folder, evidence, monkeypatch, capsys, command):
    monkeypatch.setattr(page, "gathered", lambda: evidence)
    change(folder, lambda content: content["claims"][0]["in_print"].update(verdict="does not hold"))
    built = []
    monkeypatch.setattr(staging, "stage", lambda *given: built.append(given))
    monkeypatch.setattr(staging, "build", lambda *given: built.append(given))
    monkeypatch.setattr(sys, "argv", ["tipmini", *command])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 2 and built == []
    assert capsys.readouterr().err == f"tipmini: {LINE}\n"


def test_a_cell_that_changes_a_verdict_fails_too(evidence):
    """A control whose cells are gone leaves its claim without its declared verdict."""
    fewer = {place: cell for place, cell in evidence.cells.items() if place[0] != "tip.static"}
    assert len(fewer) < len(evidence.cells)
    with pytest.raises(TipminiError, match=r"tip-dynamic-above-static, .* computed 'not run'"):
        page.page_values(evidence=dataclasses.replace(evidence, cells=fewer))


# The page -----------------------------------------------------------------------------------------


def test_every_claim_and_verdict_is_on_the_page(evidence, audited):
    shown = (paths.BOOK / "claims.md").read_text()
    values = page.page_values(evidence=evidence)
    assert set(values) == set(staging.VALUE.findall(shown))
    assert all(f"\n| *{verdict.value}* | " in shown for verdict in Verdict)
    text = values["claims_of_papers"]
    parts = re.split(r"^\(claims-\w+\)=$", text, flags=re.M)[1:]
    for part, (name, paper) in zip(parts, PAPERS.items(), strict=True):
        assert (
            f"[{paper.name}](claims-{name}), {len(paper.claims)} claims" in values["claims_listed"]
        )
        ids = [claim.id for claim in paper.claims]
        assert re.findall(r"^:name: claim-(.*)$", part, re.M) == ids
        assert re.findall(r"^\| .*\]\(claim-(.*)\) \|.*$", part, re.M)[: len(ids)] == ids
        rows = re.findall(r"^\| \*.*\* \| (\S+) \| (\S+) \|$", part, re.M)
        for column in zip(*rows, strict=True):
            assert sum(int(count) for count in column if count != "-") == len(ids)
    for claim in CLAIMS:
        block = text[text.index(f":name: claim-{claim.id}\n") :].partition("\n::::")[0]
        quote = page.plain(claim.quote)
        assert block.count(f'<span lang="{"ko" if claim.english else "en"}">{quote}</span>') == 1
        assert ("\n*" in block) == (claim.english is not None)
        assert f"**{audited[claim.id].here.verdict.value}**" in block


@pytest.mark.parametrize(("text", "shown"), [("a_b [2] $x$", r"a\_b \[2\] \$x\$"), ("<", "&lt;")])
def test_a_quote_is_no_markup(text, shown):
    assert page.plain(text) == shown


def test_the_command_lists_all(evidence, capsys, monkeypatch):
    monkeypatch.setattr(page, "gathered", lambda: evidence)
    told = {}
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["tipmini", "claims", *options])
        with pytest.raises(SystemExit) as stopped:
            main.main()
        assert stopped.value.code == 0
        told[bool(options)] = capsys.readouterr().out
    facts, lines = json.loads(told[True]), told[False].splitlines()
    assert [each["id"] for each in facts] == [claim.id for claim in CLAIMS]
    assert set(facts[0]) == {*Claim.model_fields, "paper"}
    assert facts[0]["in_print"]["declared"] == facts[0]["in_print"]["verdict"]
    heads = [lines.index(f"{p.title}: {len(p.claims)} claims") for p in PAPERS.values()]
    starts = [next(i for i, t in enumerate(lines) if t.startswith(f"{c.id} ")) for c in CLAIMS]
    assert starts == sorted(starts) and heads == sorted(heads) and heads[0] < starts[0]
