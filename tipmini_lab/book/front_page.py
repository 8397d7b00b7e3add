"""What the pages of the book name as {{ value }}: printed, declared and stored numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from tipmini_lab import paths
from tipmini_lab.book import (
    explorer,
    guessing,
    parity,
    performance,
    pruning_costs,
    pruning_tables,
    questions,
    rehearsed,
)
from tipmini_lab.book.pruning_tables import HALF, LONG, OURS
from tipmini_lab.book.tables import (
    TITLES,
    estimate,
    markdown_table,
    printed,
    variant_cells,
    variant_rows,
)
from tipmini_lab.evaluation import assets, documents, mmlu
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.experiments import declared, few_shot, formats
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.variants import TABLE_1
from tipmini_lab.results import digests, store
from tipmini_lab.results.statistics import MISSING, mean_of
from tipmini_lab.results.store import Cell


def front_page_values() -> dict[str, str]:
    """Markdown for every {{ name }} of book/*.md, from printed.yaml, profiles, stored results."""
    mini, full = load_profile("mini"), load_profile("full")
    shared = {
        n: f"{getattr(mini, n)}" for n in ("base_sparsity", "drop_rate", "seed", "answer_tokens")
    }
    values = shared | {"calibration_rows": str(mini.calibration_rows)}
    values |= parity.page_values() | performance.page_values()
    values |= explorer.page_values() | rehearsed.page_values()
    values |= {f"printed_{m}": v for m, v in _printed_means().items()}
    values |= {"training": markdown_table(training(paths.ADAPTERS)), "answers": _answers(full)}
    values |= {"training_own_seeds": markdown_table(training(paths.OWN_SEEDS))}
    values |= {"formats": markdown_table(formats.table(TITLES))}
    values |= {"formats_points": f"{formats.most_points():.2f}"}
    grid = declared.grid()
    outcomes = pruning_tables.read(mini.pruning_store)
    runs = grid.runs(mini.name)
    values |= {"pruned": markdown_table(pruning_tables.halved(outcomes, runs, grid))}
    values |= beside_loraprune(pruning_tables.takeaways(outcomes, runs, grid), grid)
    cost = pruning_costs.cost_table(pruning_costs.read()).loc["LoRA-guided"]
    values |= {"pruned_memory": cost["of all saved"], "pruned_gain": cost["faster by"]}
    values |= {"unlearnt": unlearnt(), "mini_in_full": _mini_in_full(mini, full)}
    available = row_counts()
    for task, (rows, train) in available.items():
        values |= {f"rows_{task}": f"{rows:,}", f"train_{task}": f"{train:,}"}
    values |= _mmlu_values()
    for profile in (mini, full):
        values |= _profile_values(profile, {t: rows for t, (rows, _) in available.items()})
    return values


def beside_loraprune(judged: pd.DataFrame, grid: declared.Grid) -> dict[str, str]:
    """Whose perplexity is lower, of other criteria, after few and after many steps: `takeaways`."""
    others = [m.title for m in grid.methods if not m.title.startswith(grid.titles()[OURS])]
    return {
        f"pruned_{words}": pruning_tables.in_words(judged.loc[others, beside])
        for words, beside in {"few": HALF, "many": LONG}.items()
    }


def _mmlu_values() -> dict[str, str]:
    """How many questions MMLU has, and how many of each subject are asked."""
    every = sum(len(mmlu.rows(subject, "test")) for subject in assets.SUBJECTS)
    counts = {"test": every, "subjects": len(assets.SUBJECTS), "rows": few_shot.group().rows}
    return {f"mmlu_{name}": f"{count:,}" for name, count in counts.items()}


def _answers(profile: Profile) -> str:
    """Whether TIP works, and the plain merge with one smaller weight: tested as everywhere."""
    asked = questions.pairs(questions.QUESTIONS["works"], profile)
    titles = questions.titles(profile)
    return markdown_table(questions.table(asked, profile, titles, without=True))


def _printed_means() -> dict[str, str]:
    means = printed().loc["mean"]
    return {method: means[TITLES[method]] for method in TABLE_1 if TITLES[method] in means}


def _profile_values(profile: Profile, available: Mapping[str, int]) -> dict[str, str]:
    rows = variant_rows(profile)  # in one number format: as in the chapters
    counts = {task: min(profile.rows(task) or available[task], available[task]) for task in TASKS}
    values = {method: estimate(mean_of(rows, method, profile.tasks)) for method in TABLE_1}
    values |= {task: f"{count:,}" for task, count in counts.items()}
    values["rows"] = f"{sum(counts.values()):,}"
    guessed = guessing.mean(guessing.scores(profile))
    values["guess"] = MISSING if guessed is None else f"{guessed:.3f}"
    return {f"{profile.name}_{name}": value for name, value in values.items()}


def _mini_in_full(mini: Profile, full: Profile) -> str:
    """How many of the rows that both profiles have of one adapter came out otherwise.

    Scored by the same code, and the adapter the same bit for bit.
    """
    few, all_rows = variant_cells(mini), variant_cells(full)
    same = [p for p in few if p in all_rows and _made_of(few[p]) == _made_of(all_rows[p])]
    both = [(few[place].values, all_rows[place].values) for place in same]
    rows = sum(len(small) for small, _ in both)
    other = sum(a != b for small, large in both for a, b in zip(small, large, strict=False))
    return f"{other} of {rows:,}" if both else MISSING


def _made_of(cell: Cell) -> tuple:
    codes = [digests.known_as(*pair) for pair in cell.code.items()]
    return (cell.dtype, *codes, *(cell.inputs.get(name) for name in ("model", "adapter")))


def row_counts() -> dict[str, tuple[int, int]]:
    """{task: (evaluation rows, train rows)} of the embedded data.

    Counted once and kept below _build: reading all train rows takes half a minute.
    """
    key = [assets.embedded().name, digests.file_digest(Path(documents.__file__))]
    file = paths.BUILD / f"rows-{digests.digest(key)[:12]}.json"
    if not file.is_file():
        known = documents.ADAPTED.items()
        counted = {name: (len(task.evaluation()), len(task.train())) for name, task in known}
        store.write(file, json.dumps(counted) + "\n")
    return {task: tuple(pair) for task, pair in json.loads(file.read_text()).items()}


def training(adapters: Path) -> pd.DataFrame:
    """What every adapter of a folder was trained on, and its held-out rows before and after."""
    lines = {}
    for task, story in _stories(adapters).items():
        recipe, (first, kept) = story["recipe"], _ends(story)
        accuracies = (first["accuracy"], kept["accuracy"])  # CoQA has none
        lines[TITLES[task]] = {
            "examples × epochs": f"{recipe['rows']:,} × {recipe['epochs']}",
            "learning rate": f"{recipe['learning_rate']:g}",
            "seed": str(recipe["seed"]),
            "minutes": f"{story['seconds'] / 60:.0f}",
            "validation examples": str(story["held_out_rows"]),
            "validation loss": "{:.3f} → {:.3f}".format(first["loss"], kept["loss"]),
            "validation accuracy": "-"
            if None in accuracies
            else "{:.3f} → {:.3f}".format(*accuracies),
        }
    return pd.DataFrame(lines).T.rename_axis("adapter")


def unlearnt() -> str:
    """The adapters after whose training no more held-out rows are right than before."""
    stories = _stories(paths.ADAPTERS)
    ends = {TITLES[t]: [e["accuracy"] for e in _ends(s)] for t, s in stories.items()}
    return ", ".join(t for t, (a, b) in ends.items() if a is not None and b <= a) or "none"


def _stories(adapters: Path) -> dict[str, dict]:
    files = {task: adapters / task / "training.json" for task in TASKS}
    return {task: json.loads(f.read_text()) for task, f in files.items() if f.is_file()}


def _ends(story: dict) -> tuple[dict, dict]:
    """What was checked before the first step, and at the checkpoint that was kept."""
    checks = story["held_out"]
    return checks[0], min(checks, key=lambda check: check["loss"])
