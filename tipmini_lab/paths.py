"""Where everything lies: the one module that knows paths."""

import os
from pathlib import Path

import platformdirs

from tipmini_lab.checkout import ROOT

REPOSITORY = ROOT
ADAPTERS = REPOSITORY / "adapters"
NOTEBOOKS = REPOSITORY / "notebooks"
BOOK = REPOSITORY / "book"
BUILD = REPOSITORY / "_build"
PRINTED = BOOK / "printed.yaml"
RECORDS = BOOK / "records.yaml"
CLAIMS = BOOK / "claims.yaml"
BENCH = REPOSITORY / "results" / "bench.json"


def cache() -> Path:
    """The folder for what can be fetched again: ``TIPMINI_CACHE`` or the platform's user cache."""
    return Path(os.environ.get("TIPMINI_CACHE") or platformdirs.user_cache_dir("tipmini"))
