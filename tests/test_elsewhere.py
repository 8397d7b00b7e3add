"""`walked_elsewhere.py` in a process of its own: a second device is torch's for good, and
gradient checkpointing of later tests would ask it for its number formats."""

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_path_walks_on_a_second_device():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "walked_elsewhere.py"], cwd=TESTS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 10
