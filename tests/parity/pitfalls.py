"""Where PEFT's add_weighted_adapter surprises: what happens there, and what tipmini does instead.

Each of the two sides is tried in a new folder, and tells in words what it saw.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import tipmini as tm
from tests.parity.inputs import QUERY, VALUE, Inputs
from tests.parity.theirs import add_weighted, llama, peft_model_of, write_folder
from tipmini.models.adapter import LoraAdapter

GIVEN = Inputs(seed=0, shape=(40, 40), rank=5, weights=(1.0, 0.5))
OTHER_RANK = Inputs(seed=1, shape=(40, 40), rank=2)
UNEQUAL = {n: i.adapters[n] for n, i in zip(GIVEN.names, (GIVEN, OTHER_RANK), strict=True)}
MIXED = {  # the value has another rank than the query
    name: LoraAdapter(adapter.factors | {VALUE: OTHER_RANK.adapters[name].factors[VALUE]})
    for name, adapter in GIVEN.adapters.items()
}
RSLORA = {"use_rslora": True, "lora_alpha": GIVEN.rank**0.5}  # a scaling of 1

Work = Callable[[Path], str]  # in a folder of its own


def attempt(work: Work) -> str:
    """What `work` tells, or the first line of the error that it ends in."""
    try:
        with tempfile.TemporaryDirectory() as parent:
            return work(Path(parent))
    except (TypeError, ValueError, RuntimeError) as error:
        line = re.sub(r"\S+/(\S+: )", r"\1", str(error).splitlines()[0])  # of a file its name alone
        return f"{type(error).__name__}: {line}"


def combined(model: torch.nn.Module, combination: str, given: Inputs = GIVEN) -> torch.nn.Module:
    """PEFT's layer of the query after the merge."""
    add_weighted(model, given, combination)
    return model.get_base_model().get_submodule(QUERY)


def merged(adapters: object = GIVEN.adapters, method: str = "dare", **options) -> LoraAdapter:
    return tm.merge(adapters, method, weights=GIVEN.weight, **options)


# One pair of functions for each pitfall ----------------------------------------------------------
def their_density(_: Path, density: float | None) -> str:
    given = replace(GIVEN, density=density)
    layer = combined(peft_model_of(GIVEN.adapters), "dare_linear", given)
    return "every element is NaN" if layer.lora_A["dare_linear"].weight.isnan().all() else "merged"


def our_density(_: Path, drop_rate: float | None) -> str:
    merged(drop_rate=drop_rate)
    return "merged"


def their_unequal_ranks(_: Path) -> str:
    return f"rank {combined(peft_model_of(UNEQUAL), 'dare_linear').r['dare_linear']}"


def our_unequal_ranks(_: Path) -> str:
    return f"merged into rank {merged(UNEQUAL, summation='cat').ranks[QUERY]}"


def their_name_again(_: Path) -> str:
    model = peft_model_of(GIVEN.adapters)
    before = combined(model, "linear").lora_A["linear"].weight.clone()
    after = combined(model, "linear", replace(GIVEN, weights=(1.0, -0.5)))
    same = torch.equal(after.lora_A["linear"].weight, before)
    return "returns, and the adapter is the old one" if same else "merged"


def our_name_again(parent: Path) -> str:
    """Saves two merges under one name and reads what is there."""
    for weights in ([1.0, 0.5], [1.0, -0.5]):
        new = tm.merge(list(GIVEN.adapters.values()), "linear", weights=weights)
        new.save(parent / "merged")
    stored = tm.load_adapter(parent / "merged")
    same = torch.equal(stored.factors[QUERY].a, new.factors[QUERY].a)
    return "the folder holds the new one" if same else "the folder holds the old one"


def reloaded(folder: Path) -> str:
    from peft import PeftModel

    PeftModel.from_pretrained(llama(GIVEN.shape[1]), folder)
    return "loads again"


def their_pattern(parent: Path) -> str:
    model = peft_model_of(MIXED)
    add_weighted(model, GIVEN, "linear")
    model.save_pretrained(parent, selected_adapters=["linear"])
    return reloaded(parent / "linear")


def our_pattern(parent: Path) -> str:
    merged(MIXED, "linear").save(parent / "merged")
    return reloaded(parent / "merged")


def their_dora(_: Path) -> str:
    """Magnitudes are doubled by hand, as if trained; are the merged ones?"""
    model = peft_model_of(GIVEN.adapters, use_dora=True)
    layer = model.get_base_model().get_submodule(QUERY)
    trained = layer.lora_magnitude_vector
    with torch.no_grad():
        for name in GIVEN.names:
            trained[name].weight *= 2
    add_weighted(model, GIVEN, "linear")
    fresh = torch.linalg.vector_norm(layer.base_layer.weight, dim=1)
    if torch.allclose(trained["linear"].weight, fresh):
        return "merged, with the magnitudes of the base model"
    return "merged, magnitudes and all"


def our_dora(parent: Path) -> str:
    adapter = GIVEN.adapters[GIVEN.names[0]]
    tm.load_adapter(write_folder(adapter, parent / "dora", use_dora=True))
    return "loaded"


def their_rslora(_: Path) -> str:
    plain = {
        name: replace(a, factors={m: replace(f, scaling=1.0) for m, f in a.factors.items()})
        for name, a in GIVEN.adapters.items()
    }
    layer = combined(peft_model_of(plain, **RSLORA), "linear")
    return f"the scaling of the result is {layer.scaling['linear']:.3f}"


def our_rslora(parent: Path) -> str:
    folders = {n: write_folder(a, parent / n, **RSLORA) for n, a in GIVEN.adapters.items()}
    result = merged({name: tm.load_adapter(folder) for name, folder in folders.items()}, "linear")
    return f"the scaling of the result is {result.scaling[QUERY]:.3f}"


# (situation, what PEFT does, the call of ours, what tipmini does, our policy)
PITFALLS: tuple[tuple[str, Work, str, Work, str], ...] = (
    (
        *("'dare_linear', density=None", partial(their_density, density=None)),
        *("dare(drop_rate=None)", partial(our_density, drop_rate=None)),
        "a density has a default; what is no number in range is refused in one line",
    ),
    (
        *("'dare_linear', density=0", partial(their_density, density=0.0)),
        *("dare(drop_rate=1.0)", partial(our_density, drop_rate=1.0)),
        "at drop rate 1 nothing is left to rescale, so it is refused",
    ),
    (
        *("'dare_linear', ranks 5 and 2", their_unequal_ranks),
        *("dare(summation='cat')", our_unequal_ranks),
        "only sums of factors need equal ranks; cat, svd and on='delta' take any",
    ),
    (
        *("a name that exists", their_name_again, "save", our_name_again),
        "a merge is a new adapter, and saving it replaces the folder's or fails aloud",
    ),
    (
        *("'linear' with a rank_pattern, saved", their_pattern, "linear().save", our_pattern),
        "the result is written with a rank_pattern of its own",
    ),
    (
        *("'linear' of DoRA adapters", their_dora, "load_adapter", our_dora),
        "magnitudes have no sum of this kind, so DoRA is refused",
    ),
    (
        *("'linear' of rsLoRA adapters", their_rslora, "linear()", our_rslora),
        "a merge has scaling 1; PEFT's inherits rsLoRA and grows by the root of its rank",
    ),
)
