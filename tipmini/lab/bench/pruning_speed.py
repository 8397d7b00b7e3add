"""How fast a pruned model is, the adapter merged into it or beside it (Table 3)."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tipmini.base_folder import open_base
from tipmini.groups import Family, quotas, removed_share
from tipmini.lab.bench import timing
from tipmini.lab.model import load_base
from tipmini.lab.pruning import scoring
from tipmini.lab.pruning.recipe import TARGETS
from tipmini.lab.pruning.work import families_of
from tipmini.lab.resumable import wear_lora
from tipmini.masking import Masks, Pruner
from tipmini.removal import save_pruned

Key = tuple[float, bool]  # the share that is gone, and whether the adapter is merged
Checkpoints = Mapping[float, tuple[Path, float]]  # asked share -> folder, share really gone


@contextmanager
def exported(base: Path, shares: Sequence[float]) -> Iterator[Checkpoints]:
    """Checkpoints without these shares, for the while.

    Which groups are gone does not matter to time, so they are chosen at random.
    """
    families = families_of(open_base(base))
    with tempfile.TemporaryDirectory() as folder:
        places = {share: Path(folder) / f"{share:g}" for share in shares}
        yield {s: (out, export(base, families, s, out)) for s, out in places.items()}


def inference(
    checkpoints: Checkpoints,
    dtype: str,
    batches: Sequence[int],
    prompt: int,
    rounds: int,
    rank: int,
) -> list[dict]:
    """Seconds of a pass over (batch, prompt) tokens of every checkpoint, adapter merged and not.

    The adapter is a random one.
    """
    models = {}
    for share, (folder, _) in checkpoints.items():
        models |= {(share, merged): model for merged, model in _worn(folder, dtype, rank)}
    taken = passes(models, batches, prompt, rounds)
    return [
        {"share": share, "removed": checkpoints[share][1], "merged": merged, "batch": batch}
        | {"prompt": prompt, "seconds": [round(s, 6) for s in seconds]}
        for (share, merged, batch), seconds in taken.items()
    ]


def export(base: Path, families: Sequence[Family], share: float, out: Path) -> float:
    """Write a checkpoint without random groups; the share of weights that it has lost."""
    opened = open_base(base)
    masks, gone = random_masks(families, share, opened.config["hidden_size"])
    save_pruned(opened, families, masks, out)
    return gone


def random_masks(families: Sequence[Family], share: float, hidden: int) -> tuple[Masks, float]:
    """Masks of a share, and the share that could be met."""
    final = quotas(families, share, hidden_size=hidden)
    pruner = Pruner(families, final)
    pruner.observe({f.name: scoring.random_scores(f, seed=0) for f in families})
    pruner.remove(1.0)
    return pruner.masks, removed_share(families, pruner.counts)


def _worn(folder: Path, dtype: str, rank: int) -> Iterator[tuple[bool, nn.Module]]:
    """The checkpoint as stock transformers runs it, alone and under an adapter of its own."""
    load = partial(load_base, folder, dtype, attention="sdpa")
    yield True, load()
    # in the model's dtype: float32 factors would be converted at every product
    yield False, wear_lora(load(), rank, 2 * rank, TARGETS, seed=0, cast=False).eval()


@torch.inference_mode()
def passes(
    models: Mapping[Key, nn.Module], batches: Sequence[int], prompt: int, rounds: int
) -> dict[tuple[float, bool, int], list[float]]:
    """Seconds of every round, after one that warms up; all take a pass in turn."""
    taken = {(*key, batch): [] for batch in batches for key in models}
    some = next(iter(models.values()))
    given = {batch: reading(some, batch, prompt) for batch in batches}
    for number in range(rounds + 1):
        for share, merged, batch in list(taken)[:: 1 if number % 2 else -1]:
            seconds = timing.seconds(partial(models[share, merged], **given[batch]))
            taken[share, merged, batch] += [seconds] if number else []
    return taken


def reading(model: nn.Module, batch: int, prompt: int) -> dict[str, object]:
    """A pass's arguments: random tokens, (batch, prompt), read as generation reads a prompt."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch, prompt), generator=generator)
    last = torch.tensor([-1])  # logits of the last token alone: see bench.serving
    return {"input_ids": tokens, "logits_to_keep": last, "use_cache": False}
