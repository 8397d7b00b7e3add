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
from tipmini_lab.experiments import formats, merging, prunings, variants
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import digests, store

PLACES = (("base", "piqa"), ("base", "coqa"), ("tip", "rte"))
NORMS = ("boolq", "coqa")
CORPUS = "books"
RUNS = ("base", "wanda-2to4", "wanda-rows", "taylor-50-once-s0", "lora-guided-20-tuned-s0")
ROUNDING = 1e-3  # of a norm, relative
STEP = 2**-8  # of bfloat16, relative: pruned models are stored in it
FOLDER = paths.BUILD / "proof"

Differences = Iterator[str]


def evaluation(profile: Profile) -> Differences:
    """Cells of Table 1: every answer that is no tie."""
    tie = formats.tie()
    for method, task in tqdm(PLACES, "evaluation", unit="cell"):
        then = variants.stored(profile, method, task)
        if then is None:
            yield f"{method} on {task}: nothing is stored"
            continue
        made = Lab(profile.model_copy(update={"dtype": then.dtype})).experiment(method)
        now = made.measure(task, made.build(task))
        margins = then.margins or [1.0] * then.count
        for row, (a, b, margin) in enumerate(zip(then.values, now.values, margins, strict=True)):
            if a != b and margin >= tie:
                yield f"{method} on {task}, row {row}: {a:g} stored, {b:g} now"


def calibration(profile: Profile) -> Differences:
    """Norms of the first train rows."""
    dtype = variants.stored(profile, *PLACES[0]).dtype
    norms = Lab(profile.model_copy(update={"dtype": dtype})).norms
    for task in tqdm(NORMS, "calibration", unit="task"):
        then = norms.stored(task, norms.first, dtype)
        if then is None:
            yield f"norms of {task}: none are stored"
            continue
        now = norms.measure(task, norms.texts(task, norms.first))
        apart = [n for n in then if not torch.allclose(now[n], then[n], rtol=ROUNDING)]
        yield from (f"norms of {task}, {name}" for name in apart)


def pruning(profile: Profile) -> Differences:
    """Perplexities of pruned models, one of each sort."""
    for name in tqdm(RUNS, "pruning", unit="run"):
        yield from _pruned(profile, name)


def perplexity(profile: Profile) -> Differences:
    """Of the model that is not pruned."""
    yield from _pruned(profile, RUNS[0])


def _pruned(profile: Profile, name: str) -> Differences:
    before = prunings.experiments(profile)[name]
    then = before.stored(CORPUS)
    if then is None:
        yield f"{name} on {CORPUS}: nothing is stored"
        return
    told = {"dtype": then.dtype, "pruning": str(FOLDER / "pruning")}
    again = prunings.experiments(profile.model_copy(update=told))[name]
    (now,) = again.run([CORPUS])
    if again.has_masks:
        one, two = (load_masks(each.masks_file) for each in (before, again))
        other = sum(int((one[family] != two[family]).sum()) for family in one)
        print(f"{name}: {other} of {sum(map(len, one.values()))} groups otherwise")
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
    # First: a merge that is evaluated needs norms of today's code.
    "calibration": (calibration, merging.calibration_code),
    "evaluation": (evaluation, lambda: variants.evaluation_code()["evaluation"]),
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
        digests.equal.cache_clear()
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
