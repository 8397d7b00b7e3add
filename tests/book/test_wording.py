"""What the book says of papers: *printed* of their numbers alone, and nothing is said to be missing
of a paper of which the text alone is at hand. And the words it says all in: the field's."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from tipmini_lab import paths
from tipmini_lab.book.claims import Verdict

ROOT = paths.REPOSITORY
QUOTED = {"quote", "english"}  # a paper's own words

NUMBER = r"(?:number|accurac|perplexit|cell|column|table|digit|difference|percentage|reduction)"
# Said of numbers: "printed accuracies", "printed, LLaMA-7B", "printed in the paper's text".
OF_NUMBERS = re.compile(
    rf"printed\W*\s(?:\w+ )?{NUMBER}|printed value\b|printed in the (?:paper|text)"
    r"|(?<!as )(?<!as it is )printed(?=$|[,:]|\*? always means a number| and (?:measured|told)\b)"
    r"|(?:no|not|not called|what is|may be) printed(?! as\b)",
    re.IGNORECASE,
)
PRINTED = re.compile(r"(?<![\w.{-])printed(?![\w.-])", re.IGNORECASE)  # not tip-printed, a name
# What can be missing is missing of the text at hand: its pictures are not in it.
MISSING_OF_A_PAPER = re.compile(
    r"\bpapers? (?:(?:does|do|did) not|none|never|(?:gives|has|have|prints|names|says|tells) "
    r"(?:no|none|neither|nothing)\b)|\b(?:not|nor|nowhere|nothing) (?:\w+ )?in the papers?\b",
    re.IGNORECASE,
)
EQUALITY = re.compile(r"\b(?:equal|identical|same)\b.*\bpublic records?\b", re.IGNORECASE)
CAVEAT = re.compile(r"\bnot\b.* how (?:they|that) came\b", re.IGNORECASE)


def of_yaml(node: object) -> Iterator[str]:
    """The values; keys are names."""
    if isinstance(node, dict):
        node = [value for key, value in node.items() if key not in QUOTED]
    if isinstance(node, list):
        for value in node:
            yield from of_yaml(value)
    elif isinstance(node, str):
        yield node


def of_python(source: str) -> Iterator[str]:
    """Strings and docstrings that have words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield " ".join((ast.get_docstring(node, clean=False) or "").split())


def of_file(file: Path) -> Iterator[str]:
    text = file.read_text()
    if file.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            source = "".join(cell["source"])
            yield from [source] if cell["cell_type"] == "markdown" else of_python(source)
            yield from of_yaml(cell["metadata"])
    elif file.suffix == ".md":
        yield from text.split("\n\n")
    else:
        yield from of_python(text) if file.suffix == ".py" else of_yaml(yaml.safe_load(text))


READ = ["notebooks/*.ipynb", "book/*.md", "README.md", "book/*.yaml", "book/claims/*.yaml"]
READ += ["experiments/*/*.yaml", "profiles/*.yaml", "tipmini/**/*.py", "tipmini_lab/book/**/*.py"]
READ += ["tipmini_lab/commands/*.py"]
TEXTS = [
    (str(file.relative_to(ROOT)), " ".join(text.split()))
    for pattern in READ
    for file in sorted(ROOT.glob(pattern))
    for text in of_file(file)
    if text not in {*Verdict}
]


def other_than_numbers(text: str) -> Iterable[re.Match]:
    allowed = [match.span() for match in OF_NUMBERS.finditer(text)]
    for match in PRINTED.finditer(text):
        if not any(start <= match.start() < end for start, end in allowed):
            yield match


def uncaveated(text: str) -> Iterable[re.Match]:
    return [] if CAVEAT.search(text) else EQUALITY.finditer(text)


# The field's word, and what must not stand for it in what a reader sees. A row is one of a table or
# of a matrix, and `--share` and `--recompute` are flags.
WORDS = {
    "examples": r"\b(?:train|training|evaluation|calibration|embedded|right|your own) rows\b"
    r"|\brows (?:a|per) (?:task|second|step)\b|\b(?:over|on) (?:the |all |fewer |same )*rows\b",
    "validation set": r"\bheld-out\b",
    "sparsity, pruning ratio, fraction": r"\b(?:overall|higher|larger|mean) shares?\b"
    r"|\bshares? (?:asked|removed|pruned|kept|that|of (?:zeros|weights|rows|groups|layers))\b",
    "significantly": r"\b(?:told|tell) apart\b|\bsignificantly apart\b|\bsurely\b"
    r"|\bclearly (?:lower|higher|worse)\b",
    "selection bias": r"\bflatter",
    "reported": r"\b(?:is|are|was) told (?:of|on|where|once|below|above)\b",
    "uses, active adapter": r"\b(?:wears?|wearing|worn)\b",
    "serving configuration": r"\bways? (?:to serve|of serving)\b",
    "gradient checkpointing": r"(?:, |\*)recomputed\b|\bmade again\b",
    "dequantised": r"\bde-quanti[sz]|\bturned back into\b",
    "outlier channel": r"\bloud(?:er|est)?\b",
    "majority class, expected at random": r"\bknow(?:s|ing)? nothing\b",
    "magnitude alone": r"\bsize alone\b",
    "learned": r"(?<![-\w])learnt\b(?!:|$)",
}
HELP = ("tipmini/cli/", "tipmini_lab/commands/")  # where docstrings are help
UNSEEN = {
    text
    for file in ROOT.glob("tipmini*/**/*.py")
    if not str(file.relative_to(ROOT)).startswith(HELP)
    for text in docstrings(file.read_text())
}


RULES = {
    "printed is said of a paper's numbers": other_than_numbers,
    "missing is what the text at hand has not": MISSING_OF_A_PAPER.finditer,
    "Single equals a record: how it came about is not known": uncaveated,
}


def places(look: Callable[[str], Iterable[re.Match]], texts: list[tuple[str, str]]) -> str:
    """A line for each match, with what stands around it."""
    return "\n".join(
        f"{where}: {text[max(0, match.start() - 60) : match.end() + 60]}"
        for where, text in texts
        for match in look(text)
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_book_keeps_to_what_it_knows_of_papers(rule):
    assert len({where for where, _ in TEXTS}) > 60
    assert not (broken := places(RULES[rule], TEXTS)), f"{rule}:\n{broken}"


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("printed", "TIP as printed", "printed accuracies"),
        ("printed", "as printed, Eq. 5 prunes more", "printed, LLaMA-7B"),
        ("printed", "the equation as it is printed", "what is printed of LLaMA-7B"),
        ("printed", "the printed reading", "the printed Table 1"),
        ("printed", "By the printed sign", "**Printed** numbers are the papers'"),
        ("printed", "not printed as text", "not printed"),
        ("missing", "The paper does not say how p is chosen", "How p is chosen is not in the text"),
        ("missing", "when is not in the paper", "is said in the paper"),
        ("missing", "the paper gives no schedule", "the paper gives one"),
        ("missing", "The paper prints neither a cost nor a time", "The paper prints a cost"),
        (
            "Single",
            "the same as a public record",
            "a public record",
        ),
        (
            "Single",
            "numbers equal public records",
            "numbers equal public records; it does not tell how they came to be equal",
        ),
    ],
)
def test_the_rules_tell_these_apart(rule, bad, good):
    (own,) = (look for name, look in RULES.items() if name.startswith(rule))
    assert [*own(bad)] and not [*own(good)]


@pytest.mark.parametrize("word", WORDS)
def test_readers_get_the_fields_words(word):
    seen = [(where, text) for where, text in TEXTS if text not in UNSEEN]
    look = re.compile(WORDS[word], re.IGNORECASE).finditer
    assert not (broken := places(look, seen)), f"{word}:\n{broken}"


@pytest.mark.parametrize(
    ("word", "bad", "good"),
    [
        ("examples", "held-out evaluation rows", "every row of scores"),
        ("examples", "a bootstrap over rows", "the rows of A and the columns of B"),
        ("examples", "milliseconds and rows a second", "rows and columns are removed"),
        ("validation", "held-out training examples", "the validation set"),
        ("sparsity", "the share of zeros", "prune --share 0.5"),
        ("sparsity", "added to the overall share", "a basis that the adapters share"),
        ("significantly", "not significantly apart", "significantly different"),
        ("significantly", "clearly lower", "a clear reason"),
        ("selection", "the highest value is flattered", "selection bias"),
        ("reported", "Retention is told on six tasks", "Retention is reported for six tasks"),
        ("uses", "each row wears its adapter", "each sequence uses its adapter"),
        ("serving", "four ways to serve", "four serving configurations"),
        ("gradient", "LoRA-guided, recomputed", "verdicts are recomputed"),
        ("dequantised", "de-quantised once", "dequantised once"),
        ("outlier", "a weight on a loud channel", "a weight on an outlier channel"),
        ("majority", "two masks that know nothing", "two random masks"),
        ("magnitude", "pruned by size alone", "pruned by magnitude alone"),
        ("learned", "exact sum, learnt weights", "the variant cat-learnt"),
    ],
)
def test_the_words_tell_these_apart(word, bad, good):
    (own,) = (found for name, found in WORDS.items() if name.startswith(word))
    assert re.search(own, bad, re.IGNORECASE) and not re.search(own, good, re.IGNORECASE)
