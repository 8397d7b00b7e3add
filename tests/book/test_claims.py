"""The claims audit: its files, its verdicts, its refusals and its page, for every paper."""

import dataclasses
import inspect
import itertools
import json
import re
import shutil
import sys
import types

import numpy as np
import pytest
import yaml
from claimed import found
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.claims import Claim, Verdict, checks, choices, declared, page
from tipmini_lab.book.claims.checks import CHECKS, Evidence, Finding
from tipmini_lab.book.claims.choices import CHOICES, DECLARED
from tipmini_lab.book.site import staging
from tipmini_lab.commands import main
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import Pair, compare
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
    asked = {one.check for claim in CLAIMS for one in (claim.in_print, claim.here)} - {None}
    assert asked == CHECKS["in_print"].keys() | CHECKS["here"].keys()
    takes = [inspect.signature(c).parameters for own in CHECKS.values() for c, _ in own.values()]
    assert CHOICES.keys() <= {name for parameters in takes for name in parameters}


@each_claim
def test_form_of_a_claim(claim):
    assert bool(HANGUL.search(claim.quote)) == (claim.english is not None)
    assert not HANGUL.search(f"{claim.english} {claim.title}")
    assert claim.quote == " ".join(claim.quote.split()) or "  " in claim.quote
    digits = f"{claim.printed:g}" if isinstance(claim.printed, float) else claim.printed
    assert claim.printed is None or digits in claim.quote


@each_claim
def test_a_claim_is_one_claim(claim):
    """Of a sentence on several things each has a claim; brackets hold what is another claim's."""
    own = re.sub(r"\[.*?\]", "", (claim.english or claim.quote).replace("\n", " "))
    one = "(memory|computation|storage|efficiency|accuracy|performance)"
    assert not re.search(rf"\b{one} and {one}\b", " ".join(own.split()))


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
    kept = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)  # so are readings, in order
    (folder / "tip.yaml").write_text(kept)


def first(**fields):
    return lambda content: content["claims"][0].update(fields)


def check(**fields):
    return first(in_print={"verdict": "holds"} | fields)


PAIR = {"higher": ["tip"], "lower": ["dare"]}
TEXTS = {"shown": "-", "words": "-"}
WRONG = [
    (first(verdict="holds"), "claims.0.verdict: Extra inputs are not permitted"),
    (check(check="above", verdict="perhaps"), "claims.0.in_print.verdict: Input should"),
    (check(check="above", between=["holds", "not run"]), "give two verdicts or more in between"),
    (check(), "give a check"),
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


THRESHOLDS = {"within": 10, "greatly": 0.5, "beyond": 0.5, "unlike": 0.1, "times": 1}


@each_claim
def test_thresholds_are_those_that_the_page_gives_in_words(claim):
    """A tenth, half, halfway, a tenth, the weights' own bytes: book/claims.md."""
    for name in THRESHOLDS.keys() & claim.here.arguments.keys():
        assert claim.here.arguments[name] == THRESHOLDS[name]


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
    assert told[:3] == (verdict, f"{value} is", "it.")


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two checks are called paired"):
        checks.here(types.FunctionType(checks.title.__code__, {}, "paired"))


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


def test_seeds_of_one_contender_are_one_comparison():
    """The mean of their rows: here each seed has other rows wrong, and two of three have a row."""
    known = cells(
        tip=0, **{"x.random-s0": 10, "x.random-s1": 10, "x.random-s2": -10, "x.random": 0}
    )
    del known.cells["x.random", "rte"]
    assert known.cell("x.random", "rte").values == [1 / 3] * 10 + [2 / 3] * 10
    asked = {"higher": ["tip"], "lower": ["x.random"], "tasks": ["rte"]}
    told = found(known, "paired", arguments=asked)
    assert told.recomputed == "significantly for it 1, against it 0, neither 0"
    known.sizes.update({"tip": 2.0, "x.random-s0": 1.0, "x.random-s1": 0.5})
    words = found(known, "paired", arguments=asked, words="{words} So.").words
    assert "norm 2.00 and 0.75 (mean of seeds) times that of the exact sum" in words
    assert words.endswith(". So.")


def test_a_size_is_that_of_the_cell():
    """A name that is stored itself stands for one seed, in its cells and in its norm."""
    known = cells(tip=0)
    known.sizes.update({"dare": 7.5, "dare-s1": 7.0, "x-s0": 1.0, "x-s1": 0.5})
    assert (known.size("dare"), known.size("x"), known.size("none")) == (7.5, 0.75, None)


def test_a_mean_can_be_clear_where_no_task_is():
    """On each task 4 of 20 rows more are right, p = .125; over both tasks 8 of 8, p = .008."""
    made = cells(tip=0)
    own = made.cells["tip", "rte"]
    higher = [1.0] * 4 + [0.5] * 16
    for task in ("rte", "piqa"):
        told = {"tip": higher, "linear": [0.5] * 20}
        made.cells |= {
            (name, task): own.model_copy(update={"method": name, "task": task, "values": values})
            for name, values in told.items()
        }
    asked = {"tasks": ["rte", "piqa"], "higher": ["tip"], "lower": ["linear"]}
    assert read(made, **asked).readings == {DECLARED: NOT, "p values not corrected": NOT}
    chapters = compare(wide(made.cells), [Pair("tip", "linear", ("rte", "piqa"))]).iloc[0]
    assert chapters.verdict == "better" and chapters.p < 0.02
    told = read(made, **asked, mean=True)
    assert told.readings == {DECLARED: HOLDS, "task by task": NOT, "p values not corrected": HOLDS}
    assert told.compared == (("tip", "linear", "mean"),)
    assert told.words.startswith("TIP − Linear is +10.0 points, significantly for the sentence")
    asked |= {"higher": ["linear"], "lower": ["tip"]}
    assert read(made, **asked, mean=True).readings[DECLARED] is Verdict.CONTRARY


def test_a_claim_that_asks_what_the_chapters_ask_has_their_result():
    """Another question beside it keeps its own correction; another way round has the same p."""
    made = cells(tip=0, linear=20, dare=20)
    asked = {"higher": ["tip"], "lower": ["linear", "dare"], "tasks": ["rte"], "mean": True}
    assert read(made, **asked).verdict is HOLDS
    made.answers[Pair("tip", "linear", ("rte",))] = {"corrected": 0.2}
    told = read(made, **asked)
    assert told.readings[DECLARED] is IN_PART
    assert told.readings["p values not corrected"] is HOLDS
    assert read(made, **asked | {"mean": False}).verdict is HOLDS
    made.answers[Pair("tip", "dare", ("rte", "piqa"))] = {"corrected": 0.2}  # another question
    assert read(made, **asked).readings[DECLARED] is IN_PART


# Other choices ------------------------------------------------------------------------------------

NOT, HOLDS, IN_PART = Verdict.NOT_SUPPORTED, Verdict.HOLDS, Verdict.IN_PART


def read(known: Evidence, forms: dict | None = None, **arguments) -> Finding:
    """A claim on cells of RTE, read in every admissible way."""
    own = {"check": "paired", "arguments": {"tasks": ["rte"]} | arguments, "verdict": "holds"}
    noted = {"words": "no number", "verdict": "no printed number"}
    head = {"id": "a-claim", "section": "here", "title": "It", "quote": "It holds."}
    return checks.run(Claim(**head, in_print=noted, here=own), "here", known, forms or {})


def test_a_verdict_that_another_choice_changes_depends_on_the_reading():
    """Of two comparisons one has p = 0.03, which the correction takes away."""
    told = read(cells(tip=0, linear=6, dare=0), higher=["tip"], lower=["linear", "dare"])
    assert told.verdict is Verdict.DEPENDS and told.between == (NOT, IN_PART)
    assert told.readings == {DECLARED: NOT, "p values not corrected": IN_PART}
    line = "*not supported at this scale*: as declared. *holds in part*: p values not corrected."
    assert page.sensitivity(told) == line
    assert page.told(told) == f"depends on the reading: {NOT}, {IN_PART}"
    sure = read(cells(tip=0, linear=20), higher=["tip"], lower=["linear"])
    assert sure.verdict is HOLDS and sure.between == ()
    assert page.sensitivity(sure) == "No other choice changes it: p values not corrected."


def test_every_form_of_a_contender_is_a_reading_and_none_a_vote():
    """A form that is not stored is no reading; a contender's control changes along with it."""
    known = cells(tip=0, dare=20, cat=0, **{"cat.static": 20})
    forms = {"exact": {"dare": "cat"}, "another": {"dare": "none"}, "of no use": {"linear": "cat"}}
    told = read(known, forms, higher=["tip"], lower=["dare"])
    assert told.readings == {DECLARED: HOLDS, "exact": NOT, "p values not corrected": HOLDS}
    told = read(known, {"exact": {"tip": "cat"}}, higher=["cat.static"], lower=["tip"])
    assert "exact" in told.readings and told.readings["exact"] is Verdict.CONTRARY
    assert checks.run.__defaults__ == ({},)
    changed = list(
        choices.readings(checks.paired, {"lower": ["tip.x"]}, known, {"a": {"tip": "b"}})
    )
    assert changed[0] == ("a", {"lower": ["b.x"]})


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("tasks", ["rte", "piqa"], []),  # of two none is left out
        ("tasks", ["rte", "piqa", "boolq"], [["piqa", "boolq"], ["rte", "boolq"], ["rte", "piqa"]]),
        ("greatly", 0.5, [0.25, 0.75]),
        ("greatly", 0, []),
        ("within", 10, [5, 15]),
        ("mask", 8, [16, 1]),
        ("kept", ["a", "b"], [["a"], ["b"]]),
        ("tuned", [True], []),
        ("tuned", [True, False], [[True], [False]]),
        ("shares", [0.1, 0.2, 0.5], [[0.2, 0.5], [0.1, 0.5], [0.1, 0.2]]),
        (
            "against",
            ["magnitude", "wanda", "taylor"],
            [["wanda", "taylor"], ["magnitude", "taylor"], ["magnitude", "wanda"]],
        ),
        ("of", ["lora-guided", 0.5, True], []),  # a model, no list of criteria
        ("untuned", None, []),
        ("untuned", False, [True]),
        ("longer", False, [True]),
    ],
)
def test_what_else_an_argument_might_be(name, own, others):
    checks.modules()
    assert list(CHOICES[name](own, cells(tip=0)).values()) == others


def test_two_choices_of_one_argument_are_refused():
    with pytest.raises(ValueError, match="two choices of tasks"):
        choices.choice("tasks")(lambda own, known: {})


# No two claims say opposite things ----------------------------------------------------------------

CONFIRMED = {Verdict.HOLDS, Verdict.AT_HAND, Verdict.IN_POINTS}
REFUTED = {Verdict.DOES_NOT_HOLD, Verdict.CONTRARY}


def opposed(one: Finding, two: Finding) -> bool:
    """Whether findings on the same cells say opposite things, in any reading that both have.

    On the same comparisons one may not be confirmed and the other refuted. Of comparisons turned
    round, what refutes one supports the other, and what confirms one does not.
    """
    turned = {(low, high, where) for high, low, where in two.compared}
    pairs = [(one.readings or {"": one.verdict}, two.readings or {"": two.verdict})]
    pairs = [(a[name], b[name]) for a, b in pairs for name in a.keys() & b.keys()]
    pairs += [(b, a) for a, b in pairs]
    if one.compared and set(one.compared) == set(two.compared):
        return any(a in CONFIRMED and b in REFUTED for a, b in pairs)
    if one.compared and set(one.compared) == turned:
        supported = CONFIRMED | {Verdict.IN_PART}
        return any(
            (a in REFUTED and b not in supported) or (a in CONFIRMED and b in supported)
            for a, b in pairs
        )
    return False


def test_no_two_claims_say_opposite_things_of_the_same_cells(audited):
    for level in ("in_print", "here"):
        found = {name: getattr(each, level) for name, each in audited.items()}
        compared = {name: one for name, one in found.items() if one.compared}
        pairs = itertools.combinations(compared.items(), 2)
        assert [(a, b) for (a, one), (b, two) in pairs if opposed(one, two)] == []
        assert len(compared) > 5


PLACE, TURNED = ("tip", "single", "rte"), ("single", "tip", "rte")


@pytest.mark.parametrize(
    ("first", "second", "turned", "wrong"),
    [
        ("does not hold", "within the sampling error", True, True),
        ("within the sampling error", "within the sampling error", True, False),
        ("the contrary at this scale", "holds in part", True, False),
        ("holds", "does not hold", True, False),
        ("holds", "holds", True, True),
        ("holds", "the contrary at this scale", False, True),
        ("holds", "not supported at this scale", False, False),
    ],
)
def test_opposite_verdicts_are_noticed(first, second, turned, wrong):
    one = Finding(Verdict(first), "", "", (PLACE,))
    two = Finding(Verdict(second), "", "", (TURNED if turned else PLACE,))
    assert opposed(one, two) == opposed(two, one) == wrong
    depends = Finding(Verdict.DEPENDS, "", "", (PLACE,), {DECLARED: Verdict(first), "other": NOT})
    told = {DECLARED: Verdict(second), "more": Verdict.HOLDS}
    assert opposed(depends, two._replace(verdict=Verdict.DEPENDS, readings=told)) == wrong


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
    with pytest.raises(TipminiError, match=r"tip-static-ignores, .* computed 'not run'"):
        page.page_values(evidence=dataclasses.replace(evidence, cells=fewer))


# The page -----------------------------------------------------------------------------------------


def test_every_claim_and_verdict_is_on_the_page(evidence, audited):
    shown = (paths.BOOK / "claims.md").read_text()
    values = page.page_values(evidence=evidence)
    known = {*values, "verdicts_told"}  # which is of the picture beside them
    assert known == set(page.VALUE.findall(shown))
    assert all(f"\n| *{verdict.value}* | " in shown for verdict in Verdict)
    read = {
        getattr(each.claim, level).check
        for each in audited.values()
        for level in page.LEVELS
        if getattr(each, level).readings
    }
    assert {check for check in read if f"`{check}`" not in shown} == set()
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
        assert ("\nHere, otherwise read\n: " in block) == bool(audited[claim.id].here.readings)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b [2] 5$", r"a\_b \[2\] 5\$"),
        ("<", "&lt;"),
        ("a_b $x_1^{2}$ {c}", r"a\_b $x_1^{2}$ \{c\}"),
        ("**bold** text", "bold text"),
    ],
)
def test_a_quote_is_no_markup_but_formulas(text, shown):
    assert page.plain(text) == shown


@each_claim
def test_a_quote_shows_neither_dollars_nor_stars(claim):
    parser = MarkdownIt().use(dollarmath_plugin)
    tokens = parser.parseInline(page.plain(claim.quote))[0].children
    kinds = {token.type for token in tokens}
    assert kinds <= {"text", "text_special", "math_inline", "softbreak"}
    assert not re.search(r"[$]|[*]{2}", "".join(t.content for t in tokens if "text" in t.type))


def test_what_is_counted_or_set_is_not_called_measured(evidence, audited):
    """Every setting is called one, and so is what follows from shapes."""
    text = page.page_values(evidence=evidence)["claims_of_papers"]
    for name, head in {
        "loraprune-pst-overhead": "Counted",
        "loraprune-same-complexity": "Counted",
        "loraprune-eta-1": "Setting",
        "tip-mean-gain": "Measured",
    }.items():
        block = text[text.index(f":name: claim-{name}\n") :].partition("\n::::")[0]
        assert f"\n{head} here\n: " in block


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
    assert set(facts[0]["here"]) >= {"verdict", "readings"} and "compared" not in facts[0]["here"]
    assert facts[0]["in_print"]["declared"] == facts[0]["in_print"]["verdict"]
    heads = [lines.index(f"{p.title}: {len(p.claims)} claims") for p in PAPERS.values()]
    starts = [next(i for i, t in enumerate(lines) if t.startswith(f"{c.id} ")) for c in CLAIMS]
    assert starts == sorted(starts) and heads == sorted(heads) and heads[0] < starts[0]
