"""What DARE does to the overlap of adapters: by hand, and as independent draws foretell it."""

import pytest
import torch
import yaml

import tipmini as tm
from tipmini_lab import paths
from tipmini_lab.book.claims import checks_dare
from tipmini_lab.book.claims.checks import Evidence
from tipmini_lab.experiments.profiles import Profile


def test_by_hand():
    """Norms 1 and 4, inner product 1; after: norms 2 and 8, inner product 1, half of the places."""
    before = torch.tensor([[1.0, 1], [1, 4]]), torch.full((2, 2), 10.0)
    after = torch.tensor([[2.0, 1], [1, 8]]), torch.full((2, 2), 5.0)
    found = checks_dare.of_grams(after, before)
    assert found == {"places": 0.5, "cosine": 0.5, "cross": 1.0, "others": 2.0}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    """Three adapters with a part in common, of many elements each."""
    folder, drawn = tmp_path_factory.mktemp("adapters"), torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 600, generator=drawn), torch.randn(500, 4, generator=drawn)
    for name in ("a", "b", "c"):
        own_a = a + torch.randn(a.shape, generator=drawn)
        own_b = b + torch.randn(b.shape, generator=drawn)
        tm.LoraAdapter({"layers.0.q": tm.LoraFactors(own_a, own_b, 2.0)}).save(folder / name)
    made = {"name": "tiny", "description": "tiny", "results": str(folder)}
    told = {"tasks": ("arc_challenge", "boolq", "coqa"), "adapters": str(folder / "{task}")}
    for name, task in zip("abc", told["tasks"], strict=True):
        (folder / name).rename(folder / task)
    return Evidence({}, {}, Profile(**made, **told))


@pytest.mark.parametrize("dropped_from", ["delta", "factors"])
@pytest.mark.parametrize("drop_rate", [0.3, 0.7])
def test_independent_draws_foretell_what_is_measured(evidence, dropped_from, drop_rate):
    found = checks_dare.diluted(evidence, drop_rate=drop_rate, dropped_from=dropped_from)
    for name in checks_dare.MEASURES:
        assert found[name] == pytest.approx(found[f"expected_{name}"], rel=0.05)
    assert found["value"] == found["cosine"] < 0.95 < found["expected_cross"] == 1
    assert found["others"] > 1.1


def test_of_full_deltas_the_cosine_falls_to_what_is_kept(evidence):
    found = checks_dare.diluted(evidence, drop_rate=0.7, dropped_from="delta")
    assert found["expected_cosine"] == pytest.approx(0.3)
    assert found["expected_places"] == pytest.approx(0.09)


def test_the_claim_names_the_drop_rate_that_is_merged_with():
    (claim,) = (
        claim
        for claim in yaml.safe_load((paths.CLAIMS / "tip.yaml").read_text())["claims"]
        if claim["id"] == "tip-dare-dilutes"
    )
    assert claim["here"]["arguments"]["drop_rate"] == tm.METHODS["dare"].options["drop_rate"]
