"""Fetching, with tiny wheels in place of the real ones and pip's only index a folder or a wall."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from wheels import wheel

from tipmini.errors import TipminiError
from tipmini_lab import intact
from tipmini_lab.evaluation import assets

NAMES = ("tiny_one", "tiny_two")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with the tiny wheels: all that pip knows, whatever it is configured with here."""
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    made = {name: {f"data/{name}.txt": f"rows of {name}".encode()} for name in NAMES}
    wheels = tuple(wheel(folder, name, content) for name, content in made.items())
    monkeypatch.setattr(assets, "WHEELS", wheels)
    monkeypatch.setattr(assets, "_dequantise", lambda ready: (ready / "model").mkdir())
    return folder


@pytest.fixture
def no_pip(index, monkeypatch):
    """Where pip is not the point, the wheels are taken as downloaded: pip takes a second each."""

    def download(wheel: assets.Wheel, into: Path) -> Path:
        into.mkdir(parents=True, exist_ok=True)
        return index / f"{wheel.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"

    monkeypatch.setattr(assets, "_download", download)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that already holds something."""
    folder = tmp_path / "cache"
    (folder / "embedded-of-before").mkdir(parents=True)
    (folder / "embedded-of-before" / "rows.txt").write_text("kept")
    monkeypatch.setenv("TIPMINI_CACHE", str(folder))
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder but lists of hashes: the bytes of files, None for folders."""
    found = sorted(p for p in folder.rglob("*") if p.name not in (intact.LIST, intact.SEEN))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}


def refusal(cache: Path) -> str:
    """The one line of a fetch that fails; the cache must be left as it was."""
    before = content(cache)
    with pytest.raises(TipminiError) as error:
        assets.fetch()
    assert content(cache) == before
    assert "\n" not in str(error.value) and str(error.value).startswith("fetch: ")
    return str(error.value)


def test_fetch_unpacks_what_is_listed_and_nothing_else(index, cache, monkeypatch):
    before = content(cache)
    folder = assets.fetch()
    expected = {f"data/{name}.txt": f"rows of {name}".encode() for name in NAMES}
    assert content(folder) == {"data": None, "model": None} | expected
    assert {k: v for k, v in content(cache).items() if not k.startswith(folder.name)} == before
    assert assets.embedded() == folder
    times = lambda: {path: path.stat().st_mtime_ns for path in [cache, *cache.rglob("*")]}  # noqa: E731
    done = times()
    monkeypatch.setattr(assets, "_assemble", lambda work: pytest.fail("fetched again"))
    assert assets.fetch() == folder and times() == done


def test_wrong_hash(index, cache):
    """The second of two wheels differs from what is pinned: not even the first stays."""
    altered = index / "tiny_two-1.0-py3-none-any.whl"
    with zipfile.ZipFile(altered, "a") as archive:
        archive.writestr("tiny_two/more.txt", "not in the pinned one")
    line = refusal(cache)
    assert "tiny-two==1.0" in line and "SHA-256 is not the pinned one" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"},
        {"PIP_PROXY": "http://127.0.0.1:9", "PIP_RETRIES": "0"},
        {"PIP_NO_INDEX": "1"},
    ],
    ids=["nothing listens", "proxy is gone", "nothing listed"],
)
def test_no_index(index, cache, monkeypatch, settings):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    line = refusal(cache)
    assert "tiny-one==1.0" in line and "check the network" in line


def raising(error: Exception):
    def function(*_, **__):
        raise error

    return function


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
IN_RUST = SafetensorError("Error while serializing: I/O error: No space left on device")


@pytest.mark.parametrize(
    ("where", "error"),
    [("shutil.copyfileobj", FULL), ("_dequantise", IN_RUST), ("os.replace", FULL)],
    ids=["unpacking", "saving the model", "renaming"],
)
def test_full_disk(no_pip, cache, monkeypatch, where, error):
    monkeypatch.setattr(f"tipmini_lab.evaluation.assets.{where}", raising(error))
    assert "No space left on device" in refusal(cache)


def test_full_disk_while_pip_downloads(index, cache, monkeypatch, tmp_path):
    pip = tmp_path / "pip"
    pip.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    assert "disk is full" in refusal(cache)


def test_cache_that_cannot_be_made(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TIPMINI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TipminiError, match="Not a directory"):
        assets.fetch()


def test_interrupted(no_pip, cache, monkeypatch):
    before = content(cache)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assets, "_dequantise", raising(KeyboardInterrupt()))
        assets.fetch()
    assert content(cache) == before
    (cache / ".fetch" / "wheels").mkdir(parents=True)  # as a killed one leaves it
    (cache / ".fetch" / "wheels" / "half.whl").write_bytes(b"x")
    assets.fetch()
    assert not (cache / ".fetch").exists()


def test_a_second_process_waits_and_finds_it_done(no_pip, cache, monkeypatch):
    """The first one finishes while the second waits."""

    @contextmanager
    def waiting(folder):
        assert folder == cache
        (assets.folder() / "model").mkdir(parents=True)
        intact.seal(assets.folder())
        yield

    monkeypatch.setattr(assets, "alone", waiting)
    assert content(assets.fetch()) == {"model": None}
    assert not (cache / ".fetch").exists()


KILLED = """
import sys, time
from pathlib import Path
from tipmini_lab.evaluation import assets

assets.WHEELS = tuple(assets.Wheel(*fields) for fields in {wheels!r})

def dequantise(ready):
    (ready / "model").mkdir()
    Path({marker!r}).touch()
    time.sleep(60)

assets._dequantise = dequantise
assets.fetch()
"""


def test_killed_in_the_middle(index, cache, tmp_path):
    """Nothing stands under the final name, and the next fetch works."""
    marker = tmp_path / "unpacked"
    wheels = [(w.requirement, w.sha256, w.members) for w in assets.WHEELS]
    code = KILLED.format(wheels=wheels, marker=str(marker))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        while not marker.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert marker.exists()
    with pytest.raises(TipminiError, match="run `tipmini fetch` first"):
        assets.embedded()
    assert (assets.fetch() / "data" / "tiny_two.txt").read_text() == "rows of tiny_two"


def flip(file: Path) -> None:
    """One bit, as a disk that ages or another program does: size and times are as before."""
    was, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


DAMAGES = {
    "a bit": flip,
    "cut short": lambda file: os.truncate(file, 3),
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "the clock went back": lambda file: (file.write_bytes(b"other"), os.utime(file, (0, 0))),
    "the clock went ahead": lambda file: (file.write_bytes(b"other"), os.utime(file, (2**33,) * 2)),
}


@pytest.mark.parametrize("name", ["data/tiny_one.txt", intact.LIST])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_named_and_fetched_anew(no_pip, cache, capsys, name, damage):
    folder = assets.fetch()
    whole = content(folder)
    assert assets.embedded() == folder and capsys.readouterr().err == ""
    damage(folder / name)
    with pytest.raises(TipminiError) as error:
        assets.embedded()
    assert str(error.value).startswith(f"{folder / name}: ") and "tipmini fetch" in str(error.value)
    assert assets.fetch() == folder == assets.embedded() and content(folder) == whole
    assert capsys.readouterr().err == f"{folder / name}: damaged, all is fetched anew\n"
    assert {path.name for path in cache.iterdir()} == {"embedded-of-before", folder.name}


def test_what_cannot_be_mended_stays(index, cache, monkeypatch):
    folder = assets.fetch()
    flip(folder / "data" / "tiny_one.txt")
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    assert "check the network" in refusal(cache)


def test_a_second_look_reads_nothing(no_pip, cache, monkeypatch):
    """Nor does a third where what was remembered is lost, but once."""
    folder, read = assets.fetch(), []
    digest = intact.file_digest
    monkeypatch.setattr(intact, "file_digest", lambda f: read.append(f.name) or digest(f))
    assert assets.embedded() == folder and read == []
    for lost in (Path.unlink, flip):
        lost(folder / intact.SEEN)
        assert [assets.embedded(), assets.embedded()] == [folder] * 2
        assert sorted(read) == ["tiny_one.txt", "tiny_two.txt"]
        read.clear()
    (folder / "data" / "tiny_one.txt").touch()  # another time alone is no damage
    assert [assets.embedded(), assets.embedded()] == [folder] * 2 and read == ["tiny_one.txt"]


def test_weights_that_change_while_they_are_used(no_pip, cache, monkeypatch):
    """Where nothing but the bytes tells so, before they are used; else after."""

    def dequantise(ready):
        (ready / "model").mkdir()
        (ready / assets.WEIGHTS).write_bytes(bytes(range(99)))

    monkeypatch.setattr(assets, "_dequantise", dequantise)
    file = assets.fetch() / assets.WEIGHTS
    weights = assets.Weights()
    weights.require_same()
    assert weights.sha256 == hashlib.sha256(bytes(range(99))).hexdigest()
    for change in (flip, os.unlink):
        change(file)
        with pytest.raises(TipminiError, match="changed while it was used"):
            weights.require_same()
        assets.fetch()
    with monkeypatch.context() as patch:
        patch.setattr(intact, "identity", lambda file: [0])
        assert assets.embedded()  # remembered by what tells nothing
        flip(file)
        assert assets.embedded()
        with pytest.raises(TipminiError, match="not what was fetched"):
            assets.Weights()


def test_the_folder_follows_what_is_pinned(index, cache, monkeypatch):
    """Another hash or another member is another folder: an old one is never taken for it."""
    first, second = assets.WHEELS
    others = [second._replace(sha256="0" * 64), second._replace(members={})]
    names = {assets.folder()}
    for wheels in (*((first, other) for other in others), (first,)):
        monkeypatch.setattr(assets, "WHEELS", wheels)
        names.add(assets.folder())
    assert len(names) == 4


def test_the_real_ones_are_pinned_and_all_there(embedded):
    data = {f"data/{path.name}" for path in (embedded / "data").iterdir()}
    for pinned in assets.WHEELS:
        assert pinned.requirement.count("==") == 1 and len(bytes.fromhex(pinned.sha256)) == 32
        data -= set(pinned.members.values())
    names = [name for wheel in assets.WHEELS for name in wheel.members.values()]
    assert not data and all((embedded / n).is_file() for n in names if n != assets.GGUF)
    assert {path.name for path in embedded.iterdir()} == {"data", "model", intact.LIST, intact.SEEN}


def test_the_embedded_model(embedded):
    """SmolLM2-135M: a LLaMA of these sizes, de-quantised to float32, input and output tied."""
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    config = json.loads((embedded / "model" / "config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    with safe_open(embedded / "model" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F32"}  # noqa: SIM118
