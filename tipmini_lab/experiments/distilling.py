r"""Distillation: one adapter that answers as each task's own adapter does on its own rows.

What is learnt on R (`agreeing`), without labels, is either all factors of a merged adapter, or few
coefficients of the adapters' exact sum (`coefficients`). A control is the same run from an adapter
that knows nothing (start=None).

Teaching a merged model its experts' outputs on few unlabelled rows is that of ProDistill (Xu et
al., ICML 2025), which goes layer by layer; end to end by R, with its weights, is ours.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.weighting import adapter_digest
from tipmini.models.lowrank import truncate
from tipmini.models.peft_folder import WEIGHTS
from tipmini.models.sealed import sealed
from tipmini_lab.experiments.agreeing import Agreeing, DistillRecipe
from tipmini_lab.experiments.training import add_lora, by_module, named_factors
from tipmini_lab.experiments.weighing import refuse_other_bases
from tipmini_lab.results import checked, digests, store

Facts = dict[str, float | list[float]]
MERGED, OWN = "default", "own"  # PEFT's names of the adapter that is learnt, and of a task's
STORY = "distilled.json"  # beside the adapter, how it was made


class Distilling(Agreeing):
    """All factors of one adapter are learnt.

    model: a frozen base with eager attention, whose layers are wrapped. adapters: one a task.
    start: a merge of them, cut to the recipe's rank by an SVD, or `masked` of no higher rank, since
    that would move its zeros; None: A drawn from the seed, B = 0. More as `Agreeing`'s.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        adapters: Mapping[str, tm.LoraAdapter],
        start: tm.LoraAdapter | None,
        recipe: DistillRecipe,
        saved: Path,
        **given,
    ):
        super().__init__(tokenizer, adapters, recipe, saved, **given)
        self.start = start
        refuse_other_bases(model, adapters)
        modules = sorted({module for each in adapters.values() for module in each.modules})
        self.peft = add_lora(model, recipe.rank, recipe.rank, modules, recipe.seed, light=True)
        self.model = self.peft.get_base_model()
        top = max(start.ranks.values()) if start else 0
        if recipe.masked and not 0 < top <= recipe.rank:
            raise TipminiError(f"a masked start has a rank up to {recipe.rank}, not {top}")
        if start:
            cut = start if recipe.masked else start.map(lambda _, pair: truncate(pair, recipe.rank))
            _fill(self.peft, MERGED, cut)
        self.factors = named_factors(self.peft)
        for each in self.factors.values() if recipe.masked else ():
            each.register_hook((each != 0).mul)  # AdamW leaves a number where it is without decay
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)

    def identity(self) -> str:
        return digests.digest([super().identity(), self.start and adapter_digest(self.start)])

    @contextmanager
    def alone(self, task: str) -> Iterator[None]:
        adapter = self.adapters[task]
        rank, modules = max(adapter.ranks.values()), adapter.modules
        self.peft.add_adapter(OWN, LoraConfig(r=rank, lora_alpha=rank, target_modules=modules))
        _fill(self.peft, OWN, adapter)
        self.peft.set_adapter(OWN)
        try:
            yield
        finally:
            self.peft.set_adapter(MERGED)
            self.peft.delete_adapter(OWN)

    def bare(self) -> AbstractContextManager:
        return self.peft.disable_adapter()

    def found(self, factors: Mapping[str, Tensor]) -> tm.LoraAdapter:
        first = next(iter(self.adapters.values()))
        return tm.LoraAdapter(by_module(factors, 1.0), base_model=first.base_model)


def start_of(adapters: Mapping[str, tm.LoraAdapter]) -> tm.LoraAdapter:
    """The recommended merge; of ranks that differ, which it refuses, twice the mean, exactly: of
    two to seven adapters not far from the best weight for a sum on validation rows."""
    ranks = {tuple(sorted(each.ranks.items())) for each in adapters.values()}
    exact = len(ranks) > 1
    return tm.merge(adapters, "cat", weights="2/T") if exact else tm.merge(adapters, "recommended")


def _fill(peft: nn.Module, name: str, adapter: tm.LoraAdapter) -> None:
    """Put an adapter's factors into PEFT's of a name, whose rank is no smaller.

    A's further rows stay as PEFT draws them, B's further columns 0, so that nothing is added.
    """
    layers = dict(peft.get_base_model().named_modules())
    with torch.no_grad():
        for module, pair in adapter.factors.items():
            a, b = (getattr(layers[module], f"lora_{x}")[name].weight for x in "AB")
            a[: pair.rank] = pair.a
            b.zero_()[:, : pair.rank] = pair.b * pair.scaling


def kept(run: Agreeing, places: Sequence[Path]) -> Path:
    """The one of the places, PEFT folders, that has what the very same run found; else it is run
    now and written to the last, with its story beside it."""
    identity = run.identity()
    for folder in places:
        told = json.loads(checked.text(folder / STORY) or "{}")
        if told.get("identity") == identity and checked.is_whole(folder / WEIGHTS):
            return folder
    found, folder = run.run(), places[-1]
    (folder / STORY).unlink(missing_ok=True)
    found.save(folder, torch.float16)
    store.write(folder / STORY, sealed(json.dumps(run.story())))
    run.saved.unlink(missing_ok=True)
    return folder


def facts(folder: Path) -> Facts:
    """Of a story: its seconds, steps and threads, and the most bytes that its process held; R on
    the rows to stop by, at the start and wherever it was looked at; by task, in order, how far the
    base is off on the first rows learnt of (of labels, how far the adapter lowers its loss) and
    what the best leaves on those to stop by; and of coefficients the `interference`, row by row, 0
    with itself."""
    story = json.loads(checked.text(folder / STORY))
    scores, names = story["stopping"], list(story["base"])
    best = min(scores, key=lambda score: score["R"])
    found: Facts = {"seconds": round(story["seconds"], 1), "steps": len(story["loss"])}
    found |= {
        "threads": story["threads"],
        "memory": story["memory"],
        "R": [score["R"] for score in scores],
    }
    found |= {"base": [story["base"][task] for task in names]}
    found |= {"left": [best["divergence"][task] for task in names]}
    if every := story.get("interference"):
        found["interference"] = [every[t].get(o, 0.0) for t, o in product(names, repeat=2)]
    return found
