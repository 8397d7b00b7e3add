"""The definition of the clusters' image, read as Apptainer does: no Apptainer is here."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from checkouts import checkout

from tipmini_lab import paths

FILE = paths.REPOSITORY / "workflow/tipmini.def"
KNOWN = {"files", "post", "environment", "test", "runscript", "labels", "help", "setup"}


def parsed(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(header, {section: its lines}), without comments and empty lines."""
    header, sections, current = {}, {}, None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if found := re.fullmatch(r"%([a-z]+)", line):
            current = sections.setdefault(found[1], [])
        elif current is None:
            key, value = re.fullmatch(r"([A-Za-z]+): (\S+)", line).groups()
            header[key.lower()] = value
        else:
            current.append(line.strip())
    return header, sections


HEADER, SECTIONS = parsed(FILE.read_text())


def test_the_base_is_pinned_by_its_digest():
    assert HEADER["bootstrap"] == "docker"
    assert re.fullmatch(r"python@sha256:[0-9a-f]{64}", HEADER["from"])  # a tag beside it is refused


def test_the_sections_are_known_and_the_files_there():
    assert set(SECTIONS) <= KNOWN and {"files", "post", "environment"} <= set(SECTIONS)
    copied = [line.split() for line in SECTIONS["files"]]
    assert copied and all((paths.REPOSITORY / here).is_file() for here, _ in copied)
    used = " ".join(SECTIONS["post"])
    assert all(there in used for _, there in copied)


@pytest.mark.parametrize("section", ["post", "environment", "test", "runscript"])
def test_a_shell_reads_every_script(section):
    script = "\n".join(SECTIONS[section])
    checked = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
    assert not checked.returncode, checked.stderr


def test_the_image_holds_the_lock_and_nothing_newer():
    (installing,) = [line for line in SECTIONS["post"] if "pip install" in line]
    assert installing.endswith("--no-deps -r /opt/tipmini/requirements.lock")


APPTAINER = """\
#!/bin/sh
[ "$1" = --version ] && echo apptainer version 1.3.0 && exit
echo "$@" >> {told}
for last; do :; done
PATH={image}:$PATH exec bash -c "$last"
"""


def test_steps_run_in_the_image_where_that_is_asked_for(tmp_path):
    """By an Apptainer that writes down what it is told, and a python of the image's."""
    folder, told, image = checkout(tmp_path / "project"), tmp_path / "told", tmp_path / "image"
    (folder / "workflow/tipmini.sif").touch()
    programs = {tmp_path / "apptainer": APPTAINER.format(told=told, image=image)}
    image.mkdir()
    programs[image / "python"] = f'#!/bin/sh\necho python >> {told}\nexec {sys.executable} "$@"\n'
    for file, content in programs.items():
        file.write_text(content)
        file.chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "_build/fetched"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, "--software-deployment-method", "apptainer"],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    called = told.read_text()
    assert "exec " in called and f"{folder}/workflow/tipmini.sif" in called
    assert "python -m tipmini_lab.commands.main fetch" in called and "\npython\n" in called


def test_the_clusters_settings_are_options_of_snakemake():
    """But for Slurm's own, which its plugin adds."""
    from snakemake.cli import get_argument_parser

    known = {a.lstrip("-") for x in get_argument_parser()._actions for a in x.option_strings}
    settings = yaml.safe_load((paths.REPOSITORY / "workflow/slurm/config.yaml").read_text())
    assert {name for name in settings if not name.startswith("slurm-")} <= known
