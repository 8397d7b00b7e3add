"""What the pages of the book name as {{ value }}: printed, declared and stored numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from tipmini.lab import assets, choice_tables, contributions, documents, paths, results
from tipmini.lab.bench import stored as bench
from tipmini.lab.catalogue import catalogue
from tipmini.lab.comparison_tables import sentences
from tipmini.lab.experiments import METHODS
from tipmini.lab.parity import stored as parity
from tipmini.lab.profiles import Profile, load_profile
from tipmini.lab.show import markdown_table
from tipmini.lab.statistics import Pair, mean_of
from tipmini.lab.tables import TITLES, estimate, printed, stored_cells, variant_cells
from tipmini.lab.tasks import TASKS

ANSWERS = (  # what a reader asks first: one, and what it is held against
    *(("tip", "base"), ("tip", "linear"), ("tip", "single")),
    *(("linear-tuned", "base"), ("linear-tuned", "tip")),
)


def front_page_values() -> dict[str, str]:
    """Markdown for every {{ name }} of book/*.md, from printed.yaml, profiles, stored results."""
    mini, full = load_profile("mini"), load_profile("full")
    shared = {
        n: f"{getattr(mini, n)}" for n in ("base_sparsity", "drop_rate", "seed", "answer_tokens")
    }
    values = shared | {"calibration_rows": str(mini.calibration_rows)}
    values |= parity.page_values() | bench.page_values()
    values |= {f"printed_{m}": v for m, v in _printed_means().items()}
    values |= {"training": markdown_table(training()), "answers": _answers(full)}
    available = row_counts()
    for task, (rows, train) in available.items():
        values |= {f"rows_{task}": f"{rows:,}", f"train_{task}": f"{train:,}"}
    for profile in (mini, full):
        values |= _profile_values(profile, {t: rows for t, (rows, _) in available.items()})
    return values


def _answers(profile: Profile) -> str:
    titles = TITLES | choice_tables.titles(catalogue(), profile.variant_store)
    pairs, cells = [Pair(*asked, profile.tasks) for asked in ANSWERS], variant_cells(profile)
    said = zip(sentences(cells, pairs, titles), pairs, strict=True)
    return "\n".join(f"- {text}{contributions.rest(cells, pair)}" for text, pair in said)


def _printed_means() -> dict[str, str]:
    means = printed().loc["mean"]
    return {method: means[TITLES[method]] for method in METHODS if TITLES[method] in means}


def _profile_values(profile: Profile, available: Mapping[str, int]) -> dict[str, str]:
    cells = stored_cells(profile)
    counts = {task: min(profile.rows(task) or available[task], available[task]) for task in TASKS}
    values = {method: estimate(mean_of(cells, method, profile.tasks)) for method in METHODS}
    values |= {task: f"{count:,}" for task, count in counts.items()}
    values["rows"] = f"{sum(counts.values()):,}"
    return {f"{profile.name}_{name}": value for name, value in values.items()}


def row_counts() -> dict[str, tuple[int, int]]:
    """{task: (evaluation rows, train rows)} of the embedded data.

    Counted once and kept below _build: reading all train rows takes half a minute.
    """
    key = [assets.embedded().name, results.file_digest(Path(documents.__file__))]
    file = paths.BUILD / f"rows-{results.digest(key)[:12]}.json"
    if not file.is_file():
        evaluation, train = documents.EVALUATION, documents.TRAIN
        counted = {task: (len(evaluation[task]()), len(train[task]())) for task in TASKS}
        results.write(file, json.dumps(counted) + "\n")
    return {task: tuple(pair) for task, pair in json.loads(file.read_text()).items()}


def training() -> pd.DataFrame:
    """What every committed adapter was trained on, and its held-out rows before and after."""
    stories = {task: paths.ADAPTERS / task / "training.json" for task in TASKS}
    found = {task: json.loads(f.read_text()) for task, f in stories.items() if f.is_file()}
    rows = {TITLES[task]: _trained(story) for task, story in found.items()}
    return pd.DataFrame(rows).T.rename_axis("adapter")


def _trained(story: dict) -> dict[str, str]:
    recipe, checks = story["recipe"], story["held_out"]
    kept = min(checks, key=lambda check: check["loss"])
    known = kept["accuracy"] is not None
    shares = f"{checks[0]['accuracy']:.3f} → {kept['accuracy']:.3f}" if known else "-"
    return {
        "rows × epochs": f"{recipe['rows']:,} × {recipe['epochs']}",
        "learning rate": f"{recipe['learning_rate']:g}",
        "minutes": f"{story['seconds'] / 60:.0f}",
        "held-out rows": str(story["held_out_rows"]),
        "their loss": f"{checks[0]['loss']:.3f} → {kept['loss']:.3f}",
        "their accuracy": shares,
    }
