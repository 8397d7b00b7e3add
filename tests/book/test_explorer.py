"""The explorers: what they are fed with, what the page computes of it, and how it is used."""

import hashlib
import json
import math
import random
from pathlib import Path
from urllib.parse import urlencode

import pytest
import standins
import torch
import yaml

from tipmini.methods.tip import tip_prune
from tipmini.papers.tip import layer_sparsity
from tipmini_lab import paths
from tipmini_lab.book import explorer, explorer_pruning
from tipmini_lab.book.explorer import asked, importances, merging
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.merging import grouped_norms
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results import statistics, store

MINI = load_profile("mini")
PAGES = ("explorer", "explorer_pruning")


# The data -----------------------------------------------------------------------------------------


def made(name: str, **changes: object) -> dict | None:
    """What the page calls a declared merge, with changed settings."""
    return asked(catalogue().variant(name).settings() | changes, MINI)


def test_a_merge_is_asked_for_by_its_settings_and_nothing_else_may_differ():
    seven = {"adapters": 7, "weight": 1.0}
    tip = {"method": "tip", "sparsity": 0.7, "sign": 1, "range": 1.0}
    assert made("tip") == tip | seven
    assert made("tip-dlp") == tip | seven | {"range": 0.3}
    assert made("tip-inverted-sorg-0.4") == tip | seven | {"sign": -1, "sparsity": 0.4}
    assert made("wanda") == tip | seven | {"range": 0}
    assert made("tip-cat") == tip | seven | {"method": "tip-cat"}
    none = {"sparsity": None, "sign": None, "range": None}
    assert made("linear-mean-adapters-2", adapters=dict.fromkeys(MINI.tasks[:2])) == {
        "method": "linear", **none, "adapters": 2, "weight": 0.5
    }  # fmt: skip
    assert made("recommended", weights="0.35/T")["weight"] == 0.05
    others = ["base", "tip-by-module", "tip-rows-8", "tip.static", "tip.scaled", "dare-s1"]
    others += ["dare-0.5", "cat-learnt", "ties-0.1", "tip-rescaled", "tip-other-rows"]
    others += ["distilled-56"]
    assert [made(name) for name in others] == [None] * len(others)
    assert made("tip", adapters=dict.fromkeys(MINI.tasks[1:3])) is None


def test_what_is_shown_is_what_is_stored():
    found = merging()["profiles"]["mini"]
    by_name = {one["name"]: one for one in found["merges"]}
    assert len(by_name) > 100
    for name in ("tip-sorg-0.3", "linear-adapters-3", "dare-weight-0.2", "knots"):
        bundle = store.read(MINI.variant_store, name)
        shown = by_name[name]
        for cell in bundle.cells:
            told = shown["accuracy"][MINI.tasks.index(cell.task)]
            assert told == pytest.approx([cell.mean, cell.stderr], abs=1e-5)
        assert shown["size"] == pytest.approx(bundle.facts["norm"] / bundle.facts["sum"], abs=1e-3)
        assert shown["beside_base"][1] <= shown["beside_base"][0] <= shown["beside_base"][2]
    # The paper's methods, which `full` stores without a bundle.
    at_full = [(m["method"], m["weight"]) for m in merging()["profiles"]["full"]["merges"]]
    assert {("linear", 1.0), ("dare", 1.0), ("tip", 1.0), ("linear", 0.05)} <= {*at_full}
    assert len(at_full) > 15


def test_prunings_are_those_that_are_stored():
    found = explorer_pruning.pruning()
    shown = {(m["criterion"], m["ratio"], m["steps"]): m for m in found["models"]}
    assert len(shown) == len(found["models"]) > 40
    three = [store.read(MINI.pruning_store, f"wanda-50-tuned-s{seed}") for seed in range(3)]
    losses = [cell.mean for one in three for cell in one.cells if cell.task == "books"]
    one = shown["wanda", 0.5, "short"]
    assert one["perplexity"]["books"][0] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)
    assert one["of_seeds"]["books"] == pytest.approx([math.exp(x) for x in losses], rel=1e-4)
    assert one["seeds"] == [0, 1, 2] and len(one["accuracy"]) == len(found["tasks"])
    assert found["steps"] == {"none": 0, "short": 20, "long": 320}


def test_what_is_not_measured_yet_is_left_out(monkeypatch):
    monkeypatch.setattr(explorer, "variant_cells", lambda profile: {})
    assert explorer.stored(MINI) == {"rows": {}, "alone": {}, "merges": []}
    rows, scores = explorer_pruning._frames()
    left = (rows[rows.method != "wanda"], scores[scores.method != "wanda"])
    monkeypatch.setattr(explorer_pruning, "_frames", lambda: left)
    found = explorer_pruning.pruning.__wrapped__()
    assert found["models"] and "wanda" not in found["criteria"]


def test_the_data_are_small_and_the_same_each_time(tmp_path):
    explorer.write(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["data-merging.js", "data-pruning.js"]
    assert sum(f.stat().st_size for f in files) < 200_000
    text = files[0].read_text().removeprefix("const EXPLORER_DATA = ").removesuffix(";\n")
    assert json.loads(text)["rank"] == 8


def test_libraries_are_those_that_were_published():
    pinned = yaml.safe_load((paths.BOOK / "vendored.yaml").read_text())
    folder = paths.BOOK / "assets" / "vendor"
    for name, told in pinned.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == told["sha256"]
        licence = (folder / f"{name.partition('.')[0]}.LICENSE").read_text()
        assert "Permission to use, copy, modify" in licence and told["licence"] == "ISC"
        assert told["version"] in (folder / name).read_text()[:100]
    assert {f.name for f in folder.glob("*.js")} == {*pinned}


# In the browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    return standins.built(tmp_path_factory.getbasetemp() / "book") / "book"


@pytest.fixture
def visit(book, browser):
    """Opens a page with a state as a file; no error, and nothing that isn't a file, may be seen."""
    opened, defects = [], []

    def visited(name: str, width: int = 1280, scripts: bool = True, **state: object):
        page = browser.new_page(
            viewport={"width": width, "height": 900}, java_script_enabled=scripts
        )
        opened.append(page)
        page.on("console", lambda m: m.type in ("error", "warning") and defects.append(m.text))
        page.on("pageerror", lambda error: defects.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or defects.append(r.url))
        page.goto((book / f"{name}.html").as_uri() + (f"#{urlencode(state)}" if state else ""))
        if scripts:
            page.locator(".explorer-picture svg").first.wait_for()
        return page

    yield visited
    for page in opened:
        page.close()
    assert defects == []


pytestmark = pytest.mark.browser


def says(page) -> str:
    return page.locator(".explorer-says").inner_text()


def test_the_page_computes_what_the_package_does(visit):
    """Sparsities at random settings; what they keep and the norms they leave, by pruning."""
    page = visit("explorer")
    tip = lambda call: page.evaluate(  # noqa: E731
        f"() => {{ const {{ tasks, shapes, rank }} = EXPLORER_DATA; return {call}; }}"
    )
    drawn = random.Random(0)
    for n in range(30):
        task, sign = drawn.choice(MINI.tasks), drawn.choice((1, -1))
        base, width = round(drawn.random(), 2), round(drawn.random(), 1)
        sparsity = layer_sparsity(importances()[task], base, sign=sign, shift_range=width)
        settings = f"{base}, {sign}, {width}"
        shown = tip(f"Tip.layerSparsity(tasks.{task}.importance, {settings})")
        assert shown == pytest.approx(sparsity.tolist(), abs=1e-12)
        if n >= 3:
            continue
        adapter, norms = explorer._adapters()[task]
        pruned = tip_prune(adapter, norms, base, sign=sign, shift_range=width)
        kept = {}
        for module, pair in pruned.factors.items():
            block = kept.setdefault(module.partition(".self_attn")[0], [])
            block += [torch.count_nonzero(x) for x in (pair.a, pair.b)]
        whole = sum(rows * columns for rows, columns in merging()["shapes"])
        shares = tip(f"Tip.layerSparsity(tasks.{task}.importance, {settings}).map((s) => "
                     "Tip.keptShare(shapes, s))")  # fmt: skip
        found = {block: float(sum(counts)) / whole for block, counts in kept.items()}
        order = sorted(found, key=lambda block: int(block.rpartition(".")[2]))
        # But for an element or two that are 0 as trained.
        assert shares == pytest.approx([found[block] for block in order], abs=2 / whole + 1e-9)
        sizes = tip(f"Tip.layerSparsity(tasks.{task}.importance, {settings}).map((s, i) => "
                    f"Tip.sizeAt(tasks.{task}.sizes[i], rank, s))")  # fmt: skip
        measured = grouped_norms(pruned, "block")
        assert sizes == pytest.approx([measured[block] for block in order], rel=0.01, abs=0.01)


def test_a_view_is_restored_from_its_address(visit):
    state = {"task": "piqa", "s": 0.3, "sign": -1, "range": 0.5, "method": "tip"}
    state |= {"n": 3, "w": "mean", "rows": "mini"}
    page = visit("explorer", **state)
    values = page.evaluate(
        "Object.fromEntries(new FormData(document.querySelector('.explorer-controls')))"
    )
    assert values == {name: str(value) for name, value in state.items()}
    assert "on the adapter of PIQA at S_org 0.30, sign inverted, shift range 0.5" in says(page)
    assert "Not measured at this setting; nearest measured: TIP," in says(page)
    page.get_by_role("button", name="Go to the nearest").click()
    assert "Measured: TIP" in says(page) and "nearest" not in says(page)
    page.go_back()
    page.get_by_role("button", name="Go to the nearest").wait_for()
    # What no control can have is its start.
    other = visit("explorer", task="nothing", s="7", sign="x", w="<b>", range="")
    assert "S_org 0.95, sign as written, shift range 1.0" in says(other)


def test_the_keyboard_moves_a_setting_and_back_takes_it_back(visit):
    page = visit("explorer")
    start = says(page)
    slider = page.get_by_role("slider", name="S_org")
    slider.focus()
    slider.press("ArrowLeft")
    page.wait_for_function("location.hash.includes('s=0.65')")
    assert "S_org 0.65" in says(page) and "Not measured" in says(page)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # to the other sign
    page.wait_for_function("location.hash.includes('sign=-1')")
    assert "sign inverted" in says(page)
    page.go_back()
    page.wait_for_function(
        "document.querySelector('.explorer-says').innerText.includes('as written')"
    )
    page.go_back()
    page.wait_for_function("!location.hash")
    page.wait_for_function(
        "before => document.querySelector('.explorer-says').innerText === before", arg=start
    )


def test_stored_merges_are_found_at_their_settings(visit):
    page = visit("explorer")
    titles = {one["name"]: one["of"] for one in merging()["weights"]}
    merges = random.Random(1).sample(merging()["profiles"]["mini"]["merges"], 12)
    for one in merges:
        same = pytest.approx(one["weight"], abs=1e-4)
        weight = next(name for name, of in titles.items() if of[one["adapters"]] == same)
        state = {"method": one["method"], "n": one["adapters"], "w": weight, "rows": "mini"}
        if one["sparsity"] is not None:
            state |= {"s": one["sparsity"], "sign": one["sign"], "range": one["range"]}
        page.evaluate("hash => { location.hash = hash; }", urlencode(state))
        mean = math.fsum(value for value, _ in one["accuracy"]) / one["adapters"]
        told = f"mean accuracy {mean:.3f}"
        page.wait_for_function(
            "told => document.querySelector('.explorer-says').innerText.includes(told)", arg=told
        )
        assert "Measured: " in says(page)


def test_the_mean_and_its_interval_are_the_book_s(visit):
    page = visit("explorer")
    rows = explorer.wide(explorer.variant_cells(MINI))
    low, high = statistics.mean_interval(rows, "tip", MINI.tasks)[1:]
    told = page.evaluate(
        "() => { const own = EXPLORER_DATA.profiles.mini.merges.find((m) => m.name === 'tip');"
        " return Explorer.interval(...own.accuracy); }"
    )
    assert [told["low"], told["high"]] == pytest.approx([low, high], abs=1e-4)


def test_prunings_that_are_not_measured_are_said_to_be(visit):
    page = visit("explorer_pruning", criterion="taylor", beside="wanda", ratio=0.3, steps="short")
    assert "not measured at this setting; nearest measured: LLM-Pruner" in says(page)
    page.get_by_role("button", name="Go to the nearest").click()
    assert says(page).startswith("LLM-Pruner, by element, 20%, 20 steps: perplexity 48.4 (")
    # With nothing removed both criteria are one model, which is told once.
    page.get_by_role("slider").press("Home")
    page.wait_for_function("location.hash.includes('ratio=0&')")
    assert says(page).startswith("unpruned, 0%, 20 steps") and says(page).count("unpruned") == 1
    page.go_back()
    page.wait_for_function("location.hash.includes('ratio=0.2&')")
    page.get_by_label("320").check()
    page.wait_for_function("location.hash.includes('steps=long')")
    page.go_back()
    page.wait_for_function("location.hash.includes('steps=short')")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_telephone_and_is_told_in_words(name, visit):
    page = visit(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for drawn in page.locator(".explorer-picture svg[role=img]").all():
        assert len(drawn.get_attribute("aria-label")) > 20
    assert page.locator(".explorer-says[role=status]").count() == 1
    unlabelled = """[...document.querySelectorAll(".explorer :is(input, select)")].filter(
        e => !e.labels.length).length"""
    assert page.evaluate(unlabelled) == 0
    page.locator(".explorer details summary").click()
    assert page.locator(".explorer table:visible").count() >= 2
    small = """[...document.querySelectorAll('.explorer svg text')].filter(
        t => parseFloat(getComputedStyle(t).fontSize) < 9).length"""
    assert page.evaluate(small) == 0 and page.locator(".explorer-static").count() == 0


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_a_page_has_its_picture(name, visit):
    page = visit(name, scripts=False)
    assert page.locator(".explorer-static").locator("img, svg").is_visible()
    assert page.get_by_text("The settings need JavaScript").is_visible()
    assert page.locator("#explorer").inner_text() == ""


def test_until_anything_is_measured_a_page_has_its_picture_or_says_so(browser):
    nothing = {"rows": {}, "alone": {}, "merges": []}
    some = merging() | {"profiles": dict.fromkeys(("mini", "full"), nothing)}
    none = explorer_pruning.pruning() | {"models": [], "criteria": {}}
    scripts, defects = paths.BOOK / "assets", []
    for own, data, stays in ((("tip", "merging"), some, 0), (("pruning",), none, 1)):
        page = browser.new_page()
        page.on("pageerror", lambda error: defects.append(str(error)))
        page.set_content('<div id="explorer"></div><p class="explorer-static">Picture</p>')
        files = ["vendor/d3.min.js", "vendor/plot.umd.min.js", "explorer/explorer.js"]
        page.add_script_tag(content=f"const EXPLORER_DATA = {json.dumps(data)};")
        for name in (*files, *(f"explorer/{name}.js" for name in own)):
            page.add_script_tag(path=scripts / name)
        assert page.locator(".explorer-static").count() == stays
        assert stays or "TIP is not measured at mini" in says(page)
        page.close()
    assert defects == []
