"""One comparison, one verdict: declared once, tested once, whichever way round it is asked."""

import made_up
import pytest
from made_up import ROWS, SMOKE, TITLES

from tipmini_lab import paths
from tipmini_lab.book import questions
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results import digests, store
from tipmini_lab.results.statistics import MISSING, Pair, Verdict, compare

FULL = load_profile("full")
EVERY = [Pair(*names, SMOKE.tasks) for names in (("good", "tip"), ("base", "tip"), ("ties", "tip"))]


@pytest.fixture(autouse=True)
def made_up_rows(tmp_path, monkeypatch):
    """At `full` there is no TIES; the profile of the page has it on both tasks."""
    more = made_up.rows({"ties": {t: made_up.right(30) for t in SMOKE.tasks}})
    here = {"full": ROWS, "smoke": ROWS.assign(ties=more["ties"])}
    monkeypatch.setattr(questions, "rows", lambda profile: here[profile.name])
    monkeypatch.setattr(questions, "declared", lambda *_: EVERY)
    monkeypatch.setattr(questions, "DRAWS", 2000)
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    questions._tested.cache_clear()
    yield
    questions._tested.cache_clear()


def test_a_pair_is_tested_where_all_examples_are_and_else_at_the_page_s_profile():
    found = questions.tested(EVERY, SMOKE)
    assert list(found.profile) == ["full", "full", "smoke"]
    assert list(found.verdict[:2]) == ["better", "worse"]
    alone = compare(ROWS, EVERY[:2], 2000)
    assert list(found.corrected[:2]) == list(alone.corrected)
    assert found.corrected[2] == found.p[2]  # one comparison at its profile, as `NOTE` says
    assert "at the same profile" in questions.NOTE
    assert questions.tested(EVERY, FULL).verdict[2] == MISSING


def test_the_other_way_round_has_the_other_sign_and_the_same_p():
    one = questions.tested(EVERY, SMOKE).iloc[1]
    other = questions.tested([Pair("tip", "base", SMOKE.tasks)], SMOKE).iloc[0]
    assert (other.value, other.low, other.high) == (-one.value, -one.high, -one.low)
    assert (other.verdict, other.better, other.corrected) == ("better", one.worse, one.corrected)


def test_what_is_measured_is_answered_either_way_round():
    found = questions.answers(FULL)
    assert {*found} == {
        Pair(*names, SMOKE.tasks)
        for names in (("good", "tip"), ("tip", "good"), ("base", "tip"), ("tip", "base"))
    }
    one, other = (found[Pair(*names, SMOKE.tasks)] for names in (("base", "tip"), ("tip", "base")))
    assert (one["verdict"], other["verdict"]) == ("worse", "better")
    assert one["corrected"] == other["corrected"]


def test_a_profile_of_fewer_tasks_has_the_pairs_on_all_tasks_too(monkeypatch):
    """A page at `smoke` tells what is measured at `full`."""
    fewer = SMOKE.model_copy(update={"tasks": SMOKE.tasks[:1]})
    own = {p.name: [Pair(*pair[:2], p.tasks) for pair in EVERY] for p in (FULL, fewer)}
    own["full"] = EVERY
    monkeypatch.setattr(questions, "load_profile", {"full": FULL, "smoke": fewer}.get)
    monkeypatch.setattr(questions, "declared", lambda _, profile: own[profile.name])
    assert list(questions.tested(EVERY, fewer).verdict[:2]) == ["better", "worse"]
    assert list(questions.tested(own["smoke"], fewer).profile) == ["full", "full", "smoke"]


def test_an_undeclared_pair_is_refused():
    with pytest.raises(KeyError):
        questions.tested([Pair("base", "good", SMOKE.tasks)], SMOKE)


def test_a_table_says_where_a_pair_was_tested():
    frame = questions.table(EVERY, SMOKE, TITLES, without=True)
    assert list(frame.index) == ["Good minus TIP", "Base minus TIP", "TIES minus TIP"]
    assert frame.loc["Good minus TIP", "points at full"].startswith("+25.0<br>[+")
    assert frame.loc["Good minus TIP", "without the<br>largest"].startswith("OpenBookQA:<br>+0.0")
    assert frame.loc["TIES minus TIP", "points at full"] == questions.EMPTY
    assert "(at smoke)" in frame.loc["TIES minus TIP", "verdict"].replace("<br>", " ")
    assert "points at full" in questions.table(EVERY, FULL, TITLES)


def test_better_is_what_beats_all():
    assert questions.beats_all("good", ["tip"], SMOKE) == Verdict.BETTER
    assert questions.beats_all("tip", ["good", "base"], SMOKE) == Verdict.WORSE
    assert questions.beats_all("tip", ["base"], SMOKE) == Verdict.BETTER


def test_every_declared_pair_is_of_known_variants(monkeypatch):
    monkeypatch.undo()
    known = catalogue()
    names = {*known.variants, *known.choices, *questions.CONTROLS}
    every = questions.declared(known, FULL)
    assert {name for pair in every for name in pair[:2]} <= names
    assert len({(frozenset(pair[:2]), pair.tasks) for pair in every}) == len(every)
    assert {name for c in questions.CONTROLS for name in questions.drawn(c)} <= {*known.variants}


def test_methods_are_listed_once():
    names = questions.methods()
    assert names[:2] == ["base", "single"] and len(names) == len(set(names))
    assert "linear-tuned" in names and not {"recommended", "tip-printed", "dare-s1"} & set(names)
    stored = store.bundles(FULL.variant_store, ["linear-tuned", "recommended"])
    assert len({tuple(cell.values) for bundle in stored for cell in bundle.cells}) == 7


@pytest.mark.parametrize("name", ["frame.py", "questions.py", "statistics.py", "tables.py"])
def test_pairs_are_tested_anew_once_the_code_that_reads_them_is_another(name, monkeypatch):
    asked, digest = [], digests.file_digest
    monkeypatch.setattr(questions, "compare", lambda *own: asked.append(1) or compare(*own))
    questions._compared(FULL, EVERY[:1])
    questions._compared(FULL, EVERY[:1])
    assert len(asked) == 1
    changed = {name: "another"}
    monkeypatch.setattr(digests, "file_digest", lambda f: changed.get(f.name) or digest(f))
    questions._compared(FULL, EVERY[:1])
    assert len(asked) == 2
