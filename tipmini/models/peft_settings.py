"""adapter_config.json: which of PEFT's settings are plain LoRA's, and what they say of a module."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

import regex  # PEFT's patterns are anyone's regular expressions, and re has no time limit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tipmini.errors import TipminiError
from tipmini.models.files import one_line, shown
from tipmini.models.identity import core, plain_name

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
    "modules_to_save": "trained whole, which --heads NAME keeps of one adapter",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "factors of bare parameters have another layout",
    "trainable_token_indices": "trained token embeddings would be lost",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "use_dora": "DoRA's magnitudes depend on the base model's weights",
    "use_qalora": "QA-LoRA pools its input",
}
UNSET = (None, False, "none", [], {})
# Initialisations that move part of the base model's weights into the adapter.
BASE_CHANGING = ("corda", "loftq", "lora_ga", "olora", "pissa")
HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
# Settings of PEFT 0.21 that only matter while training or loading.
INERT = {
    *("corda_config", "eva_config", "inference_mode", "loftq_config", "lora_dropout"),
    *("lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
    *("runtime_config", "velora_config"),
}

TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
MATCH_SECONDS = 2.0  # of one pattern on one name

Rank = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]  # NaN is neither
Index = Annotated[int, Field(ge=0)]
Line = Annotated[str, Field(pattern=r"^( |[^\p{C}\p{Z}])+$", max_length=4096)]  # printable
Names = Line | list[Line] | None


def _may(be: str, default: object = None) -> object:
    """A setting with, in words, what it may be."""
    return Field(default, description=be)


class Settings(BaseModel):
    """The settings that say what a plain LoRA adapter's factors mean."""

    model_config = ConfigDict(strict=True)

    r: Rank = _may("a whole number of at least 1", ...)
    lora_alpha: Number = _may("a number that float32 holds", ...)
    rank_pattern: dict[Line, Rank] | None = _may("names with whole numbers of at least 1")
    alpha_pattern: dict[Line, Number] | None = _may("names with numbers that float32 holds")
    use_rslora: bool | None = _may("true or false")
    fan_in_fan_out: bool | None = _may("true or false")
    base_model_name_or_path: Line | None = _may("one line of text")
    task_type: Literal[TASKS] | None = _may(f"one of {', '.join(TASKS)}")
    target_modules: Names = _may("a name or a list of names")
    exclude_modules: Names = _may("names or nothing")
    layers_to_transform: Index | list[Index] | None = _may("numbers of layers")
    layers_pattern: object = None
    init_lora_weights: bool | str | None = _may("true, false or a name")
    revision: Line | None = _may("one line of text")
    auto_mapping: dict | None = _may("names of classes")
    modules_to_save: list[Line] | None = _may("a list of names")

    @field_validator("base_model_name_or_path", "revision", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("auto_mapping")
    @classmethod
    def _classes(cls, value: dict | None) -> dict | None:
        """Its names of classes alone: other tools keep switches there."""
        kept = {k: v for k, v in (value or {}).items() if isinstance(v, str) and isinstance(k, str)}
        return kept or None

    def scaling(self, module: str, rank: int) -> float:
        r"""The module's scaling: alpha / r, or $\alpha / \sqrt r$ with rsLoRA.

        Raises TipminiError where the settings and the tensor's own rank disagree.
        """
        r = _of_module("rank_pattern", self.rank_pattern, module, self.r)
        alpha = _of_module("alpha_pattern", self.alpha_pattern, module, self.lora_alpha)
        if r != rank:
            raise TipminiError(f"rank {r} for {module}, whose tensors have rank {rank}")
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def targets(self, module: str) -> bool:
        """Whether PEFT would give the module an adapter, and so read its tensors.

        False only where that is sure: a regular expression in place of a list, and layers_pattern,
        count as true.
        """

        def among(names: object) -> bool:
            ends = tuple(f".{plain_name(n)}" for n in names) if isinstance(names, list) else ()
            return f".{module}".endswith(ends)

        if among(self.exclude_modules):
            return False
        if not isinstance(self.target_modules, list):
            return True
        if module in map(plain_name, self.target_modules):
            return True
        if not among(self.target_modules):
            return False
        layers = self.layers_to_transform
        if layers in (None, []) or self.layers_pattern:
            return True
        number = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        wanted = layers if isinstance(layers, list) else [layers]
        return number is not None and int(number[1]) in wanted


def _of_module(name: str, patterns: dict | None, module: str, default: float) -> float:
    """As PEFT's get_pattern_key: the first pattern that ends the module's name, or the default."""
    for key, value in (patterns or {}).items():
        if _ends(name, key, module):
            return value
    return (patterns or {}).get(module, default)  # a name that, as a pattern, misses itself


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


SETTINGS = INERT | EXTRAS.keys() | Settings.model_fields.keys()


def config_problems(config: object, heads: bool = False) -> list[str]:
    """Why the settings are not those of plain LoRA, one line each; [] for plain LoRA.

    heads: whether modules may have been trained whole beside it.
    """
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return ['not a LoRA adapter; "peft_type" must be "LORA"']
    problems, wrong, init = [], [], config.get("init_lora_weights")
    try:
        Settings.model_validate(config)
    except ValidationError as error:
        wrong = dict.fromkeys(str(each["loc"][0]) for each in error.errors())
    for name in wrong:
        right = Settings.model_fields[name].description
        problems.append(f"{name} must be {right}, got {shown(config.get(name))}")
    for name, why in EXTRAS.items():
        if config.get(name) not in UNSET and not (heads and name == "modules_to_save"):
            told = f"{name} is {shown(config[name])}; {why}"
            problems.append(f"{told}; only plain LoRA can be merged")
    for name in unknown_settings(config):
        # A switch or a table of a newer PEFT may change what the factors mean; other values don't.
        if config[name] is True or (isinstance(config[name], dict) and config[name]):
            told = f"{shown(name)} is no setting of PEFT 0.21 and may change what the adapter means"
            problems.append(f"{told}; remove it if it does not")
    if isinstance(init, str) and init.lower() not in HARMLESS:
        sure = init.lower().startswith(BASE_CHANGING)
        what = "changes" if sure else "is unknown to PEFT 0.21 and may change"
        told = f"init_lora_weights {shown(init)} {what} the base model"
        mend = "save the adapter with PEFT's path_initial_model_for_weight_conversion"
        if init.lower().startswith("loftq"):
            told += ": it makes up for a base that was quantised, and fits no other"
            mend = "merge it into that base (PEFT's merge_and_unload)"
        problems.append(f"{told}; {mend}")
    return problems


def unknown_settings(config: dict) -> list[str]:
    """The names that PEFT 0.21 does not know and ignores."""
    return sorted(config.keys() - SETTINGS)


# Written ------------------------------------------------------------------------------------------
def lora_config(
    ranks: Mapping[str, int], scaling: Mapping[str, float], **kept: object
) -> dict[str, object]:
    """The settings with which PEFT gives every module its rank and its scaling.

    kept: further settings as they are, e.g. base_model_name_or_path. Modules are named in full: a
    short name such as q_proj would also match modules that the adapter leaves alone.
    """
    alphas = {module: scaling[module] * rank for module, rank in ranks.items()}
    alphas = {m: int(alpha) if alpha == int(alpha) else alpha for m, alpha in alphas.items()}
    (r, _), (alpha, _) = (Counter(x.values()).most_common(1)[0] for x in (ranks, alphas))
    ends = {name[dot.end() :] for name in ranks for dot in re.finditer(r"\.", name)}

    def key(name: str) -> str:
        """A name is a pattern for the ends of names: where it would match another module too, or
        is no plain name, it is anchored and escaped."""
        plain = re.fullmatch(r"[\w.]+", name) and name not in ends
        return name if plain else f"^{re.escape(name)}"

    def keys(of: Mapping[str, float], usual: float) -> dict[str, float]:
        other = {module: value for module, value in of.items() if value != usual}
        return {key(name): value for m, value in other.items() for name in _names(m)}

    return {
        "peft_type": "LORA",
        **kept,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": keys(ranks, r),
        "alpha_pattern": keys(alphas, alpha),
        "target_modules": [name for module in ranks for name in _names(module)],
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def _names(module: str) -> list[str]:
    """A module's name, and what ends it in later versions of transformers where they moved what
    wraps it: vision models' language_model.model.layers.0 is now model.language_model.layers.0.
    PEFT renames the tensors so, but not what the settings name."""
    later = core(module, {"model"})
    return [module] if f".{module}".endswith(f".{later}") else [module, later]
