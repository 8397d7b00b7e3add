"""What was measured of serving, in words: every number is computed from the stored ones."""

import statistics

from tipmini.lab.bench.serving_cost import Sizes
from tipmini.lab.bench.serving_stored import (
    STEPS,
    above_floor,
    batches,
    floor_table,
    memory,
    memory_table,
    most,
    points,
    relative,
    slope,
    slower,
    table,
    title,
)


def provenance(found: dict) -> str:
    """What the numbers were measured on, with and how often."""
    machine, speeds = found["machine"], (found["matrix_product"] / 1e9, found["bandwidth"] / 1e9)
    versions = ", ".join(f"{n} {found['versions'][n]}" for n in ("torch", "transformers", "peft"))
    return (
        f"Measured by `{found['command']}` on {found['date']}: {machine['processor']}, "
        f"{machine['cores']} cores, {found['threads']} threads, {versions}, {found['dtype']}, "
        f"prompts of {found['length']} tokens, {found['rounds']} rounds. In the same run a large "
        f"matrix product reached {speeds[0]:.0f} GFLOP/s and a copy in memory {speeds[1]:.0f} GB/s."
    )


def counted(found: dict) -> str:
    """What the operations of the table stand beside: the whole pass, not its blocks alone."""
    size = Sizes(**found["sizes"])
    return (
        "Operations are those of one token a row and of the whole pass: the head and attention "
        f"count among the base model's. Beside its {size.modules} linear layers alone, an "
        f"adapter's are {size.adapter / size.linear:+.2%}. Matrix products are counted in one pass."
    )


def drift(found: dict, batch: int) -> str:
    """Why a ratio of the table is not that of the two times above it."""
    taken = [1e3 * s for s in points(found, "prompt", batch)["base"]["seconds"]]
    return (
        f"The machine has not one speed: the base model's own {len(taken)} passes over the prompt "
        f"at batch {batch} took {min(taken):.0f} to {max(taken):.0f} ms. A time is the median of "
        "its own rounds; a ratio is the median of the ratios within each round, so it is not the "
        "quotient of two times in the table. Where the speed changed within a round, that "
        "round's ratios are off too, and the range from the least to the most is wide."
    )


def summary(found: dict, batch: int) -> str:
    """What came out at one batch size."""
    said = [_step(found, step, batch) for step in STEPS]
    return " ".join([*said, _further(found, batch)])


def _step(found: dict, step: str, batch: int) -> str:
    middle, low, high = relative(found, step, batch)["weights"]
    ways = "; ".join(_way(found, step, batch, way) for way in (most(found), "one adapter"))
    return (
        f"At batch {batch} a pass over the {STEPS[step]} takes, as a multiple of the base model's "
        f"time, {middle:.2f} ({low:.2f} ... {high:.2f}) with the merge in the weights, which is "
        f"the same program; {ways}."
    )


def _way(found: dict, step: str, batch: int, way: str) -> str:
    told = "slower than both in every round"
    if not slower(found, step, batch, way):
        told = "not told apart from measuring one program twice"
    return f"{relative(found, step, batch)[way][0]:.2f} with {title(way)}, {told}"


def _further(found: dict, batch: int) -> str:
    shares, size = slope(found, "token", batch), Sizes(**found["sizes"])
    base = statistics.median(points(found, "token", batch)["base"]["seconds"])
    more, least, at_most = (share * base for share in shares)
    return (
        f"Each further adapter adds {shares[0]:.1%} of the base model's time to the pass over the "
        f"next token. Of its median time of {base * 1e3:.0f} ms that is {more * 1e3:.1f} ms "
        f"({least * 1e3:.1f} ... {at_most * 1e3:.1f} over the rounds), "
        f"{more / size.adapted * 1e6:.0f} µs for each of the {size.adapted} adapted modules."
    )


def twice(found: dict, batch: int) -> str:
    """The memory of one program in two processes: what no difference can be surer than."""
    risen = [memory(found, way, batch) for way in ("base", "weights")]
    if None in risen:
        return ""
    base, weights = (round(rise / 1e6) for rise in risen)
    return (
        f"At batch {batch} a pass of the base model rose by {base} MB and one of the merge in the "
        f"weights by {weights} MB. These are one program, so a difference of "
        f"{max(1, abs(base - weights))} MB tells nothing."
    )


def floors(found: dict, batch: int) -> str:
    """How far the base and the fullest mixed batch are from what they need at least."""
    said = []
    for way in ("base", most(found)):
        above = (above_floor(found, way, step, batch) for step in STEPS)
        named = (f"{a} ({name})" for a, name in zip(above, STEPS.values(), strict=True))
        said.append(f"{title(way)}: {' and '.join(named)}")
    return f"Measured time as a multiple of the floor at batch {batch}: {'; '.join(said)}."


def report(found: dict) -> str:
    """What the terminal shows."""
    last = batches(found)[-1]
    parts = [table(found, (last,)), memory_table(found), floor_table(found)]
    texts = [part.to_string().replace("<br>", " ") for part in parts]
    return "\n\n".join([*texts, summary(found, last), provenance(found)])
