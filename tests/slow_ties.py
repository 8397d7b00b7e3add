"""TIES place by place in plain Python: what the fast one is held against."""

import math


def slow_ties(stacked, weights, variant, zero) -> list[float]:
    """Place by place."""
    merged = []
    for place in zip(*stacked, strict=True):
        votes = [w * x if variant == "mergekit" else x for w, x in zip(weights, place, strict=True)]
        total = sum(votes)
        sign = math.copysign(1, total) if total else zero
        agreeing = [i for i, vote in enumerate(votes) if vote * sign > 0]
        share = sum(weights[i] if variant == "mergekit" else 1 for i in agreeing)
        merged.append(sum(weights[i] * place[i] for i in agreeing) / (share or 1))
    return merged
