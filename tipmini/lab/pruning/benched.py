"""What `make bench` stored of pruning: {part: what it found}, a part that is not measured missing.

Every part has its own sizes, and `made`: the day, the machine and the versions.
"""

import json
from collections.abc import Mapping

from tipmini.lab import paths
from tipmini.lab.statistics import MISSING

PREFIX = "pruning-"
CRITERIA, MASKS, INFERENCE, PROFILE = PARTS = ("criteria", "masks", "inference", "profile")

Found = Mapping[str, Mapping]


def read() -> Found:
    """The parts that are stored; none where the file is missing."""
    if not paths.BENCH.is_file():
        return {}
    return of(json.loads(paths.BENCH.read_text()))


def of(stored: Mapping[str, Mapping]) -> Found:
    """Those of all parts of the bench that are about pruning."""
    names = {part: f"{PREFIX}{part}" for part in PARTS}
    return {part: stored[name] for part, name in names.items() if name in stored}


def part(found: Found, name: str, what: str, default: object) -> object:
    """One entry of a part, or what stands for it where it is not measured."""
    return found.get(name, {}).get(what, default)


def made_with(found: Found, name: str) -> str:
    """A sentence on the rows that a part read, and when it was measured on what."""
    if name not in found:
        return f"This part is {MISSING}: `python -m tipmini.lab.bench {PREFIX}{name}`."
    own = found[name]
    read = _passes(own) if name == INFERENCE else _rows(own)
    made = own["made"]
    return (
        f"{read}; an adapter of rank {own['rank']} on all seven matrices; {own['dtype']}. "
        f"Measured on {made['date']}, {made['machine']['processor']}, {made['threads']} threads."
    )


def _rows(own: Mapping) -> str:
    """Of steps; a bench of before has no number of them."""
    told = f"{own['rows']} rows of {own['task']} cut to {own['length']} tokens, one a pass"
    return f"{told}; {own['repeats']} steps of each" if "repeats" in own else told


def _passes(own: Mapping) -> str:
    prompts, rounds = ({f(e) for e in own["inference"]} for f in (_prompt, _rounds))
    lengths, counts = (" or ".join(map(str, sorted(one))) for one in (prompts, rounds))
    return f"Prompts of {lengths} tokens, each model {counts} times in turn"


def _prompt(entry: Mapping) -> int:
    return entry["prompt"]


def _rounds(entry: Mapping) -> int:
    return len(entry["seconds"])
