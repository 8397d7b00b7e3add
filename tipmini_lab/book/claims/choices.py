"""What else a check might as well be asked: other choices as admissible as a claim's own.

A check is a function of its arguments. An argument of a registered name has alternatives in every
check, and a contender that a paper's file names has forms; each is taken alone, and the verdict
computed again.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

DECLARED = "as declared"
# Of an argument's value and the evidence: {words: other values as admissible as it}.
Choice = Callable[..., Mapping[str, object]]
CHOICES: dict[str, Choice] = {}  # by the name of an argument


def choice(*arguments: str) -> Callable[[Choice], Choice]:
    """Register what else every argument of these names might as well be, in any check."""

    def register(others: Choice) -> Choice:
        for name in arguments:
            if CHOICES.setdefault(name, others) is not others:
                raise ValueError(f"two choices of {name}")
        return others

    return register


def left_out(keys: Sequence[str], title: Callable[[str], str]) -> dict[str, list[str]]:
    """Each one of three or more left out."""
    keys = list(keys) if len(keys) > 2 else []
    return {f"without {title(key)}": [k for k in keys if k != key] for key in keys}


def readings(
    check: Callable, given: dict, evidence: object, forms: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, dict]]:
    """(words, arguments) of every admissible choice beside those given, one at a time.

    forms: {words: {contender: its name there}}.
    """
    for words, names in forms.items():
        if (other := _renamed(given, names)) != given:
            yield words, other
    for name, parameter in inspect.signature(check).parameters.items():
        own = given.get(name, parameter.default)
        for words, other in CHOICES[name](own, evidence).items() if name in CHOICES else ():
            yield words, given | {name: other}


def _renamed(value: object, names: Mapping[str, str]) -> object:
    """Arguments in which contenders have other names, and controls of theirs (NAME.control) too."""
    if isinstance(value, dict):
        return {key: _renamed(own, names) for key, own in value.items()}
    if isinstance(value, list):
        return [_renamed(own, names) for own in value]
    if not isinstance(value, str):
        return value
    head, dot, control = value.partition(".")
    return names.get(head, head) + dot + control
