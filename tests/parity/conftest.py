"""Nothing is skipped: the peers are installed where they are missing."""

import os
import subprocess
import sys

import pytest

from tipmini_lab import paths


@pytest.fixture(scope="session", autouse=True)
def _installed():
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([paths.REPOSITORY / "scripts/peers"], check=True, env=environment)
