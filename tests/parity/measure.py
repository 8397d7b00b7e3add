"""Run every case, hold it against its declared relation and store the outcome: `make parity`."""

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.parity import peers
from tests.parity.cases import COMPARISONS, Comparison
from tests.parity.inputs import Inputs
from tipmini.errors import TipminiError
from tipmini_lab.book.parity import BITS, ROUNDING, STORED, counts
from tipmini_lab.results import store

LARGE = 1e-3  # what differs by its algorithm differs by more


def declared(comparison: Comparison) -> dict:
    """What is stored of a comparison besides its cases."""
    names = ("peer", "function", "ours", "relation", "within", "reason")
    return {name: getattr(comparison, name) for name in names}


def outcome(comparison: Comparison, given: Inputs) -> dict:
    """One case: {"inputs", "equal", "difference"}, and both sides' words where they gave words."""
    theirs, mine = comparison.theirs(given), comparison.mine(given)
    if isinstance(theirs, str) or isinstance(mine, str):
        words = {"theirs": str(theirs), "mine": str(mine)}
        return {"inputs": str(given), "equal": theirs == mine, "difference": None} | words
    equal = all(torch.equal(a, b) for a, b in zip(theirs, mine, strict=True))
    far = relative_difference(theirs, mine)
    return {"inputs": str(given), "equal": equal, "difference": float(f"{far:.3g}")}


def relative_difference(theirs: Sequence[Tensor], mine: Sequence[Tensor]) -> float:
    r"""$\lVert P - T \rVert_F / \lVert P \rVert_F$ over all tensors P of the peer, T of tipmini.

    Raises TipminiError where two tensors differ in shape.
    """
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (theirs, mine)]
    if shapes[0] != shapes[1]:
        raise TipminiError(f"parity: the peer gave {shapes[0]}, tipmini {shapes[1]}")
    pairs = [(a.double(), b.double()) for a, b in zip(theirs, mine, strict=True)]
    norm = math.hypot(*(torch.linalg.vector_norm(a).item() for a, _ in pairs))
    return math.hypot(*(torch.linalg.vector_norm(a - b).item() for a, b in pairs)) / norm


def holds(comparison: Comparison, case: dict) -> bool:
    """Whether a case came out as declared; what is declared to differ must."""
    if comparison.relation == BITS:
        return case["equal"]
    if comparison.relation == ROUNDING:
        return case["difference"] <= comparison.within
    return not case["equal"] and (case["difference"] is None or case["difference"] > LARGE)


def run(comparison: Comparison) -> dict:
    """A comparison with all its cases; TipminiError where one did not come out as declared."""
    cases = [outcome(comparison, given) for given in comparison.inputs]
    for case in cases:
        if not holds(comparison, case):
            what = f"{comparison.peer} {comparison.function} and {comparison.ours}"
            raise TipminiError(f"parity: {what}: not {comparison.relation!r} but {case}")
    return declared(comparison) | {"cases": cases}


def main() -> None:
    content = {
        "versions": peers.versions() | {"torch": store.versions()["torch"]},
        "date": store.today(),
        "machine": store.machine(),
        "comparisons": [run(comparison) for comparison in COMPARISONS],
    }
    store.write(STORED, json.dumps(content, indent=1) + "\n")
    for relation, count in counts(content["comparisons"]).items():
        print(f"{count:5} cases {relation}")


if __name__ == "__main__":
    try:
        main()
    except TipminiError as error:
        raise SystemExit(f"{error}") from None
