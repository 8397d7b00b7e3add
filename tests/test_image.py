"""The definition of the clusters' image, read as Apptainer does: no Apptainer is here."""

import re
import subprocess

import pytest
import yaml

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


def test_the_clusters_settings_are_options_of_snakemake():
    """But for Slurm's own, which its plugin adds."""
    from snakemake.cli import get_argument_parser

    known = {a.lstrip("-") for x in get_argument_parser()._actions for a in x.option_strings}
    settings = yaml.safe_load((paths.REPOSITORY / "workflow/slurm/config.yaml").read_text())
    assert {name for name in settings if not name.startswith("slurm-")} <= known
