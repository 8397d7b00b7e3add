"""The merge methods of the library as one table: formula, needs, rank, accuracy."""

from collections.abc import Mapping

import pandas as pd

from tipmini.methods.table import METHODS, Method
from tipmini_lab.book.tables import Titles, estimate, narrow
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results.statistics import mean_of

# What `METHODS` can't say: the equation that a method's function computes.
FORMULAS = {
    "linear": r"$(\sum_t \sqrt{w_t}\, B_t)(\sum_t \sqrt{w_t}\, A_t)$",
    "cat": r"$\sum_t w_t \Delta_t$",
    "svd": r"$\sum_t w_t \Delta_t$,<br>its $r$ largest singular values",
    "dare": r"elements dropped with<br>probability $p$, the rest<br>over $1 - p$, factors summed",
    "ties": r"the largest elements,<br>a sign elected, those<br>that agree averaged",
    "dare_ties": "dropped as by DARE, then<br>elected and averaged<br>as by TIES",
    "magnitude": r"lowest $\lvert W_{ij} \rvert$ set to 0,<br>factors summed",
    "wanda": r"lowest $\lvert W_{ij} \rvert \lVert X_j \rVert$ set to 0,<br>one sparsity",
    "tip": r"lowest $\lvert W_{ij} \rvert \lVert X_j \rVert$ set to 0,<br>a sparsity a layer",
    "regmean": r"$(\sum_t \Delta_t X_t^\top X_t)(\sum_t X_t^\top X_t)^{-1}$",
    "knots": r"$\Delta_1, \dots, \Delta_T$ in a basis<br>that they share (SVD), there TIES",
    "tsv": r"$P(U)\, \Sigma\, P(V)^\top$: singular vectors<br>of all $\Delta_t$ made orthogonal",
    "iso": r"$\bar\sigma U V^\top$ of $\sum_t \Delta_t = U \Sigma V^\top$",
    "wudi": r"$(\sum_t \Delta_t G_t)(\sum_t G_t)^+$,<br>"
    r"$G_t = \Delta_t^\top \Delta_t / \lVert \Delta_t \rVert^2$",
}
NEEDS = {None: "adapters", "norms": "adapters, input norms", "grams": "adapters, Gram matrices"}
RANKS = {
    "linear": "$r$",
    "svd": "$r$",
    "cat": r"$\sum_t r_t$",
    "span": r"$\sum_t r_t$",
}  # by how factors are put together


def table(rows: pd.DataFrame, profile: Profile, titles: Titles) -> pd.DataFrame:
    """A row a method of the library."""
    return pd.DataFrame(
        {
            f"{narrow(titles.get(name, name), 14)}<br>{{cite}}`{method.reference}`": _card(
                name, method
            )
            | {
                "mean accuracy": estimate(mean_of(rows, name, profile.tasks)).replace(
                    " ± ", "<br>±"
                )
            }
            for name, method in METHODS.items()
        }
    ).T.rename_axis("method")


def _card(name: str, method: Method) -> Mapping[str, str]:
    return {
        "formula": FORMULAS[name],
        "needs": narrow(NEEDS[method.needs], 14),
        "rank": RANKS[method.summed],
    }
