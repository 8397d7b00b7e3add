"""A sample of what is stored, measured again by today's code: proof that it gives the same results.

    python -m tipmini_lab.experiments.proof [evaluation] [calibration] [perplexity] [pruning]

Where a change leaves what is computed alone but not the digest of its code (see `digests`), every
stored cell would count as another code's. This measures one of each sort again, beside the store,
in the number format that it was stored in, and where all agree adds today's digest to those of
results/code.json whose results are the same. Pruned models are stored in bfloat16, which another
processor rounds otherwise: of these the perplexity may differ by a step of that format or, where a
model was tuned, by what a seed does. That a change of their code computes the same to the last bit
is for tests on small tensors to show.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from tipmini.errors import TipminiError, require
from tipmini.methods.pruner import load_masks
from tipmini_lab import paths
from tipmini_lab.experiments import experiment, formats, input_norms, prunings
from tipmini_lab.experiments.experiment import Lab
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import digests, store
from tipmini_lab.results.store import Cell

PLACES = (("base", "piqa"), ("base", "coqa"), ("tip", "rte"))
NORMS = ("boolq", "coqa")
CORPUS = "books"
RUNS = ("base", "wanda-2to4", "taylor-50-once-s0", "lora-guided-20-tuned-s0")
ROUNDING = 1e-3  # of a norm, relative
STEP = 2**-8  # of bfloat16, relative: pruned models are stored in it
FOLDER = paths.BUILD / "proof"

Differences = Iterator[str]


def evaluation(profile: Profile) -> Differences:
    """Cells of Table 1: every answer that is no tie."""
    for place in tqdm(PLACES, "evaluation", unit="cell"):
        then = experiment.stored(profile, *place)
        if then is None:
            yield f"{place[0]} on {place[1]}: nothing is stored"
            continue
        lab = Lab(profile.model_copy(update={"dtype": then.dtype}))
        now = lab.measure(place[0], lab.folder(*place), lab.definition(place[1]), then.metric)
        yield from _answers(then, now)


def _answers(then: Cell, now: Cell) -> Differences:
    tie = formats.tie()
    margins = then.margins or [1.0] * then.count
    for row, (a, b, margin) in enumerate(zip(then.values, now.values, margins, strict=True)):
        if a != b and margin >= tie:
            yield f"{then.method} on {then.task}, row {row}: {a:g} stored, {b:g} now"


def calibration(profile: Profile) -> Differences:
    """Norms of the first train rows."""
    dtype = experiment.stored(profile, *PLACES[0]).dtype
    lab = Lab(profile.model_copy(update={"dtype": dtype}))
    for task in tqdm(NORMS, "calibration", unit="task"):
        then = lab.norms.stored(task, lab.norms.first, dtype)
        if then is None:
            yield f"norms of {task}: none are stored"
            continue
        now = lab.norms.measure(task, lab.norms.texts(task, lab.norms.first))
        yield from (
            f"norms of {task}, {name}"
            for name in then
            if not torch.allclose(now[name], then[name], rtol=ROUNDING)
        )


def pruning(profile: Profile) -> Differences:
    """Perplexities of pruned models, one of each sort."""
    for name in tqdm(RUNS, "pruning", unit="run"):
        yield from _pruned(profile, name)


def perplexity(profile: Profile) -> Differences:
    """Of the model that is not pruned."""
    yield from _pruned(profile, RUNS[0])


def _pruned(profile: Profile, name: str) -> Differences:
    then = store.cell_of(profile.pruning_store, name, CORPUS)
    if then is None:
        yield f"{name} on {CORPUS}: nothing is stored"
        return
    told = {"dtype": then.dtype, "pruning": str(FOLDER / "pruning")}
    again = prunings.Prunings(profile.model_copy(update=told))
    planned = again.runs[name]
    again.measures = lambda _: [CORPUS]
    again.measure(planned)
    now = store.cell_of(again.store, name, CORPUS)
    if again.prunes(planned):
        masks = [load_masks(p.masks_file(planned)) for p in (prunings.Prunings(profile), again)]
        other = sum(int((masks[0][f] != masks[1][f]).sum()) for f in masks[0])
        print(f"{name}: {other} of {sum(map(len, masks[0].values()))} groups otherwise")
    apart = abs(now.mean / then.mean - 1)
    if apart > max(STEP, _spread(profile, name)):
        yield f"{name}: the logarithm of its perplexity is off by {apart:.1%}"


def _spread(profile: Profile, name: str) -> float:
    """How far apart the run's seeds are, relative."""
    seeds = [f"{name.removesuffix('-s0')}-s{seed}" for seed in range(3)]
    cells = [store.cell_of(profile.pruning_store, seed, CORPUS) for seed in seeds]
    means = [cell.mean for cell in cells if cell]
    return max(means) / min(means) - 1 if len(means) > 1 else 0.0


KINDS: dict[str, tuple[Callable[[Profile], Differences], Callable[[], str]]] = {
    "evaluation": (evaluation, lambda: experiment.evaluation_code()["evaluation"]),
    "calibration": (calibration, input_norms.calibration_code),
    "perplexity": (perplexity, lambda: prunings.code(CORPUS)["perplexity"]),
    "pruning": (pruning, prunings.pruning_code),
}


def prove(kind: str, profile: Profile, file: Path = digests.EQUAL) -> None:
    """Add today's digest of a kind of work to those that give the same.

    Raises TipminiError that names what does not come out as it is stored.
    """
    require("kind", kind, KINDS)
    differences, today = KINDS[kind]
    shutil.rmtree(FOLDER, ignore_errors=True)
    found = list(differences(profile))
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise TipminiError(f"{kind}: others than stored: {'; '.join(found[:3])}{more}")
    known = json.loads(file.read_text())
    if today() not in known[kind]:
        known[kind].append(today())
        store.write(file, json.dumps(known, indent=1) + "\n")
    print(f"{kind}: the same; {today()[:12]} stands in {file.name}")


def main(kinds: list[str]) -> int:
    failed = 0
    for kind in kinds or KINDS:
        try:
            prove(kind, load_profile("mini"))
        except TipminiError as error:
            print(f"proof: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
