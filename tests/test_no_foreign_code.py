"""Nothing here unpickles, runs a text as code, or lets a model's folder bring code along."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [f for room in ("tipmini", "tipmini_lab", "bench") for f in (ROOT / room).rglob("*.py")]
PROGRAMS += [f for f in (ROOT / "scripts").iterdir() if b"python" in f.read_bytes().split(b"\n")[0]]
NOTEBOOKS = [*(ROOT / "notebooks").glob("*.ipynb")]

PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = ("eval", "exec", "compile", "__import__")  # by name alone: a model has an eval() too
METHODS = ("os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
METHODS += ("pandas.read_pickle", "pd.read_pickle", "torch.load")
ENDINGS = ("extractall", "unpack_archive", "to_pickle")
TRUE = ("shell", "trust_remote_code", "allow_pickle")
ASKS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModel")  # unless told no

# Where one stands for a reason.
ALLOWED = {
    (
        "tipmini/cli/merge_request.py",
        "yaml.load",
    ): "by SafeLoader, made stricter",
    ("tipmini_lab/book/workflow.py", "yaml.load"): "by BaseLoader, which makes texts alone",
    ("tipmini_lab/evaluation/assets.py", "AutoModelForCausalLM"): "of a wheel pinned by its hash",
    ("tipmini_lab/evaluation/assets.py", "AutoTokenizer"): "of a wheel pinned by its hash",
}


def faults(text: str) -> Iterator[str]:
    """What a program does of these, by its syntax."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.partition(".")[0] in PICKLES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in PICKLES:
                yield module
            case ast.Call():
                yield from _of_call(node)


def _of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    told = {word.arg: getattr(word.value, "value", word) for word in call.keywords}
    safe = told.get("weights_only") is True and name == "torch.load"
    if name in CALLS or name.endswith(ENDINGS) or (name in METHODS and not safe):
        yield name
    yield from (word for word in TRUE if told.get(word, False) is not False)
    kind, _, method = name.rpartition(".")
    asks = kind in ASKS and method in ("from_pretrained", "from_config")
    if asks and told.get("trust_remote_code") is not False:
        yield kind
    if name == "AutoModelForCausalLM.from_pretrained" and told.get("use_safetensors") is not True:
        yield kind


def programs() -> Iterator[tuple[str, str]]:
    for file in PROGRAMS:
        yield str(file.relative_to(ROOT)), file.read_text()
    for file in NOTEBOOKS:
        cells = json.loads(file.read_text())["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        yield str(file.relative_to(ROOT)), code


def test_no_program_here_does_any_of_it():
    found = {(name, fault) for name, text in programs() for fault in faults(text)}
    assert found == ALLOWED.keys()
    assert len(PROGRAMS) > 100 and len(NOTEBOOKS) > 5


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "import joblib.memory",
        "eval(x)",
        "exec(x)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=safe)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=way)",
        "os.system(x)",
        "yaml.load(x)",
        "yaml.unsafe_load(x)",
        "np.load(x, allow_pickle=True)",
        "tar.extractall(x)",
        "load(x, trust_remote_code=True)",
        "AutoConfig.from_pretrained(x)",
        "AutoModelForCausalLM.from_config(x)",
        "AutoModelForCausalLM.from_pretrained(x, trust_remote_code=False)",
    ],
)
def test_it_would_be_found(text):
    assert [*faults(text)]


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "torch.load(file, weights_only=True)",
        "subprocess.run(x, shell=False)",
        "yaml.safe_load(x)",
        "AutoConfig.from_pretrained(x, trust_remote_code=False)",
    ],
)
def test_what_is_no_such_thing_is_not_found(text):
    assert [*faults(text)] == []
