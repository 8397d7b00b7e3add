"""What the two explorers show: stored results and layers' sizes, as data that their pages load.

A page asks for a setting, and is shown what is stored of it. Sparsities are computed in the page,
from the importances here, by Eqs. 3-5; sizes of pruned layers are read from a grid of sparsities.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import tipmini as tm
from tipmini.errors import input_norm
from tipmini.methods.merge import Norms
from tipmini.methods.table import BY_BLOCK, CHOSEN, METHODS, equal_weight, preset, total_over_norms
from tipmini.methods.tip import tip_importance, tip_layers
from tipmini.papers.tip import layer_sparsity, prune_scored
from tipmini_lab import paths
from tipmini_lab.book import explorer_pruning, figures
from tipmini_lab.book.method_tables import unbounded_sparsity
from tipmini_lab.book.tables import TITLES, variant_cells
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.catalogue import UNMERGED, WEIGHTS_TOLD, Inputs, catalogue
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.variants import TABLE_1
from tipmini_lab.results import checked, store
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import accuracy, difference

PROFILES = ("mini", "full")
STEPS = 4  # of the sparsity, between two at which another column of B goes
# What can be asked for: declared merges, with their usual options. Wanda is TIP without a shift.
METHODS_SHOWN = ("tip", "tip-cat", *(n for n in METHODS if n not in ("tip", "wanda")), "dare-delta")
LAYERWISE = ("tip", "tip-cat")  # that have S_org, sign and range


def write(folder: Path) -> None:
    """The data of both pages, each as a script: a page opened as a file may not read another."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in {"merging": merging(), "pruning": explorer_pruning.pruning()}.items():
        content = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        (folder / f"data-{name}.js").write_text(f"const EXPLORER_DATA = {content};\n")


@cache
def merging() -> dict:
    """Importances and sizes of every adapter's layers, and what is stored of merges."""
    profiles = {name: load_profile(name) for name in PROFILES}
    adapters, found = _adapters(), importances()
    first, _ = next(iter(adapters.values()))
    block = next(iter(tip_layers(first).values()))
    return {
        "tasks": {
            task: {
                "title": TITLES[task],
                "importance": found[task].tolist(),
                "sizes": layer_sizes(*adapters[task]),
            }
            for task in adapters
        },
        "shapes": [list(x.shape) for m in block for x in _tensors(first, m).values()],
        "rank": first.factors[block[0]].a.shape[0],
        "start": {"sparsity": profiles["mini"].base_sparsity},
        "methods": {
            name: {
                "title": title,
                "layerwise": name in LAYERWISE,
                "colour": figures.colour_of(title),
            }
            for name, title in ((n, catalogue().variant(n).title) for n in METHODS_SHOWN)
        },
        "colours": {TITLES[name]: figures.colour_of(TITLES[name]) for name in UNMERGED},
        "weights": weights(len(adapters)),
        "profiles": {name: stored(profile) for name, profile in profiles.items()},
    }


@cache
def _adapters() -> dict[str, tuple[tm.LoraAdapter, Norms]]:
    """{task: its adapter, and the norms of what its modules read}."""
    profile = load_profile("mini")
    return {
        t: (
            tm.load_adapter(paths.ADAPTERS / t),
            checked.load_file(profile.store / "norms" / f"{t}.safetensors"),
        )
        for t in profile.tasks
    }


@cache
def importances() -> dict[str, Tensor]:
    """{task: (L,)} of every adapter: TIP Eq. 2."""
    return {task: tip_importance(*both) for task, both in _adapters().items()}


# Sizes of layers ----------------------------------------------------------------------------------


def _tensors(adapter: tm.LoraAdapter, module: str) -> dict[str, Tensor]:
    return {"a": adapter.factors[module].a, "b": adapter.factors[module].b}


def sparsities(rank: int) -> list[float]:
    """Where sizes are computed: at each k of the rank's k / r, and on the way to the next.

    B has r columns, so that one more goes at each of these; the last on the way lies just below.
    """
    ways = [step / STEPS for step in range(STEPS)] + [1 - 1e-3]
    return [(k + way) / rank for k in range(rank) for way in ways]


def layer_sizes(adapter: tm.LoraAdapter, norms: Norms) -> list[list[float]]:
    r"""$\lVert s B A \rVert_F$ of every layer, pruned at each of the `sparsities`; 4 digits."""
    found = []
    for modules in tip_layers(adapter).values():
        squares = sum(_squares(adapter, module, norms) for module in modules)
        found.append([float(f"{size:.4g}") for size in squares.sqrt().tolist()])
    return found


def _squares(adapter: tm.LoraAdapter, module: str, norms: Norms) -> Tensor:
    r"""$\lVert s B A \rVert_F^2 = s^2 \langle B^\top B, A A^\top \rangle$ of one module."""
    grams = {}
    pair = adapter.factors[module]
    for name, tensor in _tensors(adapter, module).items():
        norm = input_norm(norms, module, name, tensor.shape[1])
        pruned = [prune_scored(tensor, norm, s).double() for s in sparsities(pair.a.shape[0])]
        each = torch.stack(pruned if name == "a" else [b.T for b in pruned])
        grams[name] = each @ each.mT
    return pair.scaling**2 * (grams["a"] * grams["b"]).sum((1, 2))


# Stored merges ------------------------------------------------------------------------------------


def weights(most: int) -> list[dict]:
    """What each adapter can be multiplied by: {name, as told, and the number of 2 to `most`}."""
    swept = next(s for s in catalogue().groups["sweeps"].sweeps if s.name == "weight").values
    shares = sorted({rule for rule in CHOSEN.values() if rule.endswith("/T")} - {"1/T"})
    rules = {"sum": "1 (a plain sum)", **WEIGHTS_TOLD, **{rule: rule for rule in shares}}
    numbers = [value for value in swept if not isinstance(value, str) and value != 1]
    counts = range(2, most + 1)
    found = [
        {"name": rule, "told": told, "of": {n: equal_weight(rule, n) for n in counts}}
        for rule, told in rules.items()
    ]
    return found + [
        {"name": f"{w:g}", "told": f"{w:g}", "of": dict.fromkeys(counts, w)} for w in numbers
    ]


def stored(profile: Profile) -> dict:
    """What can be asked for of a profile: accuracies with standard errors, of rows side by side.

    Nothing, until Base and Single are stored, which every merge is shown beside.
    """
    cells, tasks = variant_cells(profile), profile.tasks
    if not all((name, task) in cells for name in UNMERGED for task in tasks):
        return {"rows": {}, "alone": {}, "merges": []}
    rows = wide(cells)
    scores = lambda name, on: {t: list(_rounded(*accuracy(cells[name, t].values))) for t in on}  # noqa: E731
    found: dict[tuple, dict] = {}
    for name, settings, facts in _merges(profile):
        setting = asked(settings, profile)
        own = tasks[: setting["adapters"]] if setting else ()
        there = all((name, t) in cells and cells[name, t].metric == METRIC[t] for t in own)
        if setting and there and (key := tuple(setting.values())) not in found:
            found[key] = setting | {
                "name": name,
                "accuracy": [*scores(name, own).values()],  # a page is light without their names
                "beside_base": _rounded(*difference(rows, name, "base", own)),
                "size": round(facts["norm"] / facts["sum"], 3) if facts else None,
            }
    return {
        "rows": {task: cells["base", task].count for task in tasks},
        "alone": {name: scores(name, tasks) for name in UNMERGED},
        "merges": list(found.values()),
    }


def _rounded(*values: float) -> list[float]:
    return [round(value, 5) for value in values]


def _merges(profile: Profile) -> Iterator[tuple[str, dict, dict]]:
    """Name, settings and facts of every declared merge that may be stored.

    In the order they are declared in: the plainest of a setting comes first. The paper's methods
    can be stored without a bundle; they are as they are declared.
    """
    known = catalogue()
    for name in (*known.variants, *known.choices):
        if bundle := store.read(profile.variant_store, name):
            yield name, bundle.settings, bundle.facts
        elif name in TABLE_1:
            yield name, known.variant(name).settings(), {}


def asked(made: dict, profile: Profile) -> dict | None:
    """The page's setting that a merge is of; None where it differs in anything else.

    made: its settings, as they are stored.
    """
    merged, given = tuple(made["adapters"] or profile.tasks), made["weights"]
    if (
        made["method"] in UNMERGED
        or Inputs(**made["inputs"]) != Inputs()
        or made["norm_of"]
        or made.get("distill")  # which a merge that is not goes without
        or made["seed"] not in (None, profile.seed)
        or merged != profile.tasks[: len(merged)]
        or isinstance(given, dict)
        or given == "learnt"
        or (isinstance(given, str) and total_over_norms(given))
        or made["method"] in BY_BLOCK
    ):
        return None
    chosen = preset(made["method"])
    usual = METHODS[chosen.method].options
    usual = usual | {"sparsity": profile.base_sparsity, "drop_rate": profile.drop_rate}
    options = chosen.options | made["options"]
    options = {name: value for name, value in options.items() if value != usual.get(name)}
    method, layers = chosen.method, dict.fromkeys(("sparsity", "sign", "range"))
    if method in ("tip", "wanda"):
        layers["sparsity"] = options.pop("sparsity", profile.base_sparsity)
        layers["sign"] = options.pop("sign", 1)
        # Wanda has one sparsity for all layers, which is TIP with a shift of 0.
        layers["range"] = 0 if method == "wanda" else options.pop("shift_range", 1.0)
        method = "tip"
    if method == "tip" and options == {"summation": "cat"}:
        method = "tip-cat"
    elif method == "dare" and options.keys() == {"on", "rank"}:
        method = "dare-delta"
    elif options or method not in METHODS_SHOWN:
        return None
    weight = equal_weight(given, len(merged)) if isinstance(given, str) else given
    return {"method": method, **layers, "adapters": len(merged), "weight": round(weight, 6)}


# The pages themselves -----------------------------------------------------------------------------


def page_values() -> dict[str, str]:
    """What either sign does to the most important layer of every adapter."""
    every, s_org = importances(), load_profile("mini").base_sparsity
    pruned, kept = (
        [float(layer_sparsity(i, s_org, sign=sign)[i.argmax()]) for i in every.values()]
        for sign in (1, -1)
    )
    return {
        "explorer_removed": f"{pruned.count(1)} of {len(every)}",
        "explorer_kept": f"{min(kept):.2f} to {max(kept):.2f}",
    }


def pictures() -> dict[str, Figure]:
    """What the pages show where scripts don't run."""
    s_org = load_profile("mini").base_sparsity
    shown = {TITLES[t]: unbounded_sparsity(i, s_org) for t, i in importances().items()}
    return {
        "explorer": figures.sparsity_panels(shown, s_org),
        "explorer_pruning": explorer_pruning.picture(),
    }
