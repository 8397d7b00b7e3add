"""What the stored prunings come to, in sentences that follow from them alone.

A perplexity is called lower, or higher, where it clearly is on both corpora: see `gaps.clear`.
"""

from collections.abc import Iterator, Mapping
from functools import partial

from tipmini.lab.pruning.comparisons import SETTINGS
from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.pruning.gaps import Gap, Model, clear, gap
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.pruning.tables import Outcomes
from tipmini.lab.statistics import MISSING

OURS, RELEASED = "lora-guided", "lora-guided-released"
WHOLE = 0.5, True  # where its parts are taken away one by one
LOWER, HIGHER, NEITHER = "lower", "higher", "not surely either"
WORDS = (LOWER, HIGHER, NEITHER, MISSING)
Both = tuple[Gap | None, ...]  # of either corpus


def told(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned]) -> str:
    """A list: what tuning does, which criteria keep more than LoRAPrune, what its parts do."""
    known = partial(_both, outcomes, runs, declared)
    parts = (_tuning, _criteria, _parts)
    return "\n".join(f"- {line}" for part in parts for line in part(declared, known))


def _both(
    outcomes: Outcomes, runs: Mapping[str, Planned], declared: Grid, one: Model, two: Model
) -> Both:
    return tuple(gap(outcomes, runs, one, two, corpus, declared) for corpus in CORPORA)


def _tuning(declared: Grid, known) -> Iterator[str]:
    for share in sorted({share for share, _ in SETTINGS.values()}):
        found = {
            m.title: known((m.name, share, True), (m.name, share, False)) for m in declared.methods
        }
        yield f"**Tuning, {share:.0%}**, perplexity beside that without it, {_sorted(found)}"


def _criteria(declared: Grid, known) -> Iterator[str]:
    title = declared.titles()[OURS]
    others = [m for m in declared.methods if m.name not in (OURS, RELEASED)]
    for words, setting in SETTINGS.items():
        found = {m.title: known((m.name, *setting), (OURS, *setting)) for m in others}
        words = words if setting[1] else f"{words}, not tuned"
        yield f"**{words}**, perplexity beside {title}'s, {_sorted(found)}"


def _parts(declared: Grid, known) -> Iterator[str]:
    beside = "perplexity beside that of the printed one"
    found = {w: known((RELEASED, *s), (OURS, *s)) for w, s in SETTINGS.items()}
    yield f"**The released reduction**, {beside}, {_sorted(found)}"
    title = declared.titles()[OURS]
    otherwise = "otherwise (of which the recipe removes less)"
    for words, changed in (("without a part", declared.ablations), (otherwise, declared.variants)):
        found = {m.title: known((m.name, *WHOLE), (OURS, *WHOLE)) for m in changed}
        yield f"**{title} {words}, 50%, tuned**, perplexity beside it, {_sorted(found)}"


def verdicts(found: Mapping[str, Both]) -> dict[str, str]:
    """LOWER, HIGHER, NEITHER or MISSING by name, of tests that are corrected together."""
    there = {name: both for name, both in found.items() if None not in both}
    sure = clear({(name, i): one for name, both in there.items() for i, one in enumerate(both)})
    words = {name: _verdict([sure.get((name, i)) for i, _ in enumerate(CORPORA)]) for name in there}
    return {name: words.get(name, MISSING) for name in found}


def _verdict(both: list[Gap | None]) -> str:
    """Of the gaps that are clear, None for one that is not."""
    signs = {one and one.mean > 0 for one in both}
    return {frozenset({False}): LOWER, frozenset({True}): HIGHER}.get(frozenset(signs), NEITHER)


def _sorted(found: Mapping[str, Both]) -> str:
    """Names by how the first of each two compares with the second, and how many runs they are."""
    runs = {name: _runs(both[0]) for name, both in found.items() if both[0]}
    alike = len(runs) == len(found) and len(set(runs.values())) == 1
    named: dict[str, list[str]] = {}
    for name, word in verdicts(found).items():
        own = f"{name} ({runs[name]})" if name in runs and not alike else name
        named.setdefault(word, []).append(own)
    told = ". ".join(f"*{word}*: {'; '.join(named[word])}" for word in WORDS if word in named)
    return f"{told} ({next(iter(runs.values()))})." if alike else f"{told}."


def _runs(found: Gap) -> str:
    """How many runs stand behind either side."""
    first, second = found.counts
    return f"{first} run{'s' * (first != 1)} against {second}"
