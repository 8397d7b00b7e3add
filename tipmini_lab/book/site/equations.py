"""A Sphinx extension: an equation has one number, the one that its label says: "TIP Eq. 5"."""

from sphinx.application import Sphinx
from sphinx.domains.math import MathDomain

PAPERS = {"tip": "TIP", "loraprune": "LoRAPrune", "lora": "LoRA", "elastic": "elastic"}


def number(label: str) -> str | None:
    """Of a label such as tip-eq-5; None of any other."""
    paper, _, count = label.partition("-eq-")
    return f"{PAPERS[paper]} Eq. {count}" if paper in PAPERS and count else None


class Equations(MathDomain):
    """Sphinx's own, which would count through the chapters."""

    def note_equation(self, docname: str, labelid: str, location: object = None) -> None:
        super().note_equation(docname, labelid, location)
        if own := number(labelid):
            self.equations[labelid] = (docname, own)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_domain(Equations, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
