"""A super-network of elastic adapters: its layers, its space, and weight-shared training.

One training run holds the weights of every sub-adapter: each step draws one configuration, applies
it to all layers before the forward pass, and trains what it is made of. A sub-adapter is then
looked at without further training.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError, require
from tipmini.masks import row_mask, semi_structured_mask
from tipmini.methods import pruner
from tipmini.methods.groups import CHANNELS, find_families
from tipmini.methods.subadapter import Grid, merged, subadapter
from tipmini.models import int4
from tipmini.models.factors import LoraFactors
from tipmini.papers.elastic import (
    channel_slice,
    frozen_output,
    midpoint,
    on_grid,
    operations,
    rank_slice,
)
from tipmini.papers.tip import wanda_score
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import keep_memory, load_base, load_tokenizer
from tipmini_lab.experiments.pruning import TARGETS
from tipmini_lab.experiments.training import (
    LoraLinear,
    LowRankSum,
    Resumable,
    by_module,
    learning_rate,
    named_factors,
    schedule,
)
from tipmini_lab.experiments.tuning import temperature
from tipmini_lab.results import digests, store

FORMS = {"beside": None, "sparse": "sparse", "grid": "grid"}  # how an adapter is trained
ORDERS = ("wanda", "lora-guided", "magnitude")  # importances that channels are ordered by
SEMI = "2:4"


@dataclass(frozen=True)
class NetworkRecipe:
    """How a base is made sparse and small in its numbers, and an elastic adapter is trained on it.

    ranks, widths: the values of the elastic axes; one value each is plain LoRA. sparsity: share of
    Wanda's zeros in every row of the attention and MLP matrices, or "2:4". int4: the base lies on
    a grid of 4 bits. form: the adapter is computed "beside" the weights, or in them by SparsePEFT
    ("sparse") or QA-SparsePEFT ("grid"). order: which channels come first, where widths differ.
    """

    ranks: tuple[int, ...] = (16, 12, 8)
    widths: tuple[float, ...] = (1.0,)
    sparsity: float | str | None = None
    int4: bool = False
    form: str = "beside"
    order: str = "wanda"
    scaling: float = 2.0  # alpha / r of the whole adapter
    rows: Mapping[str, int] | None = None  # train rows of each task
    held_out: int = 32  # the train rows after those, of each task: the search looks at them
    calibration: int = 64  # rows of all tasks that Wanda's norms and the order are measured on
    epochs: int = 1
    batch: int = 16
    tokens: int = 2048  # padded tokens of one forward pass; a step accumulates several
    learning_rate: float = 1e-3
    warmup: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        require("form", self.form, FORMS)
        require("order", self.order, ORDERS)
        if self.form == "grid" and not self.int4:
            raise TipminiError("form grid needs a base on a grid; set int4")
        if self.form != "beside" and len(self.widths) > 1:
            raise TipminiError(f"form {self.form}: its mask is of whole weights; give one width")


# Layers and the space of their configurations -----------------------------------------------------
class ElasticLinear(LoraLinear):
    """PEFT's layer, of whose factors and weight the slices of now are computed with.

    Set before a pass and never inside it, since recomputing would take another configuration.
    rank: of now, 0 leaves the adapter out. rows, columns: channels that stay, None: all. form,
    grid: how the adapter is merged while it is trained. fixed: a merged weight, computed with as
    it is.
    """

    rank_now: int | None = None
    rows: int | None = None
    columns: int | None = None
    form: str | None = None
    grid: Grid | None = None
    fixed: Tensor | None = None

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.fixed is not None:
            return frozen_output(x, self.fixed)
        weight, pair = self.now()
        if pair is None:
            return frozen_output(x, weight)
        if self.form is None:
            told = (x, pair.a, pair.b, pair.scaling)
            return LowRankSum.apply(frozen_output(x, weight), *told)
        exact = merged(weight, pair, "sparse")
        if self.form == "grid":  # rounding has no slope: gradients pass it by
            exact = exact + (on_grid(exact.detach(), *self.grid) - exact.detach())
        return frozen_output(x, exact)

    def now(self) -> tuple[Tensor, LoraFactors | None]:
        """The slices of the weight and of the factors."""
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        weight, a, b = channel_slice(self.base_layer.weight, a, b, self.rows, self.columns)
        if self.rank_now == 0:
            return weight, None
        a, b = rank_slice(a, b, self.rank_now or len(a))
        return weight, LoraFactors(a, b, self.scaling[name])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(d, k, r) of now; r = 0 where no adapter is computed beside the weight."""
        weight, pair = self.now()
        beside = pair is not None and self.form is None and self.fixed is None
        return *weight.shape, pair.rank if beside else 0


Configuration = tuple[float, ...]  # a value for every axis


class Space:
    """The configurations: of every layer the rank in its attention and in its MLP, and a width.

    Axes stand in the order of the layers, three a layer; values of an axis from the largest on.
    """

    def __init__(self, layers: int, ranks: Sequence[int], widths: Sequence[float]):
        ranks, widths = (sorted(values, reverse=True) for values in (ranks, widths))
        self.axes = [axis for _ in range(layers) for axis in (ranks, ranks, widths)]

    def sample(self, generator: torch.Generator) -> Configuration:
        """Every axis by itself, each of its values alike."""
        drawn = torch.rand(len(self.axes), generator=generator).tolist()
        return tuple(axis[int(d * len(axis))] for axis, d in zip(self.axes, drawn, strict=True))

    def ends(self) -> dict[str, Configuration]:
        """What is taken without searching: the largest, the midpoint (Eq. 8), the smallest."""
        chosen: dict[str, Callable] = {"whole": max, "midpoint": midpoint, "smallest": min}
        return {name: tuple(map(take, self.axes)) for name, take in chosen.items()}

    @property
    def free(self) -> list[int]:
        """The axes of more than one value."""
        return [number for number, axis in enumerate(self.axes) if len(axis) > 1]


# Weight-shared training ---------------------------------------------------------------------------
class SuperNet(Resumable):
    """One super-network of a local model folder, trained or to be trained, in one folder `out`."""

    def __init__(self, base: Path, recipe: NetworkRecipe, out: Path, dtype: str = "float32"):
        keep_memory()
        self.recipe, self.out, self.tokens = recipe, out, recipe.tokens
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        self.tokenizer = load_tokenizer(base)
        self._read_rows()
        model = load_base(base, dtype, attention="eager")
        self.families = [f for f in find_families(model) if f.kind == CHANNELS]
        self.modules = [m.module for f in find_families(model) for m in f.members]
        narrow = min(recipe.widths) < 1
        self.norms = self._norms(model) if recipe.sparsity or narrow else {}
        self.grids: dict[str, Grid] = {}
        for module in self.modules:
            self._prepare(module, model.get_submodule(module))
        self.peft = _with_elastic(model, recipe)
        self.model = self.peft.get_base_model()
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, ElasticLinear)}
        for name, layer in self.layers.items():
            layer.form, layer.grid = FORMS[recipe.form], self.grids.get(name)
        self.space = Space(len(self.model.model.layers), recipe.ranks, recipe.widths)
        self.factors = named_factors(self.peft)
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.log: dict = {"loss": [], "seconds": 0.0, "temperature": {}}
        self.orders: dict[str, Tensor] = {}
        if narrow:
            self._order_channels()

    def _read_rows(self) -> None:
        """Train rows of all tasks as (task, example), and by task what the search looks at."""
        self.train, self.held_out = [], {}
        for task, count in self.recipe.rows.items():
            every = objective.examples(task, self.tokenizer, count + self.recipe.held_out)
            known = {tuple(example.content) for example in every[:count]}
            self.train += [(task, example) for example in every[:count]]
            self.held_out[task] = [e for e in every[count:] if tuple(e.content) not in known]
        self.steps = schedule(
            len(self.train), self.recipe.epochs, self.recipe.batch, self.recipe.seed
        )

    @cached_property
    def _plain(self) -> list[objective.Example]:
        told = (tuple(self.recipe.rows), self.recipe.calibration, 256, self.tokenizer)
        return objective.plain_examples(*told)

    def _norms(self, model: nn.Module) -> dict[str, Tensor]:
        return tm.calibrate(model, objective.padded(self._plain, self.tokens), self.modules)

    def _prepare(self, module: str, layer: nn.Linear) -> None:
        """The zeros of Shears, then the grid of SQFT: its zero point keeps them."""
        weight, sparsity = layer.weight.detach(), self.recipe.sparsity
        if sparsity:
            scores = wanda_score(weight, self.norms[module])
            keep = semi_structured_mask(scores) if sparsity == SEMI else row_mask(scores, sparsity)
            weight = torch.where(keep, weight, 0)
        if self.recipe.int4:
            self.grids[module] = int4.grid(weight)
            weight = on_grid(weight, *self.grids[module])
        layer.weight = nn.Parameter(weight, requires_grad=False)

    def _order_channels(self) -> None:
        """The most important channels first, in every MLP; the model computes the same."""
        if self.recipe.order == "lora-guided":
            self.backward(self._plain)
        told = {"norms": self.norms, "seed": self.recipe.seed}
        found = pruner.all_scores(self.model, self.families, self.recipe.order, **told)
        self.model.zero_grad()
        for family in self.families:
            order = found[family.name].argsort(descending=True, stable=True)
            self.orders[family.name] = order
            for module, dim in family.members:
                layer = self.layers[module].base_layer
                layer.weight = nn.Parameter(layer.weight.index_select(dim, order), False)

    # Configurations
    def apply(self, configuration: Configuration, adapter: bool = True) -> None:
        """Let all layers compute with a configuration; without its adapter where that is false."""
        for number, family in enumerate(self.families):
            attention, mlp, share = configuration[3 * number : 3 * number + 3]
            width = round(share * family.count) if share < 1 else None
            for name, layer in self._of_block(family.layer):
                inside = ".mlp." in name
                layer.fixed, layer.rank_now = None, int(mlp if inside else attention) * adapter
                layer.rows = width if inside and not name.endswith("down_proj") else None
                layer.columns = width if name.endswith("down_proj") else None

    def _of_block(self, number: int) -> Iterator[tuple[str, ElasticLinear]]:
        start = f"model.layers.{number}."
        return ((name, layer) for name, layer in self.layers.items() if name.startswith(start))

    @torch.no_grad()
    def merge(self, how: str) -> None:
        """Let all layers compute with their weight of now and the adapter in it: see `merged`."""
        for name, layer in self.layers.items():
            weight, pair = layer.now()
            layer.fixed = merged(weight, pair, how, self.grids.get(name))

    def facts(self) -> dict[str, float]:
        """Sizes of what the layers compute with now: parameters, those that are not 0, operations a
        token, and the share of zeros in the attention and MLP matrices."""
        inside = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        rest = sum(p.numel() for p in self.model.parameters() if id(p) not in inside)
        shapes = [layer.shape for layer in self.layers.values()]
        zeros, weights = 0, 0
        for layer in self.layers.values():
            weight = layer.now()[0] if layer.fixed is None else layer.fixed
            weights += weight.numel()
            zeros += int((weight == 0).sum())
        beside = sum(r * (d + k) for d, k, r in shapes)
        head = self.model.lm_head.weight.shape
        return {
            "parameters": rest + weights + beside,
            "nonzero": rest + weights - zeros + beside,
            "macs": operations([*shapes, (*head, 0)]),
            "sparsity": zeros / weights,
        }

    # Training
    def step(self, number: int) -> float:
        """One configuration is drawn, and trained on one batch."""
        generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + number)
        self.apply(self.space.sample(generator))
        batch, total = [self.train[i] for i in self.steps[number]], 0.0
        for task in dict.fromkeys(task for task, _ in batch):
            own = [example for name, example in batch if name == task]
            self.temperature = self.log["temperature"][task]
            total += self.backward(own, len(own) / len(batch))
        nn.utils.clip_grad_norm_(self.factors.values(), 1.0)
        self.update(learning_rate(self.recipe, number, len(self.steps)))
        return total

    def identity(self) -> str:
        told = [list(example.content) for _, example in self.train]
        return digests.digest([asdict(self.recipe), told, digests.code_digest(SuperNet)])

    @torch.no_grad()
    def _measure_temperatures(self) -> None:
        """So that the base's confidence fits its accuracy: see `objective`."""
        self.apply(self.space.ends()["whole"])
        for task, rows in self.held_out.items():
            self.log["temperature"][task] = temperature(self.model, task, rows, self.tokens)

    def run(self) -> "SuperNet":
        """Train it to the end, or read the trained factors where they are there."""
        if not (self.out / "training.json").is_file():
            done = self.resume()
            if not done:
                self._measure_temperatures()
            self.advance(done, len(self.steps), f"train {self.out.name}")
            self.adapter().save(self.out, torch.float32, overwrite=True)
            store.write(self.out / "training.json", json.dumps(self.made()) + "\n")
            self.saved.unlink(missing_ok=True)
        self.log = json.loads((self.out / "training.json").read_text())
        with torch.no_grad():
            for module, pair in tm.load_adapter(self.out).factors.items():
                (name,) = self.layers[module].active_adapters
                self.layers[module].lora_A[name].weight.copy_(pair.a)
                self.layers[module].lora_B[name].weight.copy_(pair.b)
        return self

    def adapter(self, configuration: Configuration | None = None) -> tm.LoraAdapter:
        """The whole adapter, or of mode A the sub-adapter of a configuration, for stock PEFT."""
        factors = by_module({n: p.detach() for n, p in self.factors.items()}, self.recipe.scaling)
        whole = tm.LoraAdapter(factors, base_model=str(self.model.name_or_path))
        if configuration is None:
            return whole
        self.apply(configuration)
        return subadapter(whole, {name: layer.rank_now for name, layer in self.layers.items()})

    # What the search looks at
    @torch.no_grad()
    def score(self, number: int = 0) -> float:
        """On the held-out rows, with what is applied now: the mean over tasks of the accuracy, or
        of conversations the likelihood of a token of their answers."""
        found = []
        for rows in self.held_out.values():
            if rows[0].gold is None:
                losses = [objective.losses(self.model, [row]).item() for row in rows]
                found.append(math.exp(-sum(losses) / len(losses)))
            else:
                best = objective.all_scores(self.model, rows, self.tokens).argmax(1)
                found.append((best == objective.gold(rows)).float().mean().item())
        return sum(found) / len(found)


def _with_elastic(base: nn.Module, recipe: NetworkRecipe) -> nn.Module:
    """A PeftModel with a new elastic adapter on all attention and MLP matrices: A drawn, B = 0."""
    torch.manual_seed(recipe.seed)  # PEFT draws A from the global generator
    rank = max(recipe.ranks)
    config = LoraConfig(
        r=rank,
        lora_alpha=recipe.scaling * rank,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({nn.Linear: ElasticLinear})
    return get_peft_model(base, config)
