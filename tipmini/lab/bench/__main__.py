"""Measure, store and print every figure: `make bench`; a part alone when it is named."""

import argparse
import json

import torch

from tipmini.lab import results
from tipmini.lab.bench import (
    calibration,
    evaluation,
    inference,
    merging,
    pruning,
    serving,
    stored,
    timing,
)
from tipmini.lab.experiments import Lab
from tipmini.lab.profiles import load_profile

PARTS = {
    "evaluation": lambda lab: evaluation.measure(lab) | {"float32": evaluation.alike(lab)},
    "calibration": calibration.measure,
    "merging": lambda lab: merging.measure(),
    "pruning": pruning.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tipmini.lab.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"these alone: {', '.join([*PARTS, 'serving'])}")
    parts = parser.parse_args().parts or [*PARTS, "serving"]
    lab = Lab(load_profile("mini"))
    if set(parts) & PARTS.keys():
        found = measured(lab, [part for part in parts if part in PARTS])
        print(stored.report(found), end="\n\n")
        if "pruning" in found:
            print(pruning.report(found["pruning"]), end="\n\n")
    if "serving" in parts:
        print(serving.store(lab))


def measured(lab: Lab, parts: list[str]) -> dict:
    """What is stored with these parts measured anew, beside the machine's own speeds."""
    former = stored.read() if len(parts) < len(PARTS) else {}
    found = former | {
        "command": "make bench",
        "date": results.today(),
        "machine": results.machine(),
        "threads": torch.get_num_threads(),
        "versions": results.versions(),
        "matrix_product": timing.matmul_peak(getattr(torch, lab.profile.dtype)),
        "bandwidth": timing.bandwidth(),
        "forward": inference.forward(lab),
    }
    for part in parts:
        found[part] = PARTS[part](lab)
        results.write(stored.STORED, json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
