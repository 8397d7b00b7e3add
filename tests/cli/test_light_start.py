"""What starts fast because it imports nothing heavy: help, completion, listing, a dry run."""

import os
import subprocess
import sys

import pytest
from adapters_on_disk import write_all
from merge_command import ADAPTERS, NORMS

from tipmini_lab.commands.main import app

HEAVY = """
datasets gguf huggingface_hub matplotlib pandas peft platformdirs pyarrow scipy sklearn
snakemake tokenizers torch transformers
"""
REFUSING = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY.split()}:
            raise ImportError(f"{{name}} is imported")

sys.meta_path.insert(0, Refuse())
sys.argv = ["tipmini", *sys.argv[1:]]
from tipmini_lab.commands import main as cli
cli.main()
"""
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
DRY = ["merge", "--dry-run", "--out", "m"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    write_all(folder)
    return folder


def run(place, *words, **environment):
    command = [sys.executable, "-c", REFUSING, *words]
    given = {"capture_output": True, "text": True, "env": os.environ | environment}
    return subprocess.run(command, cwd=place, **given)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in COMMANDS if name != "lm-eval"),  # whose help is lm-eval's
        ["methods"],
        ["methods", "--json"],
        ["inspect", *ADAPTERS],
        ["inspect", "--json", *ADAPTERS],
        [*DRY, *ADAPTERS],
        [*DRY, "--method", "tip", *NORMS, *ADAPTERS],
        [*DRY, "--method", "ties", "--on", "delta", *ADAPTERS],
        [*DRY, "--method", "cat", "--into", "base", *ADAPTERS],
        [*DRY, "--weights", "weights.json", *ADAPTERS],
    ],
    ids=" ".join,
)
def test_a_command_imports_nothing_heavy(place, words):
    done = run(place, *words)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("merge --method recomm", "recommended"),
        ("merge --method tip-", "tip-printed tip-inverted tip-dlp"),
        ("merge --method ties -o ", "density= variant= on= rank="),
        ("merge --method tip -o s", "sparsity= sign= shift_range= score= summation="),
        ("merge --method nothing -o ", ""),
        ("evaluate --task co", "coqa"),
        ("norms --task open", "openbookqa"),
        ("measure --profile sm", "smoke"),
        ("measure --group pru", "pruning"),
        ("prune --method rand", "random"),
    ],
)
def test_completion_offers_what_there_is_and_imports_nothing_heavy(place, line, offered):
    words = f"tipmini {line}".split(" ")
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = run(place, _TIPMINI_COMPLETE="complete_bash", **asked)
    assert done.stdout.split() == offered.split(), done.stderr


def test_bad_adapters_are_refused_without_torch(place):
    refused = run(place, *DRY, "--method", "tip", *NORMS[:4], "--norms", "nowhere", *ADAPTERS)
    assert refused.returncode == 2
    assert refused.stderr == "tipmini: nowhere: no such file; give a safetensors file\n"
