"""Measure, store and print every figure: `make bench`."""

import json

import torch

from tipmini.lab import results
from tipmini.lab.bench import calibration, evaluation, inference, merging, stored, timing
from tipmini.lab.experiments import Lab
from tipmini.lab.profiles import load_profile


def main() -> None:
    lab = Lab(load_profile("mini"))
    found = {
        "command": "make bench",
        "date": results.today(),
        "machine": results.machine(),
        "threads": torch.get_num_threads(),
        "versions": results.versions(),
        "matrix_product": timing.matmul_peak(getattr(torch, lab.profile.dtype)),
        "bandwidth": timing.bandwidth(),
        "forward": inference.forward(lab),
        "evaluation": evaluation.measure(lab) | {"float32": evaluation.alike(lab)},
        "calibration": calibration.measure(lab),
        "merging": merging.measure(),
    }
    results.write(stored.STORED, json.dumps(found, indent=1) + "\n")
    print(stored.report(found))


if __name__ == "__main__":
    main()
