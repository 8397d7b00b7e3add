"""The claims audit: its arithmetic against hand-computed cases, its verdicts, and its refusals."""

import dataclasses
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import staging, tables
from tipmini_lab.book.claims import declared as declarations
from tipmini_lab.book.claims import here, in_print, page
from tipmini_lab.book.claims.declared import Claim, Verdict, declared
from tipmini_lab.book.claims.evidence import COMPARED, Evidence, Printed
from tipmini_lab.commands import main
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.store import Cell

CLAIMS = declared().claims


# Arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "rows", "z"),
    [
        (154 / 277, 148 / 277, 277, 0.512),  # by hand: 0.02166 / sqrt(2 * 0.5451 * 0.4549 / 277)
        (154 / 277, 149 / 277, 277, 0.427),
        (0.6, 0.4, 50, 2.0),  # 0.2 / sqrt(2 * 0.25 / 50)
        (0.5, 0.5, 100, 0.0),
        (0.0, 0.0, 100, 0.0),
        (1.0, 1.0, 100, 0.0),
    ],
)
def test_z_of_two_proportions(first, second, rows, z):
    assert declarations.z_score(first, second, rows) == pytest.approx(z, abs=1e-3)
    assert declarations.z_score(second, first, rows) == pytest.approx(-z, abs=1e-3)


@given(st.floats(-8, 8))
def test_p_is_two_tails_of_the_normal(z):
    assert declarations.two_sided(z) == pytest.approx(2 * norm.sf(abs(z)))


@pytest.mark.parametrize(
    ("share", "rows", "count"),
    [
        (0.4625, 1172, 542),
        (0.7774, 3270, 2542),
        (0.7600, 10042, 7632),
        (0.4420, 500, 221),
        (0.6282, 277, 174),
        (0.7905, 1838, 1453),
        (0.5560, 277, 154),
        (0.6290, 277, None),  # 174 rows print as 0.6282, 175 as 0.6318
        (0.6388, 500, None),
    ],
)
def test_whole_counts(share, rows, count):
    assert declarations.whole_count(share, rows) == count


@pytest.mark.parametrize(("rows", "share"), [(1, 2 / 10001), (277, 278 / 10001), (10042, 1.0)])
def test_how_many_numbers_are_whole_counts_by_accident(rows, share):
    assert declarations.by_accident(rows) == pytest.approx(share, abs=1e-4)


def test_standard_error():
    assert declarations.standard_error(0.5, 100) == 0.05


def table(**tasks: dict[str, float]) -> Evidence:
    """Evidence of a made-up table over 1,000 rows a task, and no cell."""
    splits = {task: {"split": "test", "rows": 1000, "whole": True} for task in tasks}
    return Evidence(Printed(tasks, splits), {}, (0.2, 0.4), load_profile("full"))


MADE_UP = table(
    rte={"single": 0.5, "linear": 0.2, "dare": 0.4, "tip": 0.6},
    piqa={"single": 0.6, "linear": 0.4, "dare": 0.4, "tip": 0.6},
)


def test_means_and_tests_of_a_table():
    printed = MADE_UP.printed
    assert printed.mean("tip") == pytest.approx(0.6) == printed.value("tip", "mean")
    assert len(printed.tests) == 2 * len(COMPARED) * len(printed.tasks)
    found = printed.tests["tip", "linear", "piqa"]
    assert found.difference == 0.2 and found.clear
    assert found.z == pytest.approx(0.2 / (2 * 0.25 / 1000) ** 0.5)
    assert printed.tests["linear", "tip", "piqa"].difference == -0.2
    gap, error, _ = printed.mean_test("tip", "single")
    assert gap == pytest.approx(0.05)
    assert error == pytest.approx((3 * 0.24 / 1000 + 0.25 / 1000) ** 0.5 / 2)


@pytest.mark.parametrize(
    ("task", "printed", "verdict"),
    [
        ("piqa", 50.0, Verdict.HOLDS),  # (0.6 - 0.4) / 0.4
        ("piqa", 20.0, Verdict.IN_POINTS),
        ("piqa", 20.04, Verdict.IN_POINTS),
        ("piqa", 21.0, Verdict.DOES_NOT_HOLD),
        ("mean", 20.0, Verdict.IN_POINTS),
        ("rte", 40.0, Verdict.IN_POINTS),  # against linear; 20 against dare
    ],
)
def test_a_gain_is_relative_or_in_points(task, printed, verdict):
    asked = {"of": "tip", "against": ["dare", "linear"], "task": task}
    assert in_print.gain(MADE_UP, printed=printed, tolerance=0.05, **asked).verdict == verdict


@pytest.mark.parametrize(
    ("higher", "lower", "options", "verdict"),
    [
        (["tip"], ["linear"], {}, Verdict.HOLDS),
        (["tip"], ["single"], {}, Verdict.IN_PART),  # equal on piqa
        (["tip"], ["single"], {"or_equal": True}, Verdict.HOLDS),
        (["tip"], ["single"], {"some": True}, Verdict.HOLDS),
        (["tip"], ["single"], {"tasks": ["piqa"]}, Verdict.DOES_NOT_HOLD),
        (["linear"], ["tip"], {}, Verdict.DOES_NOT_HOLD),
    ],
)
def test_printed_columns_one_above_the_other(higher, lower, options, verdict):
    found = in_print.above(MADE_UP, higher=higher, lower=lower, **options)
    assert found.verdict == verdict


def test_a_printed_difference_of_few_rows_is_within_the_error():
    close = table(rte={"single": 0.50, "linear": 0.50, "dare": 0.50, "tip": 0.51})
    found = in_print.above(close, higher=["tip"], lower=["linear"])
    assert found.verdict == Verdict.WITHIN_ERROR
    assert in_print.mean_above(close, higher="tip", lower="dare").verdict == Verdict.WITHIN_ERROR
    assert in_print.mean_above(close, higher="dare", lower="tip").verdict == Verdict.DOES_NOT_HOLD


def test_the_largest_gains():
    asked = {"of": "tip", "against": "linear"}
    assert in_print.largest_gains(MADE_UP, tasks=["rte"], **asked).verdict == Verdict.HOLDS
    assert in_print.largest_gains(MADE_UP, tasks=["piqa"], **asked).verdict != Verdict.HOLDS


# What is printed in the paper ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("tip-mean-gain", "17.61 points, relative 37.3%"),
        ("tip-coqa-gain-abstract", "43.8 are the points against Linear, cut off"),
        ("tip-coqa-gain-text", "43.9 are the points against DARE, rounded"),
        ("tip-hellaswag-gain-abstract", "31.2 are the points against DARE, cut off"),
        ("tip-hellaswag-gain-text", "31.3 are the points against DARE, rounded"),
        ("tip-rte-above-merges", "z 0.51"),
        ("tip-no-information-lost", "-7.22 points"),
        ("tip-consistently-higher", "14 of 14"),
        ("tip-ensemble-effect", "+0.52"),
        ("tip-single-column", "7 of 7"),
        ("tip-official-splits", "24 of 24"),
    ],
)
def test_what_the_printed_cells_say(audited, claim, words):
    found = audited[claim].in_print
    assert words in f"{found.recomputed} {found.words}"


def test_a_record_that_differs_in_the_last_digit_is_not_identical(evidence):
    record = evidence.base_model["rte"] | {"value": 0.6283}
    other = Evidence(evidence.printed, evidence.base_model | {"rte": record}, (0, 1), None)
    found = in_print.equals_records(other, method="single")
    assert found.verdict != Verdict.IDENTICAL and found.recomputed.startswith("6 of 7")


# What was measured here ---------------------------------------------------------------------


def cells(**values: list[int]) -> Evidence:
    made = Evidence(MADE_UP.printed, {}, (0, 1), load_profile("full"))
    facts = {
        "key": "",
        "inputs": {},
        "code": {},
        "profile": "full",
        "metric": "acc",
        "dtype": "float32",
        "seconds": 0,
    }
    facts |= {"date": "", "machine": {}, "versions": {}, "task": "rte"}
    made.cells = {(m, "rte"): Cell(**facts, method=m, values=v) for m, v in values.items()}
    return made


@pytest.mark.parametrize(
    ("tip", "linear", "verdict"),
    [
        ([1] * 20, [0] * 20, Verdict.HOLDS),
        ([0] * 20, [1] * 20, Verdict.CONTRARY),
        ([1, 0] * 10, [0, 1] * 10, Verdict.NOT_SUPPORTED),
        ([1] * 20, [0] * 3 + [1] * 17, Verdict.NOT_SUPPORTED),  # 3 rows: p is 0.25
        ([1] * 20, [0] * 6 + [1] * 14, Verdict.HOLDS),  # 6 rows: p is 0.03
    ],
)
def test_cells_are_compared_row_by_row(tip, linear, verdict):
    asked = {"higher": ["tip"], "lower": ["linear"], "tasks": ["rte"]}
    assert here.paired(cells(tip=tip, linear=linear), **asked).verdict == verdict


def test_more_comparisons_need_clearer_differences():
    """Six rows, p 0.03, are clear alone and not clear beside another comparison."""
    found = cells(tip=[1] * 20, linear=[0] * 6 + [1] * 14, dare=[1] * 20)
    asked = {"higher": ["tip"], "lower": ["linear", "dare"], "tasks": ["rte"]}
    assert here.paired(found, **asked).verdict == Verdict.NOT_SUPPORTED
    found = cells(tip=[1] * 20, linear=[0] * 20, dare=[1] * 20)
    assert here.paired(found, **asked).verdict == Verdict.IN_PART


def test_a_missing_cell_is_not_run():
    found = here.paired(cells(tip=[1]), higher=["tip"], lower=["static"], tasks=["rte"])
    assert found.verdict == Verdict.NOT_RUN and "static" in found.words


def rounds(*ratios: float) -> list[dict]:
    """Points of ways whose two rounds both took so many times the base model's second."""
    ways = ("base", "mixed 1", "mixed 2", "one adapter", "weights")
    point = {"step": "token", "batch": 2}
    return [point | {"way": w, "seconds": [r, r]} for w, r in zip(ways, ratios, strict=True)]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1, 1.2, 1.5, 1.1, 1), Verdict.HOLDS),
        ((1, 1.2, 1.2, 1.1, 1), Verdict.NOT_SUPPORTED),  # no longer with more
        ((1, 0.9, 1.5, 1.1, 1), Verdict.NOT_SUPPORTED),  # one is not slower than the base
    ],
)
def test_serving_costs_where_every_round_is_slower_and_more_adapters_are(
    ratios, verdict, monkeypatch
):
    adapters = {"mixed 1": 1, "mixed 2": 2}
    points = [p | {"adapters": adapters.get(p["way"], 0)} for p in rounds(*ratios)]
    monkeypatch.setattr(here.serving, "read", lambda: {"points": points, "rounds": 2})
    assert here.serving_costs(None, step="token", batch=2).verdict == verdict


# The file -----------------------------------------------------------------------------------


def test_every_declared_verdict_is_the_computed_one(audited):
    assert page.changes(audited.values()) == []


def test_ids_titles_and_names_of_checks():
    titles = [claim.title for claim in CLAIMS]
    assert len(set(titles)) == len(titles)
    known = {c.check for claim in CLAIMS for c in (claim.in_print, claim.here)}
    assert known <= set(page.CHECKS["in_print"]) | set(page.CHECKS["here"])
    assert all(claim.id.startswith(f"{claim.paper}-") for claim in CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_form_of_a_claim(claim):
    assert bool(re.search("[가-힣]", claim.quote)) == (claim.english is not None)
    assert not re.search("[가-힣]", f"{claim.english} {claim.title}")
    assert claim.quote == " ".join(claim.quote.split()) or "  " in claim.quote
    digits = f"{claim.printed:g}" if isinstance(claim.printed, float) else claim.printed
    assert claim.printed is None or digits in claim.quote


def test_every_verdict_says_what_it_means():
    assert all(len(verdict.meaning) > 20 for verdict in Verdict)
    assert Verdict("holds") is Verdict.HOLDS


def test_a_cite_key_is_in_the_bibliography():
    known = (paths.BOOK / "references.bib").read_text()
    assert all(f"{{{paper.cite}," in known for paper in declared().papers.values())


def changed(folder, change) -> str:
    """A copy of the file that `change` has edited; anchors are written out."""
    content = json.loads(json.dumps(yaml.safe_load(paths.CLAIMS.read_text())))
    change(content)
    (folder / "claims.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))
    return folder / "claims.yaml"


def first(**fields):
    return lambda content: content["claims"][0].update(fields)


WRONG = [
    (first(verdict="holds"), "claims.0.verdict: Extra inputs are not permitted"),
    (first(here={"check": "paired", "verdict": "perhaps"}), "claims.0.here.verdict: Input should"),
    (first(id="Not An Id"), "claims.0.id: String should match"),
    (first(id=CLAIMS[1].id), f"claim '{CLAIMS[1].id}' stands there twice"),
    (first(paper="lora"), "of 'lora'"),
    (first(section="appendix"), "no 'appendix' of 'tip'"),
    (first(quote=""), "claims.0.quote: "),
    (lambda content: content.update(claims=[]), "claims: "),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_file_that_is_not_valid_is_one_line(tmp_path, change, said):
    with pytest.raises(TipminiError) as refusal:
        declared(changed(tmp_path, change))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(TipminiError) as refusal:
        declared(tmp_path / "claims.yaml")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"check": "abov", "verdict": "holds"}, "check 'abov' is not one of gain, "),
        ({"check": "setting", "verdict": "holds"}, "setting: missing a required argument: 'note'"),
        (
            {"check": "setting", "arguments": {"not": "x"}, "verdict": "holds"},
            "claim tip-existing-merges-lose, setting: ",
        ),
    ],
)
def test_a_check_that_there_is_not_is_one_line(tmp_path, evidence, asked, said):
    file = changed(tmp_path, first(in_print=asked))
    with pytest.raises(TipminiError, match=re.escape(said)) as refusal:
        page.audit(file, evidence)
    assert "\n" not in str(refusal.value)


# A verdict that changed ---------------------------------------------------------------------

LINE = (
    "claim tip-existing-merges-lose, in print: declared 'does not hold', computed 'holds in part'; "
    "where that is right, declare it in claims.yaml"
)


def lie(content):
    content["claims"][0]["in_print"]["verdict"] = "does not hold"


@pytest.fixture
def lying(tmp_path, monkeypatch):
    """The file with one wrong verdict in the place of the file."""
    file = changed(tmp_path, lie)
    for function in (declared, page.audit, page.page_values):
        others = function.__defaults__[1:]
        monkeypatch.setattr(function, "__defaults__", (file, *others))
    return file


@pytest.mark.parametrize("command", [["claims"], ["claims", "--json"], ["publish", "nowhere"]])
def test_a_wrong_declared_verdict_fails_in_one_line(lying, monkeypatch, capsys, tmp_path, command):
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


# The page -----------------------------------------------------------------------------------


def test_every_claim_is_on_the_page(evidence):
    shown = set(staging.VALUE.findall((paths.BOOK / "claims.md").read_text()))
    values = page.page_values(evidence=evidence)
    assert set(values) == shown
    text = "\n".join(values.values())
    assert all(f":name: claim-{claim.id}\n" in text for claim in CLAIMS)
    assert all(f"](claim-{claim.id})" in text for claim in CLAIMS)


@pytest.mark.parametrize(("text", "shown"), [("a_b [2] $x$", r"a\_b \[2\] \$x\$"), ("<", "&lt;")])
def test_a_quote_is_no_markup(text, shown):
    assert page._plain(text) == shown


def test_the_printed_table_of_means(evidence):
    frame = page.means(evidence.printed)
    assert list(frame["mean"]) == [tables.printed().loc["mean", name] for name in frame.index]
    assert list(frame.loc["DARE"]) == ["0.4719", "+17.61", "+37.3%"]


def test_the_command_lists_all(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tipmini", "claims", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    found = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0 and [each["id"] for each in found] == [c.id for c in CLAIMS]
    assert found[0]["in_print"]["declared"] == found[0]["in_print"]["verdict"]
    assert set(Claim.model_fields) == set(found[0])


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ({"rte": [3.0, 2, 1], "piqa": [1, 2, 3.0], "boolq": [3.0, 2, 1]}, Verdict.HOLDS),
        ({"rte": [3.0, 2, 1], "piqa": [3, 2, 1.0], "boolq": [1.0, 2, 3]}, Verdict.NOT_SUPPORTED),
        ({"rte": [3.0, 2, 1], "piqa": [3, 2, 1.0], "boolq": [6.0, 2, 1]}, Verdict.NOT_SUPPORTED),
        ({"rte": [3.0, 2, 1]}, Verdict.NOT_RUN),
    ],
)
def test_layers_differ_where_their_orders_do(lines, verdict):
    found = SimpleNamespace(importances={t: torch.tensor(line) for t, line in lines.items()})
    asked = {"first": "rte", "second": "piqa", "alike_above": 0.9}
    assert here.layers_differ(found, **asked).verdict == verdict
