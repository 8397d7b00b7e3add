"""The GitHub workflows and Binder's files: sound, of least privilege, pinned, of what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = [*ROOT.glob(".github/workflows/*.yml"), *ROOT.glob(".github/actions/*/action.yml")]
TEXT = "\n".join(file.read_text() for file in FILES)
USES = re.compile(r"uses: (?!\./)(\S+)@(\S+)(.*)")
BIN = Path(sys.executable).parent
CHECKERS = [("actionlint",), ("zizmor", "--offline", "--no-progress", "--min-severity=medium", ".")]


@pytest.fixture
def project(tmp_path) -> Path:
    """A project of the workflows alone, to be spoiled."""
    for file in FILES:
        there = tmp_path / file.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(file.read_text())
    (tmp_path / ".git").mkdir()  # actionlint looks for a project's root
    return tmp_path


def faults(project: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [BIN / name, *arguments], cwd=project, capture_output=True, text=True, timeout=120
    )
    return (done.stdout + done.stderr) * bool(done.returncode)


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda c: c[0])
def test_the_workflows_are_sound(project, checker):
    assert faults(project, *checker) == ""


@pytest.mark.parametrize(
    ("checker", "right", "wrong"),
    [
        (CHECKERS[0], "needs: build", "needs: biuld"),
        (CHECKERS[0], "github.ref_type", "github.reftype"),
        (CHECKERS[1], "persist-credentials: false", "fetch-depth: 1"),
        (CHECKERS[1], "run: make book", "run: echo ${{ github.event.head_commit.message }}"),
    ],
)
def test_the_checkers_find_what_is_wrong(project, checker, right, wrong):
    book = project / ".github/workflows/book.yml"
    assert right in book.read_text()
    book.write_text(book.read_text().replace(right, wrong))
    assert faults(project, *checker)


def test_every_action_is_pinned_by_a_commit_and_one_alone():
    used = USES.findall(TEXT)
    assert len(used) >= 8
    for name, commit, version in used:
        assert re.fullmatch(r"[0-9a-f]{40}", commit), name
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", version), name
    assert len({name for name, *_ in used}) == len(set(used))


def test_no_job_may_write_but_those_that_publish():
    workflows = [yaml.safe_load(f.read_text()) for f in FILES if f.parent.name == "workflows"]
    jobs = {name: job for workflow in workflows for name, job in workflow["jobs"].items()}
    assert all(workflow["permissions"] == {} for workflow in workflows)
    assert all(job["timeout-minutes"] for job in jobs.values())
    writing = {n for n, job in jobs.items() if "write" in job["permissions"].values()}
    assert writing == {"notebooks", "deploy"}
    assert all(jobs[name]["if"] == "github.ref == 'refs/heads/main'" for name in writing)


def test_what_is_called_is_there():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in re.findall(r"run: (.*)", TEXT):
        program, *arguments = command.split()
        if program == "make":
            assert arguments[0] in targets
        else:
            assert (ROOT / program).stat().st_mode & 0o111, command


def test_notebooks_are_pushed_below_their_commit(tmp_path):
    """To a branch of their own, which holds nothing else."""
    made = ("-c", "user.name=a", "-c", "user.email=b")
    here = lambda *words: subprocess.run(  # noqa: E731
        ["git", *made, *words], cwd=tmp_path / "here", check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / "here").mkdir()
    here("init", "-q")
    here("init", "-q", "--bare", "../there")
    here("remote", "add", "origin", "../there")
    folder = tmp_path / "a folder"
    folder.mkdir()
    for number in (1, 2):
        here("commit", "-q", "--allow-empty", "-m", f"{number}")
        (folder / "x.ipynb").write_text(f"{number}")
        push = [ROOT / "scripts/push-notebooks", folder]
        subprocess.run(push, cwd=tmp_path / "here", check=True, capture_output=True)
        here("fetch", "-q", "origin")
        commit = here("rev-parse", "HEAD")
        held = here("ls-tree", "-r", "--name-only", "origin/notebooks")
        assert held == f"{commit}/x.ipynb"
        assert here("show", f"origin/notebooks:{held}") == f"{number}"
        assert here("rev-list", "--count", "origin/notebooks") == "1"


def test_binder_installs_the_lock_for_the_same_python():
    binder = ROOT / ".binder"
    (line,) = (binder / "requirements.txt").read_text().split("\n", 1)[:1]
    assert (binder / line.removeprefix("-r ")).resolve() == ROOT / "requirements.lock"
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert (binder / "runtime.txt").read_text().strip().replace("-", "=") in conda
    assert (binder / "postBuild").stat().st_mode & 0o111
