"""`tipmini claims`: what papers say, and whether it holds."""

import json

from tipmini.checkout import in_checkout
from tipmini.commands.arguments import AsJson


@in_checkout
def claims(as_json: AsJson = False) -> None:
    """List every audited claim with its verdict in print and at this book's scale.

    Nothing is measured. A verdict that is not the declared one is an error: one line, exit code 2.
    """
    from tipmini.lab.claims import audit

    audited = audit.audit()
    if as_json:
        print(json.dumps([_facts(each) for each in audited], ensure_ascii=False))
    else:
        _print(audited)
    audit.refuse_changed(audited)


def _facts(each) -> dict[str, object]:
    facts = each.claim.model_dump(mode="json")
    for level in ("in_print", "here"):
        finding = getattr(each, level)
        declared = facts[level].pop("verdict")
        facts[level] |= finding._asdict() | {"declared": declared}
    return facts


def _print(audited) -> None:
    """A table for each paper."""
    from tipmini.lab.claims.declared import declared

    wide = max(len(each.claim.id) for each in audited)
    for name, paper in declared().papers.items():
        own = [each for each in audited if each.claim.paper == name]
        print(f"{paper.title}: {len(own)} claims\n")
        print(f"{'claim':{wide}}  {'in print':46}  here")
        for each in own:
            print(f"{each.claim.id:{wide}}  {each.in_print.verdict:46}  {each.here.verdict}")
        print()
