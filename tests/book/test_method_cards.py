"""A card a method, of the table of methods."""

from made_up import ROWS, SMOKE, TITLES

from tipmini.methods.table import METHODS
from tipmini_lab.book import method_cards
from tipmini_lab.results.statistics import MISSING


def test_every_method_has_a_card():
    assert method_cards.FORMULAS.keys() == METHODS.keys()
    frame = method_cards.table(ROWS, SMOKE, TITLES)
    assert len(frame) == len(METHODS)
    frame.index = frame.index.str.partition("<br>{cite}").get_level_values(0)
    assert frame.loc["TIP", "needs"].replace("<br>", " ") == "adapters, input norms"
    assert frame.loc["TIP", "mean accuracy"].startswith("0.500<br>±")
    assert frame.loc["linear", "mean accuracy"] == MISSING
    assert frame.loc["cat", "rank"] == r"$\sum_t r_t$"
