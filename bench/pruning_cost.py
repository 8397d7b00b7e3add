"""What a criterion's step costs, whether masks agree, and how fast a pruned model is."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from bench import timing
from bench.serving import LAST, prompts
from tipmini.methods import pruner
from tipmini.methods.criteria import REDUCTIONS
from tipmini.methods.groups import CHANNELS, Family, find_families, quotas, removed_share
from tipmini.methods.removal import save_pruned
from tipmini.models.base_folder import open_base
from tipmini.models.int8 import to_int8
from tipmini.papers.loraprune import share_mask
from tipmini_lab.book.pruning_costs import RECOMPUTED
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import load_base, recompute
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.experiments.pruning import TARGETS, families_of
from tipmini_lab.experiments.training import add_lora

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # for which masks are compared
WARM = 16  # rows of a step that is not timed
SIDES = {  # criterion of each side, whether its base is in 8 bits, whether it recomputes
    f"{name}{suffix}": (name.removesuffix(" int8"), name.endswith("int8"), bool(suffix))
    for suffix in ("", RECOMPUTED)
    for name in ("vanilla", "lora-guided", "lora-guided int8")
}

Scores = Mapping[str, Mapping[str, Tensor]]  # of two criteria: {family: (count,) importances}


@dataclass(frozen=True)
class Setting:
    """A model, and how much is measured of it.

    The paper: batch 1, 128 times accumulated; 128 rows; 2048 tokens.
    """

    base: Path
    dtype: str
    rows: int = 128  # of a step, one a pass; and whose gradients make the masks that are compared
    length: int = 256  # tokens of a row
    repeats: int = 2  # steps of each criterion that are timed
    profiled: int = 6  # rows of a step under the profiler, whose records take minutes to read
    profiles: int = 3  # of each side and of each model
    rounds: int = 7  # counted passes of each model
    seeds: int = 3  # adapters that masks are compared for
    shares: tuple[float, ...] = (0.0, 0.2, 0.5)  # whose inference is timed
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 512
    rank: int = 8


# What a criterion's step costs --------------------------------------------------------------------
@dataclass
class Side:
    """A model with a fresh adapter and a criterion that reads its gradients."""

    model: nn.Module
    families: list[Family]
    method: str

    def step(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Gradients accumulated over passes of one row, then the importances of all groups."""
        self.accumulate(rows)
        found = self.importances()
        self.model.zero_grad()
        return found

    def accumulate(self, rows: Sequence[Example]) -> None:
        """The mean gradient over the rows, one a pass."""
        for row in rows:
            (objective.losses(self.model, [row]).sum() / len(rows)).backward()

    def importances(self, method: str | None = None, reduction: str = "paper") -> dict[str, Tensor]:
        """Of all groups, by this side's criterion or another one whose gradients it has."""
        return pruner.all_scores(self.model, self.families, method or self.method, reduction)

    @property
    def bytes(self) -> int:
        """Of all parameters and buffers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())


def side(setting: Setting, name: str, seed: int = 0) -> Side:
    method, int8, again = SIDES[name]
    model = load_base(setting.base, setting.dtype, attention="eager")
    families = find_families(model)
    if int8:
        to_int8(model)
    if again:
        recompute(model)
    peft = add_lora(model, setting.rank, 2 * setting.rank, TARGETS, seed, light=True)
    causal = peft.get_base_model()
    pruner.require_gradients(method, pruner.linear_weights(causal, families))
    return Side(causal, families, method)


def cost(setting: Setting, rows: Sequence[Example]) -> dict:
    """{side: bytes of the model, bytes by which a step raises the memory, seconds of steps}.

    A row's activations are gone before the next one, so a few rows tell the memory of all.
    """
    few = rows[:WARM]
    memory = {name: timing.in_new_process(memory_of, setting, name, few) for name in SIDES}
    sides = {name: side(setting, name) for name in SIDES}
    for one in sides.values():
        one.step(few)
    works = {n: partial(timing.seconds, partial(one.step, rows)) for n, one in sides.items()}
    taken = timing.in_turn(works, setting.repeats, warm=True)
    return {
        name: dict(zip(("model_bytes", "step_bytes"), memory[name], strict=True))
        | {"seconds": taken[name], "rows_a_second": len(rows) / statistics.median(taken[name])}
        for name in SIDES
    }


def memory_of(setting: Setting, name: str, rows: Sequence[Example]) -> tuple[int, float | None]:
    """Bytes of the model, and those above it at a step's peak; in a process of its own.

    Of the second step: the first one also makes kernels for every shape, which oneDNN keeps.
    """
    timing.give_memory_back()  # else what int8 frees of the weights would be used again unseen
    one = side(setting, name)
    one.step(rows)
    timing.give_memory_back()
    return one.bytes, timing.peak_memory(partial(one.step, rows))


# Whether the masks agree --------------------------------------------------------------------------
def agreement(setting: Setting, rows: Sequence[Example]) -> list[dict]:
    """Masks of the same accumulated gradients by both criteria, for several adapters."""
    found = []
    for seed in range(setting.seeds):
        one = side(setting, "vanilla", seed)  # has both kinds of gradients
        one.accumulate(rows)
        for reduction in REDUCTIONS:
            scores = {m: one.importances(m, reduction) for m in ("vanilla", "lora-guided")}
            same = {"reduction": reduction, "seed": seed}
            found += [e | same for s in SHARES for e in compared(one.families, scores, s)]
    return found


def compared(families: Sequence[Family], scores: Scores, share: float) -> list[dict]:
    """One entry for each kind: this share of every family's groups removed by either criterion.

    same: share of groups with the same verdict; both: of the groups that the first removes, those
    that the second removes too. chance_*: of two masks with these numbers that know nothing.
    """
    entries = []
    for kind in dict.fromkeys(family.kind for family in families):
        groups = gone = both = 0
        by_chance = 0.0
        for family in families:
            if family.kind == kind:
                count = int(share * family.count + 1e-9)
                first, second = (
                    ~share_mask(found[family.name], count) for found in scores.values()
                )
                groups, gone = groups + family.count, gone + count
                both += int((first & second).sum())
                by_chance += family.count * (count / family.count) ** 2
        entry = {"kind": kind, "share": share, "groups": groups, "removed": gone}
        for name, common in (("", both), ("chance_", by_chance)):
            # Every group that one alone removes has its counterpart.
            entry[f"{name}same"] = (groups - 2 * (gone - common)) / groups
            entry[f"{name}both"] = common / gone if gone else None
        entries.append(entry)
    return entries


def find_loudest(
    model: nn.Module, families: Sequence[Family], batches: Sequence[Mapping[str, Tensor]]
) -> list[dict]:
    """For every layer the channel with the largest activation, and where its weights stand.

    times: its norm over the median channel's; lighter: the share of the layer's channels that
    magnitude removes before it.
    """
    channels = [family for family in families if family.kind == CHANNELS]
    reads = [next(m.module for m in family.members if m.dim == 1) for family in channels]
    norms = tm.calibrate(model, batches, reads)
    scores = pruner.all_scores(model, channels, "magnitude")
    entries = []
    for family, module in zip(channels, reads, strict=True):
        norm, weights = norms[module], scores[family.name]
        most = int(norm.argmax())
        lighter = (weights < weights[most]).double().mean()
        times = norm[most] / norm.median()
        entries.append({"layer": family.layer, "lighter": float(lighter), "times": float(times)})
    return entries


# How fast a pruned model is -----------------------------------------------------------------------
Checkpoints = Mapping[float, tuple[Path, float]]  # asked share -> folder, share really gone


@contextmanager
def exported(setting: Setting) -> Iterator[Checkpoints]:
    """Checkpoints without the setting's shares, for the while.

    Which groups are gone does not matter to time, so they are chosen at random.
    """
    base = open_base(setting.base)
    families = families_of(base)
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for share in setting.shares:
            final = quotas(families, share, hidden_size=base.config["hidden_size"])
            one = pruner.Pruner(families, final)
            one.observe({f.name: pruner.random_scores(f, seed=0) for f in families})
            one.remove(1.0)
            out = Path(folder) / f"{share:g}"
            save_pruned(base, families, one.masks, out)
            found[share] = out, removed_share(families, one.counts)
        yield found


def inference(setting: Setting, checkpoints: Checkpoints) -> list[dict]:
    """Seconds of a pass over (batch, prompt) tokens of every checkpoint, adapter merged and not.

    The adapter is a random one.
    """
    models = {}
    for share, (folder, gone) in checkpoints.items():
        load = partial(load_base, folder, setting.dtype, attention="sdpa")
        # in the model's dtype: float32 factors would be converted at every product
        adapted = add_lora(load(), setting.rank, 2 * setting.rank, TARGETS, seed=0, cast=False)
        models |= {(share, gone, True): load(), (share, gone, False): adapted.eval()}
    works = {
        (*key, batch): partial(
            timing.seconds, partial(one_pass, model, prompts(model, batch, setting.prompt))
        )
        for batch in setting.batches
        for key, model in models.items()
    }
    return [
        {"share": share, "removed": gone, "merged": merged, "batch": batch}
        | {"prompt": setting.prompt, "seconds": [round(s, 6) for s in taken]}
        for (share, gone, merged, batch), taken in timing.in_turn(works, setting.rounds).items()
    ]


@torch.inference_mode()
def one_pass(model: nn.Module, tokens: Tensor) -> None:
    """Random tokens, (batch, prompt), read as generation reads a prompt."""
    model(tokens, **LAST | {"use_cache": False})
