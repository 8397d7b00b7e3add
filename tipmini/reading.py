"""How TIP is read where the paper leaves it open; by default as this project does."""

from dataclasses import dataclass

from tipmini.options import check_options


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How TIP is read where the paper leaves it open.

    sparsity: S_org of Eq. 5. on: W of Eq. 1 is A and B ("factors"), A alone ("A": B is left whole
    and counts for nothing), or s B A ("delta"). layer: a transformer block, a module or a factor.
    mean: Eq. 2 over all elements pooled, or over the modules' own means. normalized: Eqs. 3 and 4
    within each adapter, or across all that are merged. sign, shift_range, bounds: of
    `layer_sparsity`. group: whose lowest scores go, each row's or the whole matrix's. rescale:
    survivors times 1 / (1 - S_l).

    Two more take one thing away from TIP, to see what it does. score: what goes at the S_l is
    chosen by Eq. 1, by size alone ("magnitude") or at random. assignment: each layer gets its own
    S_l, all get the adapter's "mean", or the S_l are "shuffled" over its layers.
    """

    sparsity: float = 0.7
    on: str = "factors"
    layer: str = "block"
    mean: str = "elements"
    normalized: str = "within"
    sign: int = 1
    shift_range: float = 1.0
    bounds: str = "clip"
    group: str = "row"
    rescale: bool = False
    score: str = "wanda"
    assignment: str = "layer"

    def __post_init__(self) -> None:
        check_options("tip", vars(self))
