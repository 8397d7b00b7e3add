"""Measure, store and print every figure: `make bench`; a part alone when it is named."""

import argparse
import json

import torch

from tipmini.lab import results
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

PARTS = {
    "limits": limits.measure,
    "evaluation": lambda lab: evaluation.measure(lab) | {"float32": evaluation.alike(lab)},
    "calibration": calibration.measure,
    "merging": lambda lab: merging.measure(),
    **pruning.PARTS,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tipmini.lab.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"these alone: {', '.join([*PARTS, 'serving'])}")
    parts = parser.parse_args().parts or [*PARTS, "serving"]
    lab = Lab(load_profile("mini"))
    if set(parts) & PARTS.keys():
        found = measured(lab, [part for part in parts if part in PARTS])
        print(stored.report(found), end="\n\n")
        print(pruning.report(stored.pruning(found)), end="\n\n")
    if "serving" in parts:
        print(serving.store(lab))


def measured(lab: Lab, parts: list[str]) -> dict:
    """All that is stored, with these parts measured anew, and what made each of them."""
    found = stored.read() if stored.STORED.is_file() else {}
    for part in parts:
        made = {"date": results.today(), "machine": results.machine()}
        made |= {"threads": torch.get_num_threads(), "versions": results.versions()}
        found[part] = {"made": made} | PARTS[part](lab)
        results.write(stored.STORED, json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
