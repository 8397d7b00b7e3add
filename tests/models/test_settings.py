"""Which settings are refused, in one line each: no plain LoRA, of the wrong kind, or no JSON."""

import dataclasses

import pytest
from folders import CONFIG, MODULE, edit_config, refusal
from peft import LoraConfig

from tipmini.models import peft_settings
from tipmini.models.adapter import load_adapter
from tipmini.models.peft_folder import MAX_CONFIG
from tipmini.models.peft_settings import EXTRAS, SETTINGS, Settings

# A value that PEFT's own setting takes and that makes the adapter more than s B A.
SET = {
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 3},
    "bias": "all",
    "ensure_weight_tying": True,
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2]],
    "lora_bias": True,
    "megatron_config": {"hidden_size": 32},
    "modules_to_save": ["lm_head"],
    "monteclora_config": {"num_samples": 2},
    "target_parameters": ["experts.down_proj"],
    "trainable_token_indices": [3],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_more_than_lora_is_refused_with_a_reason(folder, name):
    edit_config(folder, **{name: SET[name]})
    line = refusal(folder)
    assert f": {name} is " in line and f"; {EXTRAS[name]}; only plain LoRA" in line


def test_every_setting_of_the_installed_peft_is_known_and_every_kind_is_tried():
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= SETTINGS
    assert Settings.model_fields.keys() - {"layers_pattern"} <= WRONG.keys()


@pytest.mark.parametrize("init", ["gaussian", "eva", "orthogonal", "mica", True, False, None])
def test_starts_that_leave_the_base_alone_are_read(folder, init):
    edit_config(folder, init_lora_weights=init)
    assert load_adapter(folder).modules == [MODULE]


NEWER = {
    "a switch": ({"use_marvel": True}, "'use_marvel' is no setting of PEFT 0.21"),
    "a table": ({"marvel_config": {"a": 1}}, "'marvel_config' is no setting of PEFT 0.21"),
    "a start": (
        {"init_lora_weights": "marvel"},
        "init_lora_weights 'marvel' is unknown to PEFT 0.21",
    ),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base model"),
}


@pytest.mark.parametrize(("changes", "why"), NEWER.values(), ids=NEWER)
def test_what_may_change_the_meaning_is_refused(folder, changes, why):
    edit_config(folder, **changes)
    assert why in refusal(folder)


NUMBERS = [None, "8", True, [8], {}, float("nan"), float("inf"), 10**400, -(10**400)]
WRONG = {
    "r": [*NUMBERS, 0, -4, 4.0, 2**40],
    "lora_alpha": [*NUMBERS, 1e39],
    "rank_pattern": ["q", [], 3, {"q": 0}, {"q": "2"}, {"q": None}, {"q": 2.0}, {"a\nb": 2}],
    "alpha_pattern": ["q", [], 3, {"q": "2"}, {"q": None}, {"q": 1e300}, {"q": [1]}],
    "use_rslora": ["false", 0, 1, [], {}],
    "fan_in_fan_out": ["yes", 3],
    "base_model_name_or_path": [3, [], {}, "two\nlines", "\x1b[2J", "\ud800", "x" * 9999],
    "task_type": [3, [], {}, "POETRY", ""],
    "target_modules": [3, {}, [3], [None], [["q_proj"]], ""],
    "exclude_modules": [3, {}, [3], [None]],
    "layers_to_transform": ["0", [None], ["0"], {}, -1, [True]],
    "init_lora_weights": [3, [], {}, "a\nb", "pissa", "OLoRA", "x" * 10**5],
    "revision": [3, [], {}, "two\nlines"],
    "auto_mapping": ["x", 3, [1]],
    "modules_to_save": ["score", 3, {"a": 1}, [3]],
    "bias": ["all", 3, ["none"]],
    "peft_type": [None, "ADALORA", "lora", ["LORA"], {"LORA": 1}],
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_the_wrong_kind_are_refused(folder, name):
    for value in WRONG[name]:
        edit_config(folder, **{name: value})
        line = refusal(folder)
        assert line.startswith(f"/{CONFIG}: ") and len(line) < 1000


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("(", "is no regular expression"),
        ("a{99999999999}", "is no regular expression"),
        ("(" * 2000 + ")" * 2000, "is no regular expression"),
        ("(?i)a", "is no regular expression"),
        ("([a-z._0-9]|[a-z._0-9])*[!?]", "takes too long to match"),
    ],
    ids=["bracket", "repeat", "deep", "flag", "slow"],
)
def test_patterns_that_cannot_be_matched_are_refused(folder, monkeypatch, key, why):
    monkeypatch.setattr(peft_settings, "MATCH_SECONDS", 0.1)
    edit_config(folder, rank_pattern={key: 4})
    assert why in refusal(folder)


CONFIGS = {
    "deep": (b'{"r":' * 100_000, "nested too deeply"),
    "deep list": (b'{"r":' + b"[" * 100_000, "nested too deeply"),
    "a hundred megabytes": (b'{"r": "' + b"x" * (100 << 20) + b'"}', "larger than 8 MB"),
    "just too large": (b" " * (MAX_CONFIG + 1), "larger than 8 MB"),
    "not UTF-8": ('{"peft_type": "LORA", "x": "é"}'.encode("latin-1"), "not a readable JSON"),
    "UTF-16": ('{"peft_type": "LORA"}'.encode("utf-16"), "not a readable JSON"),
    "a mark before": (b'\xef\xbb\xbf{"peft_type": "LORA"}', "not a readable JSON"),
    "twice": (b'{"peft_type": "LORA", "r": 4, "r": 8}', "'r' stands there twice"),
    "NaN": (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is no JSON number"),
    "Infinity": (b'{"peft_type": "LORA", "lora_alpha": -Infinity}', "-Infinity is no JSON"),
    "a long number": (b'{"r": ' + b"9" * 5000 + b"}", "not a readable JSON"),
    "empty": (b"", "not a readable JSON"),
    "zeros": (b"\0" * 1000, "not a readable JSON"),
}


CONFIGS["deep where json takes it"] = (
    b'{"peft_type": "LORA", "r": %s}' % (b"[" * 900 + b"]" * 900),
    "r must be a whole number",
)


@pytest.mark.parametrize(("data", "why"), CONFIGS.values(), ids=CONFIGS)
def test_settings_that_are_no_json_are_refused(folder, data, why):
    (folder / CONFIG).write_bytes(data)
    line = refusal(folder)
    assert line.startswith(f"/{CONFIG}: ") and why in line
