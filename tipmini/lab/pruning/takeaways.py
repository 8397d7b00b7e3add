"""What the stored prunings come to, in sentences that follow from them alone.

A perplexity is called lower, or higher, where it is so on both corpora and of every pair of seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from tipmini.lab.bundles import Bundle
from tipmini.lab.pruning.comparisons import SETTINGS
from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.pruning.tables import Outcomes, seeds, values
from tipmini.lab.statistics import MISSING

OURS, RELEASED = "lora-guided", "lora-guided-released"
LOWER, HIGHER, NEITHER = "lower", "higher", "neither"
WORDS = {LOWER: "lower", HIGHER: "higher", NEITHER: "not surely either", None: MISSING}
Side = tuple[Sequence[Bundle], Sequence[Bundle]]


def compared(first: Sequence[Bundle], second: Sequence[Bundle]) -> str | None:
    """LOWER, HIGHER or NEITHER, of the first's perplexity; None where one is not measured."""
    pairs = [list(product(values(first, c), values(second, c))) for c in CORPORA]
    if not all(pairs):
        return None
    lower = [one < two for corpus in pairs for one, two in corpus]
    return LOWER if all(lower) else NEITHER if any(lower) else HIGHER


def told(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned]) -> str:
    """A list: what tuning does, which criteria keep more than LoRAPrune, the released reduction."""
    known = lambda *model: seeds(outcomes, runs, *model)  # noqa: E731
    titles = declared.titles()
    lines = list(_tuning(declared, known))
    for words, setting in SETTINGS.items():
        sides = {
            m.title: (known(m.name, *setting), known(OURS, *setting))
            for m in declared.methods
            if m.name not in (OURS, RELEASED)
        }
        words = words if setting[1] else f"{words}, not tuned"
        lines.append(f"**{words}**, perplexity beside {titles[OURS]}'s, {_sorted(sides)}")
    reductions = {w: (known(RELEASED, *s), known(OURS, *s)) for w, s in SETTINGS.items()}
    found = _sorted(reductions)
    lines.append(f"**The released reduction**, perplexity beside that of the printed one, {found}")
    return "\n".join(f"- {line}" for line in lines)


def _tuning(declared: Grid, known) -> Iterator[str]:
    for share in sorted({share for share, _ in SETTINGS.values()}):
        sides = {
            m.title: (known(m.name, share, True), known(m.name, share, False))
            for m in declared.methods
        }
        yield f"**Tuning, {share:.0%}**, perplexity beside that without it, {_sorted(sides)}"


def _sorted(sides: Mapping[str, Side]) -> str:
    """Names by how the first of each two compares with the second, and how many runs they are."""
    alike = len({_runs(*side) for side in sides.values()}) == 1
    found: dict[str | None, list[str]] = {}
    for name, side in sides.items():
        own = name if alike else f"{name} ({_runs(*side)})"
        found.setdefault(compared(*side), []).append(own)
    told = ". ".join(f"*{WORDS[k]}*: {'; '.join(found[k])}" for k in WORDS if k in found)
    return f"{told} ({_runs(*next(iter(sides.values())))})." if alike else f"{told}."


def _runs(first: Sequence[Bundle], second: Sequence[Bundle]) -> str:
    """How many runs stand behind either side."""
    return f"{len(first)} run{'s' * (len(first) != 1)} against {len(second)}"
