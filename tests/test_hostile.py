"""Hostile texts, files and archives through every entry: refused in one line, or only names."""

import json
import os
import resource
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from adapters_on_disk import tiny_base, write_all
from folders import CONFIG, MODULE, WEIGHTS, A, join
from hostile import IN_FILES, TEXTS, one_line, watched
from safetensors.torch import save_file
from tiny import random_adapter

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.models import hub
from tipmini.models.base_folder import INDEX, open_base
from tipmini.models.files import TensorFile, read_header
from tipmini_lab import paths
from tipmini_lab.book import recomputing, workflow  # noqa: F401  `again` imports it
from tipmini_lab.commands import main
from tipmini_lab.evaluation import assets, model, tasks

ROOT = paths.REPOSITORY
PAIR = "adapters/piqa adapters/rte"
OWN = "--text own.jsonl --adapter adapters/piqa"

# Command lines; @ is the hostile text. What is not about the text is whole, so that it comes to it.
LINES = f"""
inspect @
merge --out m adapters/piqa @
merge --method cat --quiet --out @ {PAIR}
merge --method cat --quiet --out m --base-model @ {PAIR}
merge --method tip --out m --norms @ --norms @ {PAIR}
merge --method regmean --out m --grams @ --grams @ {PAIR}
merge --out m --weights @ {PAIR}
merge --out m --weights @.json {PAIR}
merge --config @
merge --out m --into @ {PAIR}
merge --out m --method @ {PAIR}
merge --out m --option @ {PAIR}
merge --out m --method ties --option density=@ {PAIR}
merge --out m --heads @ {PAIR}
merge --out m --dtype @ {PAIR}
merge --out m --seed @ {PAIR}
calibrate --out n --task @
calibrate --out n --adapter adapters/piqa --text @
calibrate --out n --adapter adapters/piqa --text @.jsonl
calibrate --out n --task piqa --statistic @
calibrate --out n --text own.jsonl --adapter @
calibrate --out n {OWN} --base @
calibrate --out n --adapter adapters/piqa --task piqa --include-path @
calibrate --out @ --adapter adapters/piqa --text missing.txt
weigh --out @.json --adapter adapters/piqa --text missing.txt
weigh --out w.json --adapter adapters/piqa --text @
weigh --out w.json --adapter adapters/piqa --task @
distill --out d --text own.jsonl @
distill --out @ --text missing.jsonl adapters/piqa
blockwise --out d --text own.jsonl @
blockwise --out d --method @ adapters/piqa
blockwise --out @ --text missing.jsonl adapters/piqa
evaluate --task piqa --adapter @
evaluate --base base --task @
evaluate --task piqa --base @
evaluate --task missing --out @
evaluate --task missing --include-path @
evaluate --task piqa --device @
measure --profile smoke --method @
measure --profile smoke --group @
measure --profile smoke --group few --variant @
measure --profile smoke --group pruning --variant @
measure --profile smoke --group mmlu --variant @
measure --profile smoke --group elastic --variant @
measure --profile smoke --group lora-ranks --variant @
measure --profile smoke --method tip --task @
measure --profile smoke --group few --task @
measure --profile @
measure --profile @.yaml
measure --profile smoke --part @
measure --profile smoke --dry-run --task @
measure --profile smoke --dry-run --group @
norms --profile smoke --task @
norms --profile @
again --profile @
reproduce --profile @
book --profile @
rehearse --profile @
batch @ --profile smoke
batch @ --profile smoke --dry-run
batch measured --profile smoke --group @
batch measured --profile smoke --cluster @
batch measured --profile smoke --jobs @
batch measured --profile @.yaml
adapters --out trained --task @
prune --dry-run --base base --out @
prune --dry-run --base @ --out p
prune --dry-run --base base --out p --method @
prune --dry-run --base base --out p --task @
prune --dry-run --base base --out p --text @.txt
prune --dry-run --base base --out p --schedule @
prune --dry-run --base base --out p --threshold @
prune --dry-run --base base --out p --reduction @
""".strip().splitlines()
CLIMBING = ("../x.safetensors", "/x.safetensors", "..", ".", "a/../../x", "./x.safetensors")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write_all(folder)
    (folder / "own.jsonl").write_text('{"text": "The sky is blue."}\n')
    return folder


@pytest.fixture
def place(kept, tmp_path, monkeypatch) -> Path:
    """The working folder, two below where anything may be written; no model is ever loaded."""

    def never(*_: object, **__: object) -> None:
        raise TipminiError("a model would be loaded")

    for name in ("tmp", "build"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("load_base", "load_tokenizer"):
        monkeypatch.setattr(model, name, never)
    monkeypatch.setattr(assets, "fetch", lambda: None)
    monkeypatch.setattr(assets, "Weights", never)
    index = SimpleNamespace(all_tasks=["piqa"], all_subtasks=["piqa"])  # lm-eval's takes seconds
    monkeypatch.setattr(tasks, "TaskManager", lambda **_: index)
    monkeypatch.setattr(workflow.subprocess, "run", never)
    shutil.copytree(kept, tmp_path / "a/b")
    monkeypatch.chdir(tmp_path / "a/b")
    yield tmp_path
    found = [file for folder in (tmp_path, ROOT) for file in folder.glob("**/PWNED")]
    assert found == []


# The command line ---------------------------------------------------------------------------------
@pytest.fixture
def call(place, monkeypatch, capsys) -> Callable[..., int]:
    """The exit code of a command line, 0 or 2; what is refused is one line that no terminal
    obeys."""

    def called(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tipmini", *words])
        with watched(place), pytest.raises(SystemExit) as left:
            main.main()
        shown, code = capsys.readouterr(), left.value.code
        assert code in (0, 2)
        if code:
            (told,) = shown.err.splitlines()
            assert told.startswith("tipmini") and told.isprintable() and not shown.out
        return code

    return called


@pytest.mark.parametrize("line", LINES)
def test_a_text_on_the_command_line_is_a_name_or_refused(call, line):
    codes = [call(*(w.replace("@", text) for w in line.split())) for text in TEXTS.values()]
    assert len(codes) == len(TEXTS) and 2 in codes


ARGUMENTS = ("adapters", "out", "method", "weights", "norms", "grams", "seed", "into", "base_model")
ARGUMENTS += ("heads", "dtype", "sparsity", "density", "summation", "rank_pattern", "overwrite")


@pytest.mark.parametrize("argument", [*ARGUMENTS, None, "the file"])
def test_a_text_in_the_yaml_of_a_merge(call, argument):
    """As an argument's value, as an argument, as the whole file."""
    for text in IN_FILES.values():
        told = {"method": "cat", "adapters": PAIR.split(), "out": "m"}
        told = told | ({text: 1} if argument is None else {argument: text})
        raw = text.encode("utf-8", "surrogatepass")
        Path("merge.yaml").write_bytes(raw if argument == "the file" else json.dumps(told).encode())
        call("merge", "--quiet", "--config", "merge.yaml")
        shutil.rmtree("m", ignore_errors=True)


MOST = (*ARGUMENTS, "adapters", "on", "rank", "sign", "unknown")


@pytest.mark.parametrize("argument", sorted({*MOST}))
def test_a_few_lines_of_yaml_that_name_billions_of_parts(call, bounded, argument):
    """Aliases of aliases: read they are small, written out they would fill the memory."""
    levels = [f"&a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(12)]
    lines = {"method": "ties", "adapters": "[adapters/piqa]", "out": "m"}
    lines |= {argument: f"[{', '.join(levels)}]"}
    Path("merge.yaml").write_text("\n".join(f'"{n}": {value}' for n, value in lines.items()))
    assert call("merge", "--config", "merge.yaml") == 2


def merge_of(config: str) -> None:
    from tipmini.cli.merge import run
    from tipmini.cli.merge_request import make_request

    run(make_request({}, Path(config)), lambda steps, **_: steps)


# What others wrote: adapters, norms, base models --------------------------------------------------
SETTINGS = ("base_model_name_or_path", "revision", "task_type", "peft_type", "target_modules")
SETTINGS += ("rank_pattern", "alpha_pattern", "exclude_modules", "modules_to_save", "auto_mapping")
SETTINGS += ("init_lora_weights", "r", "bias", "layers_pattern")
KINDS = (lambda text: text, lambda text: [text], lambda text: {text: text}, lambda text: {text: 4})


@pytest.mark.parametrize("setting", [*SETTINGS, None])
def test_a_text_in_the_settings_of_an_adapter(place, setting):
    whole = json.loads(Path("adapters/piqa", CONFIG).read_text())
    tried = 0
    for text in IN_FILES.values():
        for kind in KINDS:
            told = whole | {text if setting is None else setting: kind(text)}
            Path("adapters/piqa", CONFIG).write_text(json.dumps(told))
            tried += 1
            tm.inspect_folder("adapters/piqa")
            if not one_line(merge_one, place):
                front = Path("m/README.md").read_text().split("---\n")[1]
                assert yaml.safe_load(front).keys() <= {"base_model", "base_model_relation"} | CARD
                shutil.rmtree("m")
    assert tried == len(IN_FILES) * len(KINDS)


CARD = {"library_name", "tags", "pipeline_tag"}


def merge_one() -> None:
    Path("merge.yaml").write_text("{method: cat, adapters: [adapters/piqa], out: m}")
    merge_of("merge.yaml")


def header(**entries: object) -> bytes:
    return join(entries, b"\0" * 512)


def entry(shape: object = (4, 32), offsets: object = (0, 512), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


B = A.replace("lora_A", "lora_B")
BOMBS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 1 TB": struct.pack("<Q", 2**40) + b"{}" + b" " * 99,
    "a header of -1 byte": struct.pack("<q", -1) + b"{}",
    "2^40 x 2^40 numbers": header(**{A: entry([2**40, 2**40])}),
    "2^64 numbers, 0 in 64 bits": header(**{A: entry([2**32, 2**32], [0, 0])}),
    "a size of 2^64": header(**{A: entry([2**64])}),
    "a size of -1": header(**{A: entry([-1, -128])}),
    "an end of 2^62": header(**{A: entry([2**60], [0, 2**62])}),
    "an end before the start": header(**{A: entry(offsets=[512, 0])}),
    "a start of -512": header(**{A: entry(offsets=[-512, 0])}),
    "broken offsets": header(**{A: entry(offsets=[0.0, 512.0])}),
    "the same bytes twice": header(**{A: entry(), B: entry()}),
    "bytes shared in part": header(**{A: entry([64], [0, 256]), B: entry([64], [128, 384])}),
    "bytes left over": header(**{A: entry([64], [0, 256])}),
    "an unknown type": header(**{A: entry(dtype="F512")}),
    "nested": join(b'{"a":' + b"[" * (1 << 20), b""),
    "20 MB of metadata": join({"__metadata__": {"x": "x" * (20 << 20)}}, b""),
    "a thousand digits": join(b'{"a": %s}' % (b"9" * 10**5), b""),
}


@pytest.fixture
def bounded() -> Iterator[None]:
    """No more than so many MB are ever held at once, of whatever size is claimed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_header_that_lies_is_refused_before_it_is_believed(place, bounded, bomb):
    shutil.copytree("base", "spoilt")
    file = Path("bomb.safetensors")
    for where in (file, Path("adapters/piqa", WEIGHTS), Path("spoilt/model.safetensors")):
        where.write_bytes(bomb)
    for act in (lambda: TensorFile(file), merge_one, lambda: open_base("spoilt")):
        assert "safetensors" in one_line(act, place)


def test_a_file_with_a_hole_is_not_read_for_its_size(place, bounded):
    """A terabyte that takes no place on the disk, all of it claimed as the header."""
    with Path("bomb.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", 2**40 - 8))
        stream.truncate(2**40)
    assert "header claims" in one_line(lambda: read_header(Path("bomb.safetensors")), place)


def test_small_factors_of_a_huge_delta_are_refused_where_it_would_be_made(place, bounded):
    wide = torch.ones(1, 1 << 20)
    factors = {MODULE: tm.LoraFactors(wide, wide.T.contiguous(), 1.0)}
    tm.LoraAdapter(factors, "tiny").save("wide")
    Path("merge.yaml").write_text("{method: ties, 'on': delta, adapters: [wide, wide], out: m}")
    assert "takes more than" in one_line(lambda: merge_of("merge.yaml"), place)


def test_a_text_as_a_tensors_name(place):
    numbers = Path("adapters/piqa", WEIGHTS).read_bytes()
    for text in IN_FILES.values():
        for name in (text, f"base_model.model.{text}.lora_A.weight", f"{MODULE}.{text}.weight"):
            other = name.replace("lora_A", "lora_B")
            both = {name: entry(), other: entry([32, 4], [512, 1024])}
            Path("adapters/piqa", WEIGHTS).write_bytes(join(both, b"\0" * 1024))
            one_line(merge_one, place)
            shutil.rmtree("m", ignore_errors=True)
    Path("adapters/piqa", WEIGHTS).write_bytes(numbers)
    assert one_line(merge_one, place) == ""


def sharded(**places: str) -> Path:
    folder = Path("sharded")
    if not folder.is_dir():
        tiny_base(folder, shards="20KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= places
    (Path("spoilt")).mkdir(exist_ok=True)
    for file in folder.iterdir():
        shutil.copy(file, "spoilt")
    Path("spoilt", INDEX).write_text(json.dumps(index))
    return Path("spoilt")


def test_a_text_in_the_index_of_a_base(place):
    save_file({"secret": torch.ones(2)}, "x.safetensors")
    save_file({"secret": torch.ones(2)}, place / "a/x.safetensors")
    for text in [*IN_FILES.values(), *CLIMBING, os.path.abspath("x.safetensors")]:
        opened = lambda text=text: open_base(sharded(secret=text))  # noqa: E731
        assert one_line(opened, place), text
    first = sorted(Path("sharded").glob("*.safetensors"))[0].name
    for text in IN_FILES.values():  # as a tensor's name
        opened = lambda text=text: open_base(sharded(**{text: first}))  # noqa: E731
        assert one_line(opened, place), text


def test_a_link_out_of_a_base_is_not_copied_along(place):
    """But as the hub's cache has it: each file a link into the blobs beside the snapshots."""
    (place / "secret.txt").write_text("PWNED")
    Path("base/notes.txt").symlink_to(place / "secret.txt")
    update = random_adapter(0).factors
    written = lambda: tm.save_merged(open_base("base"), update, "m")  # noqa: E731
    assert "base/notes.txt: a link out of the folder" in one_line(written, place)
    assert not Path("m").exists()
    Path("base/notes.txt").unlink()
    cache = Path("models--owner--name")
    shutil.copytree("base", cache / "snapshots/0123")
    (cache / "blobs").mkdir()
    for file in (cache / "snapshots/0123").iterdir():
        file.rename(cache / "blobs" / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    tm.save_merged(open_base(cache / "snapshots/0123"), update, "m")
    assert Path("m/generation_config.json").is_file() and not Path("m/config.json").is_symlink()


OWN_CODE = {"AutoConfig": "own.Own", "AutoTokenizer": "own.Own", "AutoModelForCausalLM": "own.Own"}


def test_a_models_own_code_is_not_run_whoever_is_asked(tmp_path, monkeypatch):
    """Of a folder with code of its own transformers asks on the terminal whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    config = {"model_type": "own", "auto_map": OWN_CODE}
    for name, told in {"config": config, "tokenizer_config": {"auto_map": OWN_CODE}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    for read in (model.number_format, model.load_base, model.load_tokenizer):
        assert str(tmp_path) in one_line(lambda read=read: read(tmp_path), tmp_path)


def test_a_models_pickle_is_not_read(tmp_path):
    tiny_base(tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.ones(64, 32)}, tmp_path / "base/pytorch_model.bin")
    read = lambda: model.load_base(tmp_path / "base", "float32")  # noqa: E731
    assert "model.safetensors" in one_line(read, tmp_path)


def test_no_id_of_the_hub_climbs():
    climbing = ["a/b@c/../../d", "a/b/../c", "../a/b", "a/..", "a/b@../c", "a/b@c..d"]
    for text in [*climbing, *TEXTS.values()]:
        for given in (text, f"owner/{text}", f"owner/name/{text}", f"owner/name@{text}"):
            assert not hub.ID.fullmatch(given) or ".." not in given
    assert hub.ID.fullmatch("owner/a..b/c@refs/pr/1")


def test_how_many_were_tried():
    """So that none falls out of a table unseen; those of the workflow are counted beside it."""
    texts, in_files = len(TEXTS), len(IN_FILES)
    counts = {
        "command lines": len(LINES) * texts,
        "YAML of a merge": (len(ARGUMENTS) + 2) * in_files + len({*MOST}),
        "settings of an adapter": (len(SETTINGS) + 1) * len(KINDS) * in_files,
        "headers": 3 * len(BOMBS) + 2,
        "names of tensors": 3 * in_files,
        "indices": 2 * in_files + len(CLIMBING) + 1,
    }
    print("hostile inputs:", counts)
    assert sum(counts.values()) == 3993
