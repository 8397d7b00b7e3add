"""Whether adapters belong together: which base model they are of, what its modules are called."""

import re
from collections.abc import Collection, Iterable, Mapping

from tipmini.errors import TipminiError

# Last parts of a path that name no model.
NAMELESS = re.compile(
    r"(checkpoint|step|epoch|iter|global_step|v|version|run)[-_]?\d*|\d+|[0-9a-f]{7,64}|snapshots?|"
    r"final|last|best|latest|merged|model|models|base|base_model|adapter|out|output|outputs|hf",
    re.IGNORECASE,
)
# A folder of the hub's cache: owner, name, commit, what is below.
CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([^/]*)(/.+)?")
QUANTISED = re.compile(
    r"[-_.](unsloth[-_])?(bnb|gptq|awq|gguf|hqq|aqlm|nf4|fp8|int[48]|[48]-?bit)\b.*", re.IGNORECASE
)
# Parts that wrap a whole model, so that its modules are known with them and without.
WRAPPERS = {"model", "language_model", "text_model", "base_model", "module", "transformer"}
WRAPPERS |= {"albert", "bert", "deberta", "distilbert", "electra", "gpt_neox", "roberta"}
# What PyTorch puts around a module that is compiled, checkpointed or sharded.
TORCH = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
MIRRORS = ("unsloth", "nousresearch", "mlx-community", "huggyllama")  # who copy others' models


# Which base model ---------------------------------------------------------------------------------
def common_base(bases: Mapping[str, str | None]) -> str | None:
    """The base model of all adapters, given each one's by the adapter's name; None if none is told.

    Two names mean one model when they are the same, or when one is the hub's and their last parts
    agree ("/data/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"); the hub's name is then returned. Last
    parts that name no model, such as checkpoint-500 or merged, agree with nothing, and neither do
    two local paths, nor two owners' models of one name, but for owners that copy others' models. An
    adapter that names none fits any. Raises TipminiError that names two that differ.
    """
    told = {name: _normal(base) for name, base in bases.items() if base}
    hub = min((base for base in told.values() if is_hub_name(base)), default=None)
    for first, one in told.items():
        for other, two in told.items():
            if one != two and not (
                _agree(one, two) or (hub and _agree(one, hub) and _agree(two, hub))
            ):
                raise TipminiError(
                    f"adapters of different base models: {first} of {bases[first]}, {other} of "
                    f"{bases[other]}; {_hint(one, two)}if they are one model, name it (base_model, "
                    "--base-model)"
                )
    return hub or min(told.values(), default=None)


def _normal(base: str) -> str:
    """Without what writes one place in several ways; the hub's name of what lies in its cache."""
    path = base.replace("\\", "/")
    if cached := CACHED.search(path + "/"):
        return f"{cached[1]}/{cached[2]}"
    return re.sub(r"(?<=.)/+$", "", re.sub(r"^(\./)+|(?<!:)/(?=/)", "", path))


def _agree(one: str, two: str) -> bool:
    names = [base.rpartition("/")[2].lower() for base in (one, two)]
    owners = {base.rpartition("/")[0].lower() for base in (one, two) if is_hub_name(base)} - {""}
    named = names[0] == names[1] and not NAMELESS.fullmatch(names[0])
    known = len(owners) < 2 or not owners.isdisjoint(MIRRORS)
    return named and known and (is_hub_name(one) or is_hub_name(two))


def is_hub_name(base: str) -> bool:
    """Whether it can be a model's name on the hub, and not a folder's that says nothing."""
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", base) is not None and not NAMELESS.fullmatch(
        base.rpartition("/")[2]
    )


def _hint(one: str, two: str) -> str:
    """Where one looks like a quantised copy of the other."""
    for copy, whole in ((one, two), (two, one)):
        plain = QUANTISED.sub("", copy.rpartition("/")[2])
        if plain != copy.rpartition("/")[2] and _agree(plain, whole):
            return f"{copy} looks like a quantised copy of {whole}; "
    return ""


def common_revision(revisions: Mapping[str, str | None]) -> str | None:
    """The base's revision that all adapters name; none is "main". Raises TipminiError for two."""
    distinct = {revision or "main": name for name, revision in revisions.items()}
    if len(distinct) > 1:
        told = ", ".join(f"{name} of {revision}" for revision, name in distinct.items())
        raise TipminiError(f"adapters of different revisions of one base: {told}; take one's")
    return next((revision for revision in revisions.values() if revision), None)


# What a module is called --------------------------------------------------------------------------
def plain_name(module: str) -> str:
    """Without the wrappers of torch.compile and data-parallel training, which PEFT can't read."""
    return TORCH.sub("", module).removeprefix("module.")


def core(module: str, wrappers: Collection[str] = WRAPPERS) -> str:
    """A module's name without the wrappers before its first number: one module, one core."""
    parts = module.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    return ".".join([p for p in parts[:first] if p not in wrappers] + parts[first:])


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers as numbers, so that layers.2 comes before layers.10."""

    def key(name: str) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", name)
        return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]

    return sorted(names, key=key)


def spellings(
    modules: Mapping[str, Iterable[str]], known: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """{adapter: {module as the adapter calls it: as the result does}}.

    known: what the base calls its modules, where that is known. Adapters that call one module by
    two names, which differ in wrappers alone (`model.layers.0`, `layers.0`), get the base's name
    of it; raises TipminiError that names both where the base has neither or isn't known.
    """
    names: dict[str, dict[str, str]] = {}  # core -> {name: an adapter that has it}
    for adapter, own in modules.items():
        for module in own:
            names.setdefault(core(module), {}).setdefault(module, adapter)
    by_core: dict[str, list[str]] = {}
    for module in known:
        by_core.setdefault(core(module), []).append(module)
    chosen = {c: _chosen(found, by_core.get(c, ())) for c, found in names.items()}
    return {a: {m: chosen[core(m)].get(m, m) for m in own} for a, own in modules.items()}


def _chosen(found: Mapping[str, str], base: Collection[str]) -> dict[str, str]:
    """{name: the one to take} of the names of one core."""
    if len(set(found.values())) < len(found) or len(found) == 1:
        return {}  # one adapter has several: they are several modules
    known = [name for name in found if name in base] or (list(base) if len(base) == 1 else [])
    if len(known) == 1:
        return dict.fromkeys(found, known[0])
    (one, first), (two, second), *_ = found.items()
    raise TipminiError(
        f"one module under two names: {one} in {first}, {two} in {second}; give the base's folder, "
        "whose name counts (base_model, --base-model)"
    )
