"""That one process at a time works towards a name."""

import os
import subprocess
import sys
from pathlib import Path

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


def test_a_lock_that_its_holder_took_away_is_none(tmp_path, monkeypatch):
    """The file that was opened is gone when it is held: another one would be a second holder."""
    opened, opens = [], os.open

    def slow(file, *flags):
        held = opens(file, *flags)
        if not opened:
            Path(file).unlink()  # as who held it does, at the end
        opened.append(held)
        return held

    monkeypatch.setattr(os, "open", slow)
    with sole(tmp_path / "a"):
        assert len(opened) == 2
        assert os.path.samestat(os.fstat(opened[1]), os.stat(tmp_path / ".a.lock"))


def test_what_goes_wrong_meanwhile_is_told_as_it_is_and_leaves_no_trace(tmp_path):
    with pytest.raises(BlockingIOError), sole(tmp_path / "a"):
        raise BlockingIOError
    assert not [*tmp_path.iterdir()]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TipminiError, match=r"b: cannot be written"), sole(tmp_path / "file/b"):
        pass
