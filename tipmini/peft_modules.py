"""What PEFT's settings say of one module: its rank, its scaling, whether it is a target at all.

PEFT's patterns are regular expressions for the ends of modules' names. What is written names every
module in full: rsLoRA's scaling becomes an alpha, and modules of another rank or alpha go into
`rank_pattern` and `alpha_pattern`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping

import regex  # PEFT's patterns are anyone's regular expressions, and re has no time limit

from tipmini.errors import TipminiError
from tipmini.strict import one_line, shown

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


# Written -------------------------------------------------------------------------------------


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
