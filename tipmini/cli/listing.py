"""`tipmini methods` and `tipmini inspect`: what there is."""

import json

import tipmini as tm
from tipmini.cli.arguments import Adapters, AsJson, first_line
from tipmini.errors import TipminiError


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
    if name not in tm.PRESETS:
        method = tm.METHODS[name]
        return found | {"needs": method.needs, "reference": method.reference}
    preset = tm.PRESETS[name]
    return found | {"preset_of": preset.method, "weights": preset.weights}


def inspect(adapters: Adapters, as_json: AsJson = False) -> None:
    """Show rank, scaling, targets, size and base model of adapters, and what bars a merge."""
    found = {str(path): tm.inspect_folder(path) for path in adapters}
    for facts in found.values():
        if not facts["modules"]:  # nothing to show
            raise TipminiError(facts["problems"][0])
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)
    for facts in found.values():
        for problem in facts["problems"]:
            raise TipminiError(problem)


def _print(found: dict[str, dict[str, object]]) -> None:
    for path, facts in found.items():
        print(path)
        for name, value in facts.items():
            print(f"  {name:10} {_shown(value)}")


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
