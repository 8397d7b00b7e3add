"""`PackedLM` against lm-eval's own HFLM, on one tiny model with the embedded tokenizer."""

import copy
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labs import llama, save_adapter, save_llama
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.coqa import utils as coqa

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import evaluator, tasks
from tipmini_lab.evaluation.evaluator import PackedLM, Stop
from tipmini_lab.evaluation.model import load_tokenizer

LENGTH = 128
WORDS = "The cat sat on a mat and looked at the moon, which was full and yellow that night."


@pytest.fixture(scope="module")
def model():
    return llama(length=LENGTH)


@pytest.fixture(scope="module")
def ours(model, tokenizer):
    return PackedLM(model, tokenizer=tokenizer, tokens=200)


@pytest.fixture(scope="module")
def theirs(model, tokenizer):
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, device="cpu")


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


PAIRS = {
    "choices of one question": [(WORDS, f" {word}") for word in ("yes", "no", "extraordinarily")],
    "single tokens": [("Question: is it?\nAnswer:", " yes"), ("Question: is it?\nAnswer:", " no")],
    "different contexts": [("One", " two three"), ("Two", " three"), ("", "four five")],
    "context ends with a space": [("One ", "two"), ("One ", "three")],
    "one twice": [("One", " two"), ("One", " two")],
    "too long a context": [(WORDS * 12, " yes indeed"), (WORDS * 12, " no")],
    "the same letters, cut apart elsewhere": [("A b", " c d"), ("A b c", " d")],
}


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
def test_loglikelihood(ours, theirs, pairs):
    """HFLM is asked one by one: it mixes up requests whose tokens but the last are the same."""
    found = ours.loglikelihood(requests("loglikelihood", pairs))
    expected = [theirs.loglikelihood(requests("loglikelihood", [pair]))[0] for pair in pairs]
    for (mine, greedy), (other, is_greedy) in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, abs=1e-3, rel=1e-5)
        assert greedy == is_greedy


def test_greedy_choices_are_known_as_such(ours, theirs):
    """The model's own continuation, of one token and of several, and one that only begins so."""
    settings = {"until": [], "max_gen_toks": 4, "do_sample": False}
    said = theirs.tok_encode(
        theirs.generate_until(requests("generate_until", [(WORDS, settings)]))[0]
    )
    context = theirs.tok_encode(WORDS)
    asked = [(("", ""), context, said[:1]), (("", ""), context, said)]
    asked.append((("", ""), context, [*said[:-1], (said[-1] + 1) % 1000]))
    found = [greedy for _, greedy in ours._loglikelihood_tokens(asked, disable_tqdm=True)]
    expected = [greedy for _, greedy in theirs._loglikelihood_tokens(asked, disable_tqdm=True)]
    assert found == [bool(x) for x in expected] and found[0] and not found[-1]


@pytest.mark.parametrize("tokens", [1, 60, 100_000])
def test_batching_changes_nothing(ours, model, tokenizer, tokens):
    pairs = [pair for case in PAIRS.values() for pair in case]
    other = PackedLM(model, tokenizer=tokenizer, tokens=tokens)
    found, expected = (lm.loglikelihood(requests("loglikelihood", pairs)) for lm in (other, ours))
    for mine, usual in zip(found, expected, strict=True):
        assert mine == (pytest.approx(usual[0], abs=1e-4), usual[1])


@pytest.mark.parametrize("text", [WORDS, "One", WORDS * 14], ids=["fits", "word", "windows"])
def test_loglikelihood_rolling(ours, theirs, text):
    asked = requests("loglikelihood_rolling", [(text,)])
    found, expected = (lm.loglikelihood_rolling(asked) for lm in (ours, theirs))
    assert found == pytest.approx(expected, abs=1e-2, rel=1e-5)


GENERATION = {
    "limit": [(WORDS, {"until": [], "max_gen_toks": 6})],
    "several of several lengths": [
        (text, {"until": ["\n"], "max_gen_toks": 12}) for text in (WORDS, "One", "One two three")
    ],
    "stops within": [(WORDS, {"until": ["e", "a"], "max_gen_toks": 12})],
    "stop given as a string": [(WORDS, {"until": "i", "max_gen_toks": 12})],
    "different settings": [
        (WORDS, {"until": [], "max_gen_toks": 3}),
        (WORDS, {"until": ["o"], "max_gen_toks": 9}),
    ],
    "too long a prompt": [(WORDS * 12, {"until": [], "max_gen_toks": 5})],
}


@pytest.mark.parametrize("asked", GENERATION.values(), ids=GENERATION)
def test_generate_until(ours, theirs, asked):
    asked = [(text, settings | {"do_sample": False}) for text, settings in asked]
    found, expected = (
        lm.generate_until(requests("generate_until", asked)) for lm in (ours, theirs)
    )
    assert found == expected


def test_an_adapter_is_put_on(model, tokenizer, tmp_path):
    """By folder, for model and adapter both, as the command line names them."""
    folder = str(save_llama(tmp_path / "model", tokenizer))
    adapter = str(save_adapter(tmp_path / "adapter", seed=1))
    asked, same = requests("loglikelihood", PAIRS["choices of one question"]), {"dtype": "float32"}
    found = []
    for path in (None, adapter):
        peer = HFLM(pretrained=folder, peft=path, device="cpu", batch_size=1, **same)
        ours = PackedLM(folder, adapter=path, **same)
        found.append([value for value, _ in ours.loglikelihood(asked)])
        expected = [value for value, _ in peer.loglikelihood(asked)]
        assert found[-1] == pytest.approx(expected, abs=1e-3)
    assert found[0] != pytest.approx(found[1], abs=1e-2)


def test_a_tokenizer_that_sets_a_bos(model, tokenizer):
    """LLaMA-2's does, the embedded one does not; lm-eval leaves it to the tokenizer."""
    from tokenizers.processors import TemplateProcessing

    setting = copy.deepcopy(tokenizer)
    bos = [("<|im_start|>", setting.bos_token_id)]
    setting._tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, bos)
    ours = PackedLM(model, tokenizer=setting)
    theirs = HFLM(pretrained=model, tokenizer=setting, backend="causal", batch_size=1, device="cpu")
    assert ours.tok_encode(WORDS)[0] == setting.bos_token_id
    for case in ("choices of one question", "different contexts"):
        test_loglikelihood(ours, theirs, PAIRS[case])
    test_generate_until(ours, theirs, GENERATION["several of several lengths"])


@pytest.mark.parametrize("task", ["openbookqa", "rte"])
def test_evaluate_gives_a_value_for_every_row(ours, theirs, task):
    """In the split's order, equal to those of lm-eval with its own model."""
    metric = tasks.METRIC[task]
    found = evaluator.evaluate(ours, tasks.load(task, 6), metric)
    expected = evaluator.evaluate(theirs, tasks.load(task, 6), metric)
    assert len(found) == 6 and found == expected


# The name in lm-eval's registry ---------------------------------------------------------------

NAME = """
import sys, tipmini_lab
from lm_eval.api.registry import MODEL_REGISTRY
assert "tipmini" in MODEL_REGISTRY, "not registered"
assert "transformers" not in sys.modules, "importing the lab takes seconds"
"""


def test_importing_the_lab_registers_the_name():
    run = subprocess.run([sys.executable, "-c", NAME], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert get_model("tipmini") is PackedLM


# Stopping after the first line ----------------------------------------------------------------

texts = st.text(st.sampled_from("a \n\tQ:A.x"), max_size=30)
DOC = {
    "questions": {"input_text": ["Who?"]},
    "answers": {"input_text": ["a x"]},
    "additional_answers": {"0": {"input_text": ["Q"]}, "1": {"input_text": ["A. x"]}},
}


def stopped(text: str, first_line: bool) -> str:
    """What a generation that would go on as `text`, a letter a token, is cut to."""
    stop = Stop(None, 0, ["\nQ:"], first_line)
    ends = [end for end in range(1, len(text) + 1) if stop.ends(text[:end])]
    return text[: ends[0]].split("\nQ:")[0] if ends else text


@given(texts)
def test_the_first_line_is_all_that_coqa_reads(text):
    short, long = (stopped(text, first_line) for first_line in (True, False))
    assert coqa.process_results(DOC, [short]) == coqa.process_results(DOC, [long])


SHORT = {" a\nx": " a\n", "\n\na x\nA": "\n\na x\n", "\n \n": "\n \n", "\nQ: A\nx": ""}


@pytest.mark.parametrize(("text", "short"), [*SHORT.items(), ("a", "a"), ("", "")])
def test_the_first_line_that_is_not_empty(text, short):
    assert stopped(text, first_line=True) == short


def test_the_first_line_of_what_the_model_says(model, tokenizer, theirs):
    """Generated with and without: the part up to the first line's end is the same."""
    settings = {"until": ["\nQ:"], "max_gen_toks": 30, "do_sample": False}
    asked = requests("generate_until", [(WORDS, settings), ("Q: who?\n\nA:", settings)])
    lm = PackedLM(model, tokenizer=tokenizer, first_line=True)
    for short, long in zip(lm.generate_until(asked), theirs.generate_until(asked), strict=True):
        assert long.startswith(short)
        assert short.strip().split("\n")[0] == long.strip().split("\n")[0]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": "{"},
        {"tokenizer.json": "{}"},
        {"tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}'},  # without a vocabulary
    ],
)
def test_a_base_without_its_tokenizer_is_one_line(tmp_path, files):
    llama().save_pretrained(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TipminiError, match=r"has no tokenizer that can be read; save") as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ") and "\n" not in str(caught.value)


# Memory ---------------------------------------------------------------------------------------

HELD = """
import torch
from pathlib import Path
from tipmini_lab.evaluation.model import keep_memory, return_memory

held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20  # MiB
keep_memory()
before = held()
blocks = [torch.ones(2**18) for _ in range(400)]  # of 1 MiB
last = blocks[-1]
del blocks
assert held() > before + 300, "it is not kept"
return_memory()
assert held() < before + 100, held() - before
"""


def test_what_is_kept_can_be_returned():
    run = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
