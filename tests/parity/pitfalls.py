"""Where PEFT's add_weighted_adapter surprises: what happens there, and what tipmini does instead.

Each of the two sides tells in words what it saw when it was tried.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import tipmini as tm
from tests.parity.inputs import QUERY, VALUE, Inputs
from tests.parity.theirs import add_weighted, llama, peft_model_of, write_folder
from tipmini.models.adapter import LoraAdapter

GIVEN = Inputs(seed=0, shape=(40, 40), rank=5, weights=(1.0, 0.5))
OTHER_RANK = Inputs(seed=1, shape=(40, 40), rank=2)


def attempt(work: Callable[[], str]) -> str:
    """What `work` tells, or the first line of the error that it ends in."""
    try:
        return work()
    except (TypeError, ValueError, RuntimeError) as error:
        line = re.sub(r"\S+/(\S+: )", r"\1", str(error).splitlines()[0])  # of a file its name alone
        return f"{type(error).__name__}: {line}"


def combined(
    adapters: dict[str, LoraAdapter], combination: str, given: Inputs = GIVEN
) -> torch.nn.Module:
    """PEFT's layer of the query after the merge."""
    model = peft_model_of(adapters)
    add_weighted(model, given, combination)
    return model.get_base_model().get_submodule(QUERY)


def merged(adapters: object = None, method: str = "dare", **options: object) -> LoraAdapter:
    return tm.merge(adapters or GIVEN.adapters, method, weights=GIVEN.weight, **options)


# One pair of functions for each pitfall ----------------------------------------------------------


def their_density(density: float | None) -> str:
    layer = combined(GIVEN.adapters, "dare_linear", replace(GIVEN, density=density))
    return "every element is NaN" if layer.lora_A["dare_linear"].weight.isnan().all() else "merged"


def our_density(drop_rate: float | None) -> str:
    merged(drop_rate=drop_rate)
    return "merged"


def unequal() -> dict[str, LoraAdapter]:
    first, second = GIVEN.names
    return {first: GIVEN.adapters[first], second: OTHER_RANK.adapters[second]}


def their_unequal_ranks() -> str:
    return f"rank {combined(unequal(), 'dare_linear').r['dare_linear']}"


def our_unequal_ranks() -> str:
    return f"merged into rank {merged(unequal(), summation='cat').ranks[QUERY]}"


def their_name_again() -> str:
    model = peft_model_of(GIVEN.adapters)
    layer = model.get_base_model().get_submodule(QUERY)
    add_weighted(model, GIVEN, "linear")
    before = layer.lora_A["linear"].weight.clone()
    add_weighted(model, replace(GIVEN, weights=(1.0, -0.5)), "linear")
    same = torch.equal(layer.lora_A["linear"].weight, before)
    return "returns, and the adapter is the old one" if same else "merged"


def our_name_again() -> str:
    """Saves two merges under one name and reads what is there."""
    with tempfile.TemporaryDirectory() as parent:
        for weights in ([1.0, 0.5], [1.0, -0.5]):
            new = tm.merge(list(GIVEN.adapters.values()), "linear", weights=weights)
            new.save(Path(parent) / "merged")
        stored = tm.load_adapter(Path(parent) / "merged")
    same = torch.equal(stored.factors[QUERY].a, new.factors[QUERY].a)
    return "the folder holds the new one" if same else "the folder holds the old one"


def with_pattern() -> dict[str, LoraAdapter]:
    """Adapters whose value has another rank than their query."""

    def mixed(name: str) -> LoraAdapter:
        query, value = GIVEN.adapters[name].factors[QUERY], OTHER_RANK.adapters[name].factors[VALUE]
        return LoraAdapter({QUERY: query, VALUE: value})

    return {name: mixed(name) for name in GIVEN.names}


def reloaded(folder: Path) -> str:
    from peft import PeftModel

    PeftModel.from_pretrained(llama(GIVEN.shape[1]), folder)
    return "loads again"


def their_pattern() -> str:
    model = peft_model_of(with_pattern())
    add_weighted(model, GIVEN, "linear")
    with tempfile.TemporaryDirectory() as parent:
        model.save_pretrained(parent, selected_adapters=["linear"])
        return reloaded(Path(parent) / "linear")


def our_pattern() -> str:
    with tempfile.TemporaryDirectory() as parent:
        merged(with_pattern(), "linear").save(Path(parent) / "merged")
        return reloaded(Path(parent) / "merged")


def their_dora() -> str:
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


def our_dora() -> str:
    with tempfile.TemporaryDirectory() as parent:
        adapter = GIVEN.adapters[GIVEN.names[0]]
        tm.load_adapter(write_folder(adapter, Path(parent) / "dora", use_dora=True))
    return "loaded"


def their_rslora() -> str:
    root = GIVEN.rank**0.5
    model = peft_model_of(
        {name: replace(a, factors=_scaled(a, 1.0)) for name, a in GIVEN.adapters.items()},
        **{"use_rslora": True, "lora_alpha": root},  # a scaling of 1
    )
    add_weighted(model, GIVEN, "linear")
    layer = model.get_base_model().get_submodule(QUERY)
    return f"the scaling of the result is {layer.scaling['linear']:.3f}"


def our_rslora() -> str:
    with tempfile.TemporaryDirectory() as parent:
        adapters = {}
        for name, adapter in GIVEN.adapters.items():
            config = {"use_rslora": True, "lora_alpha": GIVEN.rank**0.5}
            adapters[name] = tm.load_adapter(write_folder(adapter, Path(parent) / name, **config))
    scaling = merged(adapters, "linear").scaling[QUERY]
    return f"the scaling of the result is {scaling:.3f}"


def _scaled(adapter: LoraAdapter, scaling: float) -> dict:
    return {m: replace(factors, scaling=scaling) for m, factors in adapter.factors.items()}


# (situation, what PEFT does, the call of ours, what tipmini does, our policy)
PITFALLS: tuple[tuple[str, Callable[[], str], str, Callable[[], str], str], ...] = (
    (
        *("'dare_linear', density=None", lambda: their_density(None)),
        *("dare(drop_rate=None)", lambda: our_density(None)),
        "a density has a default; what is no number in range is refused in one line",
    ),
    (
        *("'dare_linear', density=0", lambda: their_density(0.0)),
        *("dare(drop_rate=1.0)", lambda: our_density(1.0)),
        "at drop rate 1 nothing is left to rescale, so it is refused",
    ),
    (
        *("'dare_linear', ranks 5 and 2", their_unequal_ranks),
        *("dare(summation='cat')", our_unequal_ranks),
        "only sums of factors need equal ranks; cat, svd and on='delta' take any",
    ),
    (
        *("a name that exists", their_name_again),
        *("save", our_name_again),
        "a merge is a new adapter, and saving it replaces the folder's or fails aloud",
    ),
    (
        *("'linear' with a rank_pattern, saved", their_pattern),
        *("linear().save", our_pattern),
        "the result is written with a rank_pattern of its own",
    ),
    (
        *("'linear' of DoRA adapters", their_dora),
        *("load_adapter", our_dora),
        "magnitudes have no sum of this kind, so DoRA is refused",
    ),
    (
        *("'linear' of rsLoRA adapters", their_rslora),
        *("linear()", our_rslora),
        "a merge has scaling 1; PEFT's inherits rsLoRA and grows by the root of its rank",
    ),
)
