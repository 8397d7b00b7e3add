"""The rooms: imports flow one way, as the contracts in pyproject.toml say."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]


def test_imports_flow_one_way(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0, capsys.readouterr()


def test_the_drawing_is_of_the_imports_there_are(tmp_path):
    drawn = tmp_path / "house.svg"
    subprocess.run([sys.executable, "scripts/draw-house", drawn], cwd=ROOT, check=True)
    stands = ROOT / "book" / "assets" / "house.svg"
    assert drawn.read_text() == stands.read_text(), "run scripts/draw-house"


PAGE = "<head>7</head><article><pre>x = 3</pre><p>a 1.5 of <b>1,000</b> &#8722;2</p>{}</article>"


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (PAGE.format(""), []),
        (PAGE.format("").replace("x = 3", "x = 4").replace("a 1.5", "an 1.5"), []),
        (PAGE.format("").replace("1,000", "1,001"), ["page.html: 1,000 -> 1,001"]),
        (PAGE.format("<i>9</i>"), ["page.html: nothing -> 9"]),
        (None, ["page.html: gone"]),
    ],
)
def test_the_same_numbers(tmp_path, after, told):
    for name, text in {"old": PAGE.format(""), "new": after}.items():
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "page.html").write_text(text)
    command = [ROOT / "scripts" / "same-numbers", tmp_path / "old", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [*told, f"1 pages, {len(told)} differences"]
    assert done.returncode == bool(told)
