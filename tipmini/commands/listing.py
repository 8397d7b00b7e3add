"""`tipmini methods` and `tipmini inspect`: what there is."""

import json

import tipmini as tm
from tipmini.commands.arguments import Adapters, AsJson, first_line


def methods(as_json: AsJson = False) -> None:
    """List what can be merged how, one line each: the methods, then their presets."""
    names = [*tm.METHODS, *tm.PRESETS]
    if as_json:
        print(json.dumps({name: _method(name) for name in names}))
        return
    for name in names:
        print(f"{name:12} {first_line(name)}")


def _method(name: str) -> dict[str, object]:
    found = {"what": first_line(name), "options": tm.method_options(name)}
    return found | ({"preset_of": tm.PRESETS[name][0]} if name in tm.PRESETS else {})


def inspect(adapters: Adapters, as_json: AsJson = False) -> None:
    """Show rank, scaling, targets, size and base model of adapters."""
    found = {str(path): _description(tm.load_adapter(path)) for path in adapters}
    if as_json:
        print(json.dumps(found))
        return
    for path, facts in found.items():
        print(path)
        for name, value in facts.items():
            print(f"  {name:10} {value}")


def _description(adapter: tm.LoraAdapter) -> dict[str, object]:
    factors = adapter.factors.values()
    return {
        "base": adapter.base_model,
        "modules": len(adapter.modules),
        "targets": sorted({module.rsplit(".", 1)[-1] for module in adapter.modules}),
        "ranks": sorted(set(adapter.ranks.values())),
        "scaling": sorted(set(adapter.scaling.values())),
        "parameters": sum(pair.a.numel() + pair.b.numel() for pair in factors),
    }
