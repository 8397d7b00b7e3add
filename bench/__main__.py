"""Measure, store and print every figure: `make bench`; a part alone when it is named."""

import argparse
import json

from bench import costs, evaluation, lora_cost, merging, pruning, serving, timing
from tipmini_lab import paths
from tipmini_lab.book import performance, pruning_costs
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results import store

PARTS = {
    "limits": evaluation.measure_limits,
    "evaluation": lambda lab: (
        evaluation.measure_evaluation(lab) | {"float32": evaluation.alike(lab)}
    ),
    "calibration": evaluation.measure_calibration,
    "merging": lambda lab: merging.measure(),
    "costs": costs.measure,
    **pruning.PARTS,
}


def main() -> None:
    names = [*PARTS, "serving", "lora"]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"these alone: {', '.join(names)}")
    parts = parser.parse_args().parts or names
    if unknown := [name for name in parts if name not in names]:
        parser.error(f"no part {unknown[0]!r}: one of {', '.join(names)}")
    lab = Lab(load_profile("mini"))
    found = measured(lab, [part for part in parts if part in PARTS])
    if set(performance.NEEDED) <= found.keys():
        for name, value in performance.page_values().items():
            print(f"{name}: {value}", end="\n\n")
    print(pruning.report(pruning_costs.of(found)), end="\n\n")
    if "serving" in parts:
        print(serving.store(lab))
    if "lora" in parts:
        print(lora_cost.store(lab))


def measured(lab: Lab, parts: list[str]) -> dict:
    """All that is stored, with these parts measured anew, and what made each of them."""
    former = json.loads(paths.BENCH.read_text()) if paths.BENCH.is_file() else {}
    found = {part: former[part] for part in PARTS if part in former}
    for part in parts:
        found[part] = {"made": timing.made()} | PARTS[part](lab)
        store.write(paths.BENCH, json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
