"""A check of a sentence that claims several things at once: each has a check of its own."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

from tipmini.errors import TipminiError
from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.strict import one_line

Check = Callable[..., Finding]


def combining(checks: Iterable[Check]) -> Check:
    """The check `all_of`, over these checks."""
    known = {check.__name__: check for check in checks}

    def all_of(evidence: Evidence, *, parts: Sequence[Mapping]) -> Finding:
        """Whether all parts hold; parts: [{check, arguments}]."""
        found = [_called(known, part, evidence) for part in parts]
        verdict = together([one.verdict for one in found])
        told = "; ".join(one.recomputed for one in found)
        return Finding(verdict, told, " ".join(dict.fromkeys(one.words for one in found)))

    return all_of


def _called(known: Mapping[str, Check], part: Mapping, evidence: Evidence) -> Finding:
    check = known.get(part["check"])
    if check is None:
        raise TipminiError(f"check {part['check']!r} is not one of {', '.join(known)}")
    try:
        inspect.signature(check).bind(evidence, **part.get("arguments", {}))
    except TypeError as error:
        raise TipminiError(f"{part['check']}: {one_line(error)}") from None
    return check(evidence, **part.get("arguments", {}))


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """All hold; some do, wholly or in part; the contrary of all; or none is supported."""
    given = set(verdicts)
    if Verdict.NOT_RUN in given:
        return Verdict.NOT_RUN
    if len(given) == 1:
        return verdicts[0]
    return Verdict.IN_PART if given & {Verdict.HOLDS, Verdict.IN_PART} else Verdict.NOT_SUPPORTED
