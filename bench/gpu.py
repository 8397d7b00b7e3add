"""Every path on a GPU with random weights: its answers beside the CPU's, its time, its memory.

`scripts/gpu-check` measures a LLaMA-2-7B of random weights in bfloat16 and float16 and stores
results/gpu/NAME.json. Its numbers are times and bytes; answers of random weights mean nothing.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

import tipmini as tm
from bench.timing import made
from tipmini.errors import TipminiError
from tipmini.methods.table import METHODS
from tipmini_lab import paths
from tipmini_lab.evaluation import evaluator
from tipmini_lab.experiments import standins
from tipmini_lab.experiments.experiment import one_bar
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.rehearsal import MEMORY, SHAPES, grams, norms, peak_resident
from tipmini_lab.experiments.walking import STEPS, TASK, Place, Work
from tipmini_lab.results import store

DTYPES = ("bfloat16", "float16")
TINY = {
    **{"vocab_size": 8000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048},
}
ROWS = 32  # examples of a path at full size
APART = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of the CPU's float32, at the most


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, seconds")
    parser.add_argument("--dtype", action="append", choices=(*DTYPES, "float32"), help="again ...")
    parser.add_argument("--out", type=Path, default=paths.GPU, help="folder of the results")
    given = parser.parse_args()
    try:
        if given.device == "cuda":
            cap_memory()
        for dtype in given.dtype or DTYPES:
            print(check(given.device, dtype, given.out, tiny=given.tiny), flush=True)
    except TipminiError as error:
        parser.exit(2, f"gpu-check: {error}\n")


def cap_memory(count: float = MEMORY) -> None:
    """No more of the GPU's memory than an A40 has; TipminiError without a GPU."""
    if not torch.cuda.is_available():
        raise TipminiError("no GPU here; --device cpu --tiny tries the script itself")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, count / total))


def check(device: str, dtype: str, out: Path, tiny: bool = False) -> Path:
    """Everything in one number format; the file that it is stored in, anew after every part."""
    a40 = load_profile("a40")
    sizes, rows = (TINY, 2) if tiny else (SHAPES[a40.model], ROWS)
    machine = store.machine() | {"gpu": gpu_name(device)}
    name = f"{machine['gpu']}-{dtype}".lower().replace(" ", "-")
    file, found = out / f"{name}{'-tiny' * tiny}.json", {"device": device, "dtype": dtype}
    found |= {"weights": "random", "tiny": tiny, "machine": machine, "made": made()}
    with tempfile.TemporaryDirectory(prefix="tipmini-gpu-") as work, one_bar():
        profile = random_profile(a40, Path(work), sizes, device, dtype)
        parts = {
            "beside_cpu": lambda: beside_cpu(a40, Path(work), device, dtype),
            "steps": lambda: walk(profile, Path(work), rows),
            "merges": lambda: merges(profile, Path(work)),
            "throughput": lambda: throughput(profile, rows),
        }
        for part, measure in parts.items():
            print(f"{dtype}: {part}", flush=True)
            found[part] = measure()
            store.write(file, json.dumps(found, indent=1) + "\n")
    return file


def gpu_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else "no GPU"


def random_profile(a40: Profile, work: Path, sizes: Mapping, device: str, dtype: str) -> Profile:
    """`a40` with a model and seven adapters of random weights, on packaged rows."""
    model = standins.save_model(work / "model", sizes, dtype)
    adapters = standins.save_adapters(work / "adapters", a40, sizes, dtype)
    here = {"model": str(model), "adapters": adapters, "data": "embedded"}
    return a40.model_copy(
        update=here | {"device": device, "dtype": dtype, "results": str(work / "results")}
    )


# The same answers as the CPU's --------------------------------------------------------------------
def beside_cpu(a40: Profile, work: Path, device: str, dtype: str) -> dict[str, dict[str, float]]:
    """{number format: {path: largest relative distance}} of a tiny model on the device from the
    CPU's answers in float32, in float32 as well.

    Raises TipminiError where one is further off than the format explains. In 16 bits a generated
    answer may go on from another token: that is told, not refused.
    """
    with tempfile.TemporaryDirectory(dir=work) as place:
        tiny = random_profile(a40, Path(place), TINY, device, "float32")
        ways = {"plain": ("cpu", "float32"), "float32": (device, "float32"), dtype: (device, dtype)}
        answers = {}
        for way, (where, kind) in ways.items():
            profile = tiny.model_copy(update={"device": where, "dtype": kind})
            at = Place(profile, Path(place) / way)
            answers[way] = {name: twice(step(at)) for name, step in STEPS.items()}
    here, found = answers.pop("plain"), {}
    for way, there in answers.items():
        found[way] = {name: distance(there[name], here[name]) for name in STEPS}
        for name, apart in found[way].items():
            free = name == "generate" and way != "float32"
            if not (free or apart <= APART[way]):
                told = f"{name} in {way} on {device}: {apart:.2g} from the CPU's float32"
                raise TipminiError(f"{told}, {APART[way]:g} at most")
    return found


def twice(work: Work) -> list[float]:
    """What a path tells, and what it tells again: of training, after an update."""
    return numbers(work.run()) + numbers(work.run())


def numbers(result: object) -> list[float]:
    """What a path tells: norms, margins of answers, or a loss."""
    if isinstance(result, dict):
        return [x for norm in result.values() for x in norm.tolist()]
    return [result] if isinstance(result, float) else result.margins


def distance(found: list[float], expected: list[float]) -> float:
    """The largest difference, as a share of the largest number."""
    pairs = zip(found, expected, strict=True)
    return max(abs(a - b) for a, b in pairs) / max(map(abs, expected))


# Time and memory ----------------------------------------------------------------------------------
def walk(profile: Profile, work: Path, rows: int) -> dict[str, dict]:
    """{path: tokens, seconds after a pass that warms up, bytes at the peak}."""
    found = {}
    for name, step in STEPS.items():
        with tempfile.TemporaryDirectory(dir=work) as place, fresh_memory(profile.device) as peak:
            prepared = step(Place(profile, Path(place), rows))
            prepared.run()
            seconds = timed(prepared.run, profile.device)
            found[name] = {"tokens": prepared.tokens(), "seconds": seconds, "peak": peak()}
            del prepared
    return found


@contextmanager
def fresh_memory(device: str) -> Iterator[Callable[[], int | None]]:
    """The device's memory counted anew; a call gives the bytes at its peak."""
    if device != "cuda":
        yield peak_resident
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield torch.cuda.max_memory_allocated


def timed(work: Callable[[], object], device: str) -> float:
    """Wall time of a call, all that it started on the GPU included."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def merges(profile: Profile, work: Path) -> dict[str, float]:
    """{method: seconds} with the factors on the device; "into": written into the whole base.

    RegMean's is of the first layer alone: the Gram matrices of all would not fit.
    """
    adapters = dict(loaded(profile))
    found = {}
    for method, row in METHODS.items():
        some = adapters if row.needs != "grams" else {t: first(a) for t, a in adapters.items()}
        needs = {None: None, "norms": norms, "grams": grams}[row.needs]
        given = {row.needs: {t: needs(a) for t, a in some.items()}} if needs else {}
        work_on = lambda: tm.merge(some, method, **given)  # noqa: B023, E731
        found[method] = timed(work_on, profile.device)
    merged, base = tm.merge(adapters, "cat"), tm.open_base(profile.model)
    write = lambda: tm.save_merged(base, merged.factors, work / "into")  # noqa: E731
    return found | {"into": timed(write, profile.device)}


def loaded(profile: Profile) -> Iterator[tuple[str, tm.LoraAdapter]]:
    """The profile's adapters, on its device."""
    for task in profile.tasks:
        name = profile.adapter_names.get(task, task)
        adapter = tm.load_adapter(profile.adapters.format(task=name))
        there = profile.device
        yield task, adapter.map(lambda _, p: replace(p, a=p.a.to(there), b=p.b.to(there)))  # noqa: B023


def first(adapter: tm.LoraAdapter) -> tm.LoraAdapter:
    """The first layer's modules alone."""
    return tm.LoraAdapter({m: p for m, p in adapter.factors.items() if ".layers.0." in m})


def throughput(profile: Profile, rows: int) -> dict[str, float]:
    """Questions a second of the packed evaluator, and of lm-eval's own `hf` on the same model."""
    lab = Place(profile, Path()).lab(evaluation_rows=2 * rows)
    definition = lab.definition(TASK)
    peer = HFLM(pretrained=lab.base, tokenizer=lab.tokenizer, batch_size=16)
    found = {}
    for name, lm in (("ours", lab.lm), ("hf", peer)):
        asked = lambda lm=lm: evaluator.samples(lm, definition)  # noqa: E731
        asked()
        found[name] = 2 * rows / timed(asked, profile.device)
    return found


if __name__ == "__main__":
    main()
