"""Measure, store and print every figure: `make bench`; a part alone when it is named."""

import argparse
import json

import torch

from tipmini.lab import paths, results
from tipmini.lab.bench import (
    calibration,
    evaluation,
    limits,
    merging,
    pruning,
    serving,
    stored,
)
from tipmini.lab.experiments import Lab
from tipmini.lab.profiles import load_profile
from tipmini.lab.pruning import benched

PARTS = {
    "limits": limits.measure,
    "evaluation": lambda lab: evaluation.measure(lab) | {"float32": evaluation.alike(lab)},
    "calibration": calibration.measure,
    "merging": lambda lab: merging.measure(),
    **pruning.PARTS,
}


def main() -> None:
    names = [*PARTS, "serving"]
    parser = argparse.ArgumentParser(prog="python -m tipmini.lab.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"these alone: {', '.join(names)}")
    parts = parser.parse_args().parts or names
    for name in parts:
        if name not in names:
            parser.error(f"no part {name!r}: one of {', '.join(names)}")
    lab = Lab(load_profile("mini"))
    found = measured(lab, [part for part in parts if part in PARTS])
    if set(stored.NEEDED) <= found.keys():
        print(stored.report(found), end="\n\n")
    print(pruning.report(benched.of(found)), end="\n\n")
    if "serving" in parts:
        print(serving.store(lab))


def measured(lab: Lab, parts: list[str]) -> dict:
    """All that is stored, with these parts measured anew, and what made each of them."""
    former = json.loads(paths.BENCH.read_text()) if paths.BENCH.is_file() else {}
    found = {part: former[part] for part in PARTS if part in former}
    for part in parts:
        made = {"date": results.today(), "machine": results.machine()}
        made |= {"threads": torch.get_num_threads(), "versions": results.versions()}
        found[part] = {"made": made} | PARTS[part](lab)
        results.write(paths.BENCH, json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
