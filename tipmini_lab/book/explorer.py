"""What the two explorers show: stored results and layers' sizes, as data that their pages load.

A page asks for a setting, and is shown what is stored of it. Sparsities are computed in the page,
from the importances here, by Eqs. 3-5; sizes of pruned layers are read from a grid of sparsities.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

import tipmini as tm
from tipmini.errors import input_norm
from tipmini.methods.merge import Norms
from tipmini.methods.table import METHODS, equal_weight, preset
from tipmini.methods.tip import tip_importance, tip_layers
from tipmini.papers.tip import layer_sparsity, prune_scored
from tipmini_lab import paths
from tipmini_lab.book import explorer_pruning, figures
from tipmini_lab.book.method_tables import unbounded_sparsity
from tipmini_lab.book.tables import TITLES, variant_cells
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.catalogue import UNMERGED, Inputs, catalogue
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import store
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import accuracy, difference
from tipmini_lab.results.store import Bundle

PROFILES = ("mini", "full")
STEPS = 4  # of the sparsity, between two at which another column of B goes
# The methods that can be asked for, in the order of the list: the name that a stored merge has by
# its method and options, and its title.
METHODS_SHOWN = {
    "tip": "TIP",
    "tip-cat": "TIP, exact sum",
    "linear": "Linear",
    "cat": "task arithmetic",
    "svd": "task arithmetic, rank 8",
    "dare": "DARE",
    "dare-delta": "DARE on the updates",
    "ties": "TIES",
    "dare_ties": "DARE-TIES",
    "magnitude": "magnitude pruning",
    "regmean": "RegMean",
    "knots": "KnOTS",
}
LAYERWISE = ("tip", "tip-cat")  # that have S_org, sign and range


def write(folder: Path) -> None:
    """The data of both pages, each as a script: a page opened as a file may not read another."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in {"merging": merging(), "pruning": explorer_pruning.pruning()}.items():
        content = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        (folder / f"data-{name}.js").write_text(f"const EXPLORER_DATA = {content};\n")


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
        "default": {"sparsity": profiles["mini"].base_sparsity, "adapters": len(adapters)},
        "methods": {
            name: {"title": title, "layerwise": name in LAYERWISE}
            for name, title in METHODS_SHOWN.items()
        },
        "profiles": {name: stored(profile) for name, profile in profiles.items()},
    }


def _adapters() -> dict[str, tuple[tm.LoraAdapter, Norms]]:
    """{task: its adapter, and the norms of what its modules read}."""
    profile = load_profile("mini")
    return {
        t: (
            tm.load_adapter(paths.ADAPTERS / t),
            load_file(profile.store / "norms" / f"{t}.safetensors"),
        )
        for t in profile.tasks
    }


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


def stored(profile: Profile) -> dict:
    """What can be asked for of a profile: accuracies with standard errors, of rows side by side."""
    cells, tasks = variant_cells(profile), profile.tasks
    rows = wide(cells)
    scores = lambda name, on: {t: list(_rounded(*accuracy(cells[name, t].values))) for t in on}  # noqa: E731
    found: dict[tuple, dict] = {}
    for bundle in _bundles(profile):
        setting = asked(bundle, profile)
        own = tasks[: setting["adapters"]] if setting else ()
        if any(cells[bundle.name, t].metric != METRIC[t] for t in own):
            continue
        if setting and (key := tuple(setting.values())) not in found:
            found[key] = setting | {
                "title": catalogue().variants[bundle.name].title,
                "accuracy": scores(bundle.name, own),
                "beside_base": _rounded(*difference(rows, bundle.name, "base", own)),
                "size": round(bundle.facts["norm"] / bundle.facts["sum"], 3),
            }
    return {
        "rows": {task: cells["base", task].count for task in tasks},
        "dtype": cells["base", tasks[0]].dtype,
        "alone": {name: scores(name, tasks) for name in UNMERGED},
        "merges": list(found.values()),
    }


def _rounded(*values: float) -> list[float]:
    return [round(value, 5) for value in values]


def _bundles(profile: Profile) -> Iterator[Bundle]:
    """Stored merges in the order they are declared in: the plainest of a setting comes first."""
    for name in catalogue().variants:
        bundle = store.read(profile.variant_store, name)
        if bundle and bundle.settings["method"] not in UNMERGED:
            yield bundle


def asked(bundle: Bundle, profile: Profile) -> dict | None:
    """The page's setting that a stored merge is of; None where it differs in anything else."""
    made = bundle.settings
    merged, weights = tuple(made["adapters"]), made["weights"]
    if (
        Inputs(**made["inputs"]) != Inputs()
        or made["norm_of"]
        or made["seed"] != profile.seed
        or merged != profile.tasks[: len(merged)]
        or isinstance(weights, dict)
        or weights == "learnt"
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
    weight = equal_weight(weights, len(merged)) if isinstance(weights, str) else weights
    return {"method": method, **layers, "adapters": len(merged), "weight": round(weight, 6)}


# The pages themselves -----------------------------------------------------------------------------


def page_values() -> dict[str, str]:
    """How often each sign prunes the most important layer whole, or leaves it whole."""
    every, s_org = importances(), load_profile("mini").base_sparsity
    at_most = {
        sign: [float(layer_sparsity(i, s_org, sign=sign)[i.argmax()]) for i in every.values()]
        for sign in (1, -1)
    }
    return {
        "explorer_removed": f"{at_most[1].count(1)} of {len(every)}",
        "explorer_kept": f"{at_most[-1].count(0)} of {len(every)}",
    }


def pictures() -> dict[str, Figure]:
    """What the pages show where scripts don't run."""
    s_org = load_profile("mini").base_sparsity
    shown = {TITLES[t]: unbounded_sparsity(i, s_org) for t, i in importances().items()}
    return {
        "explorer": figures.sparsity_panels(shown, s_org),
        "explorer_pruning": explorer_pruning.picture(),
    }
