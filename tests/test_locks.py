"""That one process at a time works towards a name."""

import subprocess
import sys

import pytest

from tipmini.errors import TipminiError
from tipmini_lab.locks import sole

HOLDS = """
import sys
from pathlib import Path
from tipmini_lab.locks import sole
with sole(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_so_until_the_first_ends(tmp_path):
    out = tmp_path / "new" / "merged"
    command = [sys.executable, "-c", HOLDS, out]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(TipminiError, match=r"merged: another process writes it"), sole(out):
        raise AssertionError("both work")
    with sole(tmp_path / "other"):
        pass
    first.kill()
    first.wait()
    with sole(out):
        pass
    assert not [*tmp_path.rglob(".*")]


def test_what_goes_wrong_meanwhile_is_told_as_it_is_and_leaves_no_trace(tmp_path):
    with pytest.raises(BlockingIOError), sole(tmp_path / "a"):
        raise BlockingIOError
    assert not [*tmp_path.iterdir()]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TipminiError, match=r"b: cannot be written"), sole(tmp_path / "file/b"):
        pass
