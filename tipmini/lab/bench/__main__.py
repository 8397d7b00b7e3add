"""Measure, store and print every figure: `make bench`; a part alone when it is named."""

import argparse
import json

import torch

from tipmini.lab import results
from tipmini.lab.bench import calibration, evaluation, inference, merging, serving, stored, timing
from tipmini.lab.experiments import Lab
from tipmini.lab.profiles import load_profile


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tipmini.lab.bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("serving",), help="this part alone")
    lab = Lab(load_profile("mini"))
    if parser.parse_args().part == "serving":
        return print(serving.store(lab))
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
    print(stored.report(found), serving.store(lab), sep="\n\n")


if __name__ == "__main__":
    main()
