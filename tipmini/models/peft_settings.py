"""adapter_config.json: which of PEFT's settings are plain LoRA's, and what they say of a module."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping

import regex  # PEFT's patterns are anyone's regular expressions, and re has no time limit

from tipmini.errors import TipminiError
from tipmini.models.files import one_line, shown

FLOAT32_MAX = 3.4028234663852886e38

# Settings with which an adapter is more than s B A on a linear module, and why they can't stay.
EXTRAS = {
    "alora_invocation_tokens": "aLoRA acts from some token on, which no merged factor can",
    "arrow_config": "Arrow routes between adapters",
    "bias": "trained biases of the base model would be lost",
    "ensure_weight_tying": "it adapts weights that are tied to the named ones as well",
    "kasa_config": "KaSA changes the base model and scales each rank",
    "layer_replication": "it builds another base model",
    "lora_bias": "the bias of lora_B would be lost",
    "megatron_config": "it holds one shard of the factors",
    "modules_to_save": "whole trained modules would be lost",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "factors of bare parameters have another layout",
    "trainable_token_indices": "trained token embeddings would be lost",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "use_dora": "DoRA's magnitudes depend on the base model's weights",
    "use_qalora": "QA-LoRA pools its input",
}
# Initialisations that move part of the base model's weights into the adapter.
BASE_CHANGING = ("corda", "loftq", "lora_ga", "olora", "pissa")
HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# Settings of PEFT 0.21 that only matter while training or loading.
INERT = {
    *("auto_mapping", "corda_config", "eva_config", "inference_mode", "layers_pattern"),
    *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "velora_config"),
}
UNSET = (None, False, "none", [], {})


# What a setting may be ----------------------------------------------------------------------------

Check = Callable[[object], bool]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= FLOAT32_MAX  # NaN compares false


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 4096


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _names_with(check: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(_is_line(name) and check(v) for name, v in value.items())
    )


def _optional(*checks: Check) -> Check:
    """null, or what one of the checks takes."""
    return lambda value: value is None or any(check(value) for check in checks)


# Setting -> (what it may be, in words).
KINDS: dict[str, tuple[Check, str]] = {
    "r": (_is_rank, "a whole number of at least 1"),
    "lora_alpha": (_is_number, "a number that float32 holds"),
    "rank_pattern": (_optional(_names_with(_is_rank)), "names with whole numbers of at least 1"),
    "alpha_pattern": (_optional(_names_with(_is_number)), "names with numbers that float32 holds"),
    "use_rslora": (_optional(_is_bool), "true or false"),
    "fan_in_fan_out": (_optional(_is_bool), "true or false"),
    "base_model_name_or_path": (_optional(_is_line), "one line of text"),
    "task_type": (_optional(TASKS.__contains__), f"one of {', '.join(TASKS)}"),
    "target_modules": (_optional(_is_line, _list_of(_is_line)), "a name or a list of names"),
    "exclude_modules": (_optional(_is_line, _list_of(_is_line)), "names or nothing"),
    "layers_to_transform": (_optional(_is_index, _list_of(_is_index)), "numbers of layers"),
    "init_lora_weights": (_optional(_is_bool, _is_text), "true, false or a name"),
}
SETTINGS = INERT | EXTRAS.keys() | KINDS.keys()


def config_problems(config: object) -> list[str]:
    """Why the settings are not those of plain LoRA, one line each; [] for plain LoRA."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return ['not a LoRA adapter; "peft_type" must be "LORA"']
    wrong = [
        f"{name} must be {right}, got {shown(config.get(name))}"
        for name, (check, right) in KINDS.items()
        if not check(config.get(name))
    ]
    return wrong + _extras(config) + _unknown(config) + _base_changing(config)


def _extras(config: dict) -> list[str]:
    return [
        f"{name} is {shown(config[name])}; {why}; only plain LoRA can be merged"
        for name, why in EXTRAS.items()
        if config.get(name) not in UNSET
    ]


def _unknown(config: dict) -> list[str]:
    """A switch or a table of a newer PEFT may change what the factors mean; other values don't."""
    return [
        f"{shown(name)} is no setting of PEFT 0.21 and may change what the adapter means; "
        "remove it if it does not"
        for name in unknown_settings(config)
        if config[name] is True or (isinstance(config[name], dict) and config[name])
    ]


def unknown_settings(config: dict) -> list[str]:
    """The names that PEFT 0.21 does not know and ignores."""
    return sorted(config.keys() - SETTINGS)


def _base_changing(config: dict) -> list[str]:
    init = config.get("init_lora_weights")
    if not isinstance(init, str) or init.lower() in HARMLESS:
        return []
    if init.lower().startswith(BASE_CHANGING):
        what = "changes the base model"
    else:
        what = "is unknown to PEFT 0.21 and may change the base model"
    return [
        f"init_lora_weights {shown(init)} {what}; save the adapter with PEFT's "
        "path_initial_model_for_weight_conversion"
    ]


# What PEFT's settings say of one module -----------------------------------------------------------
MATCH_SECONDS = 2.0


def scaling_of(config: dict, module: str, rank: int) -> float:
    r"""The module's scaling: alpha / r, or $\alpha / \sqrt r$ with rsLoRA.

    Raises TipminiError where the settings and the tensor's own rank disagree.
    """
    r = _setting(config, "r", "rank_pattern", module)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module)
    if r != rank:
        raise TipminiError(f"rank {r} for {module}, whose tensors have rank {rank}")
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _setting(config: dict, name: str, pattern: str, module: str) -> float:
    """As PEFT's get_pattern_key: the first pattern that ends the module's name, or the default."""
    patterns = config.get(pattern) or {}
    for key, value in patterns.items():
        if _ends(pattern, key, module):
            return value
    return patterns.get(module, config[name])  # a name that, as a pattern, misses itself


def _ends(pattern: str, key: str, module: str) -> bool:
    whole = rf"(.*\.)?({key})$"
    try:
        re.compile(whole)  # as PEFT does; regex takes more
        return bool(regex.match(whole, module, timeout=MATCH_SECONDS))
    except TimeoutError:
        why = "takes too long to match"
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        why = f"is no regular expression ({one_line(error)})"
    raise TipminiError(f"{pattern}: {shown(key)} {why}; name the module in full")


def is_targeted(config: dict, module: str) -> bool:
    """Whether PEFT would give the module an adapter, and so read its tensors.

    False only where that is sure: a regular expression in place of a list, and layers_pattern,
    count as true.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if isinstance(excluded, list) and _is_among(excluded, module):
        return False
    if not isinstance(targets, list) or module in targets:
        return True
    return _is_among(targets, module) and _is_in_layers(config, module)


def _is_in_layers(config: dict, module: str) -> bool:
    """Whether layers_to_transform, where it is set, holds the number of the module's layer."""
    layers = config.get("layers_to_transform")
    if layers in (None, []) or config.get("layers_pattern"):
        return True
    number = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    wanted = layers if isinstance(layers, list) else [layers]
    return number is not None and int(number[1]) in wanted


def _is_among(names: list[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


# Written ------------------------------------------------------------------------------------------


def lora_config(
    ranks: Mapping[str, int],
    scaling: Mapping[str, float],
    base_model: str | None,
    task_type: str | None,
) -> dict:
    """The settings with which PEFT gives every module its rank and its scaling.

    Modules are named in full: a short name such as q_proj would also match modules that the
    adapter leaves alone.
    """
    alphas = {module: _whole(scaling[module] * rank) for module, rank in ranks.items()}
    r, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, r),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """The modules that differ from the default."""
    ends = {name[dot.end() :] for name in values for dot in re.finditer(r"\.", name)}
    return {_key(name, ends): value for name, value in values.items() if value != default}


def _key(name: str, ends: set[str]) -> str:
    """A name is a pattern for the ends of names: where it would match another module too, or is
    no plain name, it is anchored and escaped."""
    plain = re.fullmatch(r"[\w.]+", name) and name not in ends
    return name if plain else f"^{re.escape(name)}"


def _commonest(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def _whole(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha
