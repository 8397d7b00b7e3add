"""A profile's paths walked with random weights of its model's shapes, and what they would take.

Every path runs as it is, on a model of one decoder layer and on one of two. What a layer costs is
the difference, so the whole model's cost follows without its ever being held. On the GPU each
operation takes as long as its products or its bytes at the card's peak; and as much longer as the
same path takes here than this processor's own peak allows.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.table import METHODS
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.documents import ADAPTED
from tipmini_lab.experiments import standins
from tipmini_lab.experiments.agreeing import DistillRecipe
from tipmini_lab.experiments.counting import Counted, Peaks, all_flops, least_seconds
from tipmini_lab.experiments.experiment import one_bar
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.pruning import PruningRecipe
from tipmini_lab.experiments.training import RECIPES
from tipmini_lab.experiments.variants import TABLE_1
from tipmini_lab.experiments.walking import ANSWER, STEPS, STORY, TASK, Place, Work
from tipmini_lab.experiments.weighing import WeighingRecipe
from tipmini_lab.results import store

SHAPES = {"meta-llama/Llama-2-7b-hf": standins.LLAMA_2_7B}
# NVIDIA, "NVIDIA A40" data sheet (2021): products without sparsity, memory. float64 of the GA10x
# architecture's white paper: a 64th of float32.
GPU, MEMORY = "NVIDIA A40", 48e9
PEAKS: Peaks = {
    "bfloat16": 149.7e12,
    "float16": 149.7e12,
    "float32": 37.4e12,
    "float64": 37.4e12 / 64,
    "bytes": 696e9,
}
DTYPE = "bfloat16"  # 16 bits as float16, of which a CPU has no fast products
SAMPLE = 16  # examples of a task whose lengths are counted
STATUS = Path("/proc/self/status")


LAYERS, ROWS = (1, 2), (2, 6)  # of the models that are walked, and examples that a path reads
Facts = dict[str, float]  # of `Counted`, and tokens, bytes held before it, seconds of processor


def rehearse(profile: Profile) -> dict:
    """Walk every path and project it; figures by path, in JSON's types.

    Raises TipminiError for a profile whose model's shapes are not known here.
    """
    if profile.model not in SHAPES:
        told = f"model {profile.model}: its shapes are not known here, only {', '.join(SHAPES)}'s"
        raise TipminiError(f"profile {profile.name}: {told}")
    sizes, own = SHAPES[profile.model], own_peaks()
    with tempfile.TemporaryDirectory(prefix="tipmini-rehearsal-") as work, one_bar():
        few = _few_layers(profile, Path(work), sizes)
        todo = [(name, count, rows) for name in STEPS for count in LAYERS for rows in ROWS]
        walked: dict[tuple[str, int, int], Facts] = {}
        for name, count, rows in tqdm(todo, desc="rehearsal", unit="walk"):
            with tempfile.TemporaryDirectory(dir=work) as written:
                place = Place(few[count], Path(written), rows)
                walked[name, count, rows] = _walked(STEPS[name](place))
        read, merges = workload(few[1], profile), _merges(few[1], Path(work), sizes)
    layers, steps = sizes["num_hidden_layers"], {}
    for name, step in STEPS.items():
        four = {(count, rows): walked[name, count, rows] for count in LAYERS for rows in ROWS}
        steps[name] = {"what": step.__doc__.splitlines()[0], **read[name]}
        steps[name] |= _projected(four, layers, read[name]["tokens"], own)
    made = {"date": store.today(), "machine": store.machine(), "versions": store.versions()}
    made |= {"threads": torch.get_num_threads()}
    gpu = {"name": GPU, "memory": MEMORY, "peaks": PEAKS}
    return {
        **{"profile": profile.name, "model": profile.model, "weights": "random", "made": made},
        **{"dtype": DTYPE, "gpu": gpu, "own": own, "steps": steps, "merges": merges},
        **{"resident": peak_resident(), "seconds": time.process_time()},  # of this process
    }


def own_peaks(size: int = 1024) -> dict[str, float]:
    """Operations a second of this processor by dtype, and bytes a second: of its own time, so that
    what else runs here does not count."""
    found = {}
    for dtype in (DTYPE, "float32", "float64"):
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype))
        found[dtype] = 2 * size**3 / min(_seconds(lambda m=matrix: m @ m) for _ in range(3))
    block = torch.ones(1 << 26, dtype=torch.uint8)
    room = torch.empty_like(block)
    found["bytes"] = 2 * len(block) / min(_seconds(lambda: room.copy_(block)) for _ in range(3))
    return found | {"float16": found[DTYPE]}


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _few_layers(profile: Profile, place: Path, sizes: Mapping) -> dict[int, Profile]:
    """The profile on this machine, of a random model's first layers, by how many."""
    most, found = max(LAYERS), {}
    whole = standins.save_model(place / "model", {**sizes, "num_hidden_layers": most}, DTYPE)
    for count in LAYERS:
        own = place / str(count)
        few = {**sizes, "num_hidden_layers": count}
        adapters = standins.save_adapters(own / "adapters", profile, few, DTYPE)
        model = standins.first_layers(whole, count, own / "model")
        here = {"device": "cpu", "dtype": DTYPE, "data": "embedded", "adapters": adapters}
        written = {"model": str(model), "results": str(own / "results")}
        found[count] = profile.model_copy(update=here | written)
    return found


def _walked(work: Work) -> Facts:
    held = sum(x.nbytes for x in (*work.model.parameters(), *work.model.buffers()))
    start = time.process_time()
    with Counted() as counted:
        work.run()
    seconds = time.process_time() - start
    told = {"tokens": work.tokens(), "full": work.full, "held": held, "seconds": seconds}
    return told | counted.facts()


def _projected(
    four: Mapping[tuple[int, int], Facts], layers: int, tokens: int, own: Peaks
) -> dict[str, object]:
    """What a path takes at the model's own layers, in passes of the profile's own size."""
    by_rows = [_at({count: four[count, rows] for count in LAYERS}, layers) for rows in ROWS]
    one = by_rows[0]
    whole = _at({facts["tokens"]: facts for facts in by_rows}, one["full"])
    largest = four[max(LAYERS), max(ROWS)]
    efficiency = min(1.0, least_seconds(largest, own) / largest["seconds"])
    passes = tokens / one["full"]
    return {
        "pass_tokens": one["full"],
        "flops": all_flops(whole) * passes,
        "bytes": (whole["products"] + whole["other"]) * passes,
        "weights": whole["held"],
        "peak": whole["held"] + whole["peak"],
        "efficiency": efficiency,
        "seconds": passes * least_seconds(whole, PEAKS) / efficiency,
        "walked": [{"layers": c, "rows": r, **facts} for (c, r), facts in four.items()],
    }


def _at(facts: Mapping[float, Facts], place: float) -> Facts:
    """What two places tell of a third, on the line through both."""
    (x, one), (y, two) = facts.items()
    share = (place - x) / (y - x)
    names = one.keys() | two.keys()
    return {n: one.get(n, 0) + share * (two.get(n, 0) - one.get(n, 0)) for n in sorted(names)}


# How much a profile reads -------------------------------------------------------------------------
def workload(few: Profile, profile: Profile) -> dict[str, dict[str, object]]:
    """{path: tokens that it reads at the profile's size, of what}, from a sample's lengths."""
    lab = Lab(few.model_copy(update={"calibration_rows": SAMPLE}))
    texts = {t: lab.norms.texts(t) for t in profile.tasks}
    mean = {t: _mean(map(len, lab.tokenizer(own)["input_ids"])) for t, own in texts.items()}
    packed = {t: _mean(_lengths(t, lab)) for t in profile.tasks}
    rows = {t: profile.rows(t) or _official_rows(t) for t in profile.tasks}
    asked = [task for task in profile.tasks if task != STORY]
    ways, recipe, cut = len(TABLE_1), WeighingRecipe(), PruningRecipe()
    stories = {t: recipe.stories if t == STORY else recipe.rows for t in profile.tasks}
    taught = DistillRecipe()
    learnt = {t: taught.rows * (taught.stories if t == STORY else 1) for t in profile.tasks}
    short = _mean(min(cut.length, length) for length in mean.values())
    own = RECIPES[TASK]
    found = {
        "calibrate": (
            profile.calibration_rows * sum(mean.values()),
            f"{len(mean)} adapters, {profile.calibration_rows} examples each",
        ),
        "evaluate": (
            ways * sum(rows[task] * packed[task] for task in asked),
            f"{sum(rows[task] for task in asked):,} questions, {ways} ways",
        ),
        "generate": (
            ways * rows.get(STORY, 0) * (packed.get(STORY, 0) + ANSWER),
            f"{rows.get(STORY, 0):,} answers, {ways} ways",
        ),
        "weigh": (
            (recipe.epochs + 1) * sum(stories[t] * packed[t] for t in profile.tasks),
            f"{recipe.epochs} epochs of {sum(stories.values())} examples",
        ),
        "distill": (
            (taught.epochs + 1) * sum(learnt[t] * packed[t] for t in profile.tasks),
            f"{taught.epochs} epochs of {sum(learnt.values()):.0f} examples",
        ),
        "prune": (cut.rows * cut.epochs * short, f"{cut.epochs} epochs of {cut.rows:,} examples"),
        "train": (
            own.rows * own.epochs * packed.get(TASK, 0),
            f"one adapter, {own.epochs} epochs of {own.rows:,} examples",
        ),
    }
    return {name: {"of": of, "tokens": round(tokens)} for name, (tokens, of) in found.items()}


def _official_rows(task: str) -> int:
    """Of the hub's own split, of which two tasks have but halves here."""
    known = ADAPTED[task]
    return len(known.evaluation()) + (len(known.train()) if known.halved else 0)


def _lengths(task: str, lab: Lab) -> Iterable[int]:
    return (len(example.row) for example in objective.examples(task, lab.tokenizer, SAMPLE))


def _mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


# Merges, which a GPU does not change --------------------------------------------------------------
def _merges(few: Profile, place: Path, sizes: Mapping) -> dict[str, dict[str, float]]:
    """{method: seconds of this processor for all layers, bytes at the peak of one}; "into" is the
    writing of a whole base, tensor by tensor."""
    folders = {t: few.adapters.format(task=few.adapter_names.get(t, t)) for t in few.tasks}
    adapters = {task: tm.load_adapter(folder) for task, folder in folders.items()}
    layers = sizes["num_hidden_layers"]
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads make is not seen
    try:
        for method, row in METHODS.items():
            needs = {None: {}, "norms": norms, "grams": grams}[row.needs]
            given = {row.needs: {t: needs(a) for t, a in adapters.items()}} if needs else {}
            found[method] = _merged(lambda: tm.merge(adapters, method, **given), layers)  # noqa: B023
        merged, base = tm.merge(adapters, "cat"), tm.open_base(few.model)
        write = lambda: tm.save_merged(base, merged.factors, place / "into")  # noqa: E731
        found["into"] = _merged(write, whole_size(sizes) / base.size)
    finally:
        torch.set_num_threads(threads)
    return found


def _merged(work: Callable[[], object], times: float) -> dict[str, float]:
    start = time.process_time()
    with Counted() as counted:
        work()
    return {"seconds": times * (time.process_time() - start), "peak": counted.peak}


def norms(adapter: tm.LoraAdapter) -> dict[str, torch.Tensor]:
    found = {module: torch.ones(pair.shape[1]) for module, pair in adapter.factors.items()}
    return found | {f"{m}.lora_B": torch.ones(pair.rank) for m, pair in adapter.factors.items()}


def grams(adapter: tm.LoraAdapter) -> dict[str, torch.Tensor]:
    return {module: torch.eye(pair.shape[1]) for module, pair in adapter.factors.items()}


def whole_size(sizes: Mapping) -> int:
    """Bytes of all weights in 16 bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return 2 * sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(**sizes)).parameters())


def peak_resident() -> int | None:
    """Bytes of memory that this process held at the most; None but on Linux."""
    if not STATUS.exists():
        return None
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
