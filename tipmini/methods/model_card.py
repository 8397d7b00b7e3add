"""The model card of a merged adapter: what was merged how, and how far from the exact sum it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from tipmini.errors import TipminiError
from tipmini.methods.table import PRESETS
from tipmini.models.identity import is_hub_name

PIPELINES = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}


@dataclass(frozen=True)
class CardInput:
    """An adapter that was merged: the SHA-256 of its factors' file, its weight, or what there is to
    say of its many, and where it is the hub's its id and commit."""

    sha256: str
    weight: float | str = 1.0
    hub: str | None = None


def model_card(
    method: str,
    options: Mapping[str, object],
    inputs: Mapping[str, CardInput],
    *,
    seed: int,
    version: str,
    base_model: str | None = None,
    task_type: str | None = None,
    sparsity: Mapping[str, Mapping[str, float]] | None = None,
    fidelity: Mapping[str, float] | None = None,
    into: bool = False,
) -> str:
    """A README.md as the hub and PEFT read it, its front matter first; the same for the same input.

    inputs: by the adapters' names. sparsity: {adapter: {layer: share of zeros in [0, 1]}}.
    fidelity: {layer: ||merged - exact sum|| / ||exact sum||}. version: tipmini's. base_model: named
    where it is the hub's; a path says nothing to others. into: whether the base was written with
    the sum added, rather than an adapter. Pass it to `LoraAdapter.save(card=...)`. Raises
    TipminiError when sparsity names an adapter that is no input.
    """
    sparsity, fidelity = sparsity or {}, fidelity or {}
    for name in sparsity.keys() - inputs.keys():
        raise TipminiError(f"sparsity of {name}, which is none of {', '.join(inputs)}")
    settings = [["Method", _code(method)]]
    if method in PRESETS:
        settings += [["A preset of", _code(PRESETS[method].method)]]
    base_model = base_model if base_model and is_hub_name(base_model) else None
    settings += [["Base model", _code(base_model or "not named")]]
    settings += [[_code(name), _code(value)] for name, value in sorted(options.items())]
    settings += [["Seed", _code(seed)], ["tipmini", _code(version)]]
    shares = []
    for name, one in inputs.items():
        weight = one.weight if isinstance(one.weight, str) else f"{one.weight:g}"
        shares.append([_code(one.hub or name), weight, _code(one.sha256)])
    what = "a whole model: `AutoModelForCausalLM.from_pretrained(folder)` or its own class"
    what = what if into else "a PEFT adapter: `PeftModel.from_pretrained(base, folder)`"
    return f"""{_front_matter(base_model, task_type, into)}

# A merge of {len(inputs)} LoRA adapters by {_code(method)}

Merged with tipmini, without loading the base model. The folder is {what} loads it.

## Settings

{_table(["Setting", "Value"], settings)}

## Adapters

{_table(["Adapter", "Weight", "SHA-256 of its factors"], shares)}
{_layers(sparsity, fidelity)}"""


def _front_matter(base_model: str | None, task_type: str | None, into: bool) -> str:
    """base_model_relation tells the hub whether this is an adapter or a merged model."""
    facts: dict[str, object] = {"library_name": "transformers" if into else "peft"}
    if base_model:
        relation = "merge" if into else "adapter"
        facts = {"base_model": base_model, "base_model_relation": relation, **facts}
    if task_type in PIPELINES:
        facts["pipeline_tag"] = PIPELINES[task_type]
    facts["tags"] = ["lora", "merge", *([] if into else ["peft"]), "tipmini"]
    text = yaml.safe_dump(facts, sort_keys=False, default_flow_style=False, width=10_000)
    return f"---\n{text}---"


def _layers(sparsity: Mapping[str, Mapping[str, float]], fidelity: Mapping[str, float]) -> str:
    """One row a layer, in the order in which the layers are first named."""
    columns = [(_code(name), found) for name, found in sparsity.items()]
    columns += [("Error", fidelity)] if fidelity else []
    layers = dict.fromkeys(layer for _, found in columns for layer in found)
    if not layers:
        return ""
    rows = []
    for layer in layers:
        shares = [f"{found[layer]:.4f}" if layer in found else "" for _, found in columns]
        rows.append([_code(layer), *shares])
    what = ["the share of each adapter's numbers that was pruned"] if sparsity else []
    what += ["Error, ||merged - exact sum|| / ||exact sum||"] if fidelity else []
    heading = f"\n## Layers\n\nPer layer: {'; '.join(what)}.\n\n"
    return heading + _table(["Layer", *(name for name, _ in columns)], rows) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: object) -> str:
    """As code, so that nothing in a name is read as Markdown or HTML, nor ends a cell."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if text else ""
