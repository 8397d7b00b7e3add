"""A check of a sentence that claims several things at once: each has a check of its own."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

from tipmini.errors import TipminiError
from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.strict import one_line

Check = Callable[..., Finding]


def combining(checks: Iterable[Check]) -> tuple[Check, Check]:
    """The checks `all_of` and `both_of`, over these checks; each may be a part of the other."""

    def all_of(evidence: Evidence, *, parts: Sequence[Mapping]) -> Finding:
        """Whether all parts hold, or some of them; parts: [{check, arguments}]."""
        return _found(parts, evidence, known, together)

    def both_of(evidence: Evidence, *, parts: Sequence[Mapping]) -> Finding:
        """The same of a sentence that says nothing where one of its parts fails."""
        return _found(parts, evidence, known, none_failing)

    found = all_of, both_of
    known = {check.__name__: check for check in (*checks, *found)}
    return found


def _found(
    parts: Sequence[Mapping],
    evidence: Evidence,
    known: Mapping[str, Check],
    judge: Callable[[Sequence[Verdict]], Verdict],
) -> Finding:
    found = [_called(known, part, evidence) for part in parts]
    told = "; ".join(one.recomputed for one in found)
    words = " ".join(dict.fromkeys(one.words for one in found))
    return Finding(judge([one.verdict for one in found]), told, words)


def _called(known: Mapping[str, Check], part: Mapping, evidence: Evidence) -> Finding:
    check = known.get(part["check"])
    if check is None:
        raise TipminiError(f"check {part['check']!r} is not one of {', '.join(known)}")
    try:
        inspect.signature(check).bind(evidence, **part.get("arguments", {}))
    except TypeError as error:
        raise TipminiError(f"{part['check']}: {one_line(error)}") from None
    return check(evidence, **part.get("arguments", {}))


GOOD = Verdict.HOLDS, Verdict.IN_PART, Verdict.SAME_SETTING


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """All hold; some do, wholly or in part; the contrary of all; or none is supported.

    A setting that is another one decides: what it is of was not measured as the sentence says.
    """
    given = set(verdicts)
    for one in (Verdict.NOT_RUN, Verdict.OTHER_SETTING):
        if one in given:
            return one
    if len(given) == 1:
        return verdicts[0]
    if given == {Verdict.HOLDS, Verdict.SAME_SETTING}:
        return Verdict.HOLDS
    return Verdict.IN_PART if given & set(GOOD) else Verdict.NOT_SUPPORTED


def none_failing(verdicts: Sequence[Verdict]) -> Verdict:
    """`together`, but not in part where one part fails wholly."""
    found = together(verdicts)
    failing = found is Verdict.IN_PART and not set(verdicts) <= set(GOOD)
    return Verdict.NOT_SUPPORTED if failing else found
