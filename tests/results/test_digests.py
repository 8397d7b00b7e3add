"""Results are known by hashes of what they follow from; of code, of what it does."""

import importlib
import math
import sys
from textwrap import dedent

import pytest

from tipmini_lab.results import digests

ORIGINAL = '''
import math

def half(x, by=2):
    """Half of x."""
    if x:
        # nothing to do for 0
        return x / by
    if x % 2:
        raise ValueError("x is odd")
    return 0

class Halves:
    """Many of them."""
    size = 3

    def all(self):
        """All."""
        return [half(x) for x in range(self.size)]
'''
SAME = {  # what a reader sees does not count
    "comment": ("# nothing to do for 0", "# another reason"),
    "docstring": ('"""Half of x."""', 'r"""One half."""'),
    "no docstring": ('"""Half of x."""\n    if', "if"),
    "docstring of a class": ('"""Many of them."""', '"""Some."""'),
    "docstring of a method": ('"""All."""', '"""Every one."""'),
    "layout": ("return x / by", "return (x\n                / by)"),
    "annotation": ("half(x, by=2)", "half(x: float, by: float = 2) -> float"),
    "words of an error": ('"x is odd"', '"not even"'),
    "import": ("import math", "import math as maths"),
    "blank lines": ("    return 0\n", "\n\n    return 0\n"),
}
DIFFERENT = {  # what the code does counts
    "constant": ("return 0", "return 1"),
    "default": ("by=2", "by=3"),
    "operator": ("x / by", "x // by"),
    "condition": ("if x:", "if not x:"),
    "kind of error": ("ValueError", "TypeError"),
    "class attribute": ("size = 3", "size = 4"),
    "method": ("half(x) for", "2 * half(x) for"),
}
EDITS = [(*edit, False) for edit in SAME.values()] + [(*e, True) for e in DIFFERENT.values()]


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The digest of `half` and `Halves` in a module of this text, beside others."""
    monkeypatch.setattr(digests, "OURS", ("halves", "thirds", "other"))

    def forget():
        for cached in (digests.code_digest, digests._module, digests._file, digests._told):
            cached.cache_clear()

    def found(source: str, **others: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in {"halves": source, **others}.items():
            (folder / f"{name}.py").write_text(dedent(text))
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(digests, "ROOT", folder)
        importlib.invalidate_caches()
        forget()
        module = importlib.import_module("halves")
        return digests.code_digest(module.half, module.Halves)

    yield found
    forget()


@pytest.mark.parametrize(("old", "new", "counts"), EDITS, ids=[*SAME, *DIFFERENT])
def test_code_is_known_by_what_it_does(digest_of, old, new, counts):
    assert old in ORIGINAL
    assert (digest_of(ORIGINAL) != digest_of(ORIGINAL.replace(old, new))) is counts


USE = "from thirds import third\n"
HALF = "def half(x):\n    return 1.5 * third(x)\n\nclass Halves: pass\n"
THIRD = "SHARE = 3\n\ndef third(x):\n    return x / SHARE\n\ndef unused(x):\n    return 0\n"
WITHIN = HALF.replace("    return", f"    {USE}    return")
OTHER = USE.replace("thirds", "other")


def test_what_is_reached_counts_and_nothing_else(digest_of):
    before = digest_of(USE + HALF, thirds=THIRD)
    assert digest_of(USE + HALF, thirds=THIRD.replace("SHARE = 3", "SHARE = 4")) != before
    assert digest_of(USE + HALF, thirds=THIRD.replace("return 0", "return 1")) == before


@pytest.mark.parametrize(
    ("source", "others"),
    {
        "another module": (OTHER + HALF, {"other": THIRD}),
        "by way of another": (OTHER + HALF, {"other": USE, "thirds": THIRD}),
        "its own module": (THIRD + HALF, {}),
        "asked of its module": (
            "import thirds\n" + HALF.replace("third(x)", "thirds.third(x)"),
            {"thirds": THIRD},
        ),
        "imported where it is used": (WITHIN, {"thirds": THIRD}),
    }.values(),
)
def test_a_digest_survives_a_move(digest_of, source, others):
    assert digest_of(source, **others) == digest_of(USE + HALF, thirds=THIRD)


def test_codes_that_are_proven_equal(tmp_path, monkeypatch):
    (tmp_path / "code.json").write_text('{"evaluation": ["a", "b"], "pruning": ["c"]}')
    known = digests.equal(tmp_path / "code.json")
    monkeypatch.setattr(digests, "equal", lambda: known)
    same = digests.is_same_code
    assert same({"evaluation": "b"}, {"evaluation": "a"}) and same({"new": "d"}, {"new": "d"})
    assert not same({"evaluation": "b"}, {"evaluation": "d"})
    assert not same({"pruning": "a"}, {"pruning": "b"})
    assert not same({"evaluation": "a"}, {"evaluation": "a", "pruning": "c"})
    assert [digests.known_as("evaluation", code) for code in "bd"] == ["a", "d"]


def test_digests_of_contents_and_files(tmp_path):
    """The order of keys alone does not count; of a file, SHA-256's own example."""
    assert digests.digest({"a": 1, "b": [2]}) == digests.digest({"b": [2], "a": 1})
    contents = [{"a": 1}, {"a": "1"}, {"a": 1, "b": None}, [1, 2], [2, 1], math.pi, None]
    assert len({digests.digest(content) for content in contents}) == len(contents)
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests.file_digest(tmp_path / "abc") == known
