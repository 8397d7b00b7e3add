"""What a profile's experiments are made of, and the merges that are declared for it, measured."""

import logging
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.table import BY_BLOCK
from tipmini_lab import paths
from tipmini_lab.evaluation import assets, evaluator, model, tasks
from tipmini_lab.evaluation.documents import ADAPTED
from tipmini_lab.experiments import catalogue, distilling, training
from tipmini_lab.experiments.agreeing import DistillRecipe
from tipmini_lab.experiments.catalogue import UNMERGED, Inputs, Variant
from tipmini_lab.experiments.coefficients import Coefficients
from tipmini_lab.experiments.distilling import Distilling
from tipmini_lab.experiments.experiment import Show, run
from tipmini_lab.experiments.merging import DEFAULT, InputNorms, adapter_hash
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.training import RECIPES
from tipmini_lab.experiments.variants import TABLE_1, Merge, evaluation_code
from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe
from tipmini_lab.locks import alone
from tipmini_lab.results import digests, store
from tipmini_lab.results.store import Cell

FINAL = 192  # rows a task to choose among finalists by, where there are so many


class Lab:
    """A profile's model, adapters, tasks and experiments; nothing is read before it is asked for.

    A name is one of TABLE_1, whose cells have files of their own, or a declared variant's
    (`catalogue`), whose cells are in bundles.
    """

    apart: tuple[str, ...] = TABLE_1
    shares = True  # whether a cell is taken over that was measured under another name
    kept: Path | None = None  # folder of norms and learnt weights that were made before

    def __init__(self, profile: Profile):
        self.profile = profile
        self._definitions: dict[str, ConfigurableTask] = {}
        self._experiments: dict[str, Merge] = {}
        self.norms = InputNorms(self, self.kept and self.kept / "norms")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    @property
    def claims(self) -> Path:
        """Folders that a process holds while it makes what they are called by."""
        return self.profile.scratch / "claims"

    @cached_property
    def model_path(self) -> Path | str:
        embedded = self.profile.model == "embedded"
        return assets.embedded() / "model" if embedded else self.profile.model

    @cached_property
    def model_hash(self) -> str:
        """Of the weights' file; of a hub model its id."""
        if self.profile.model != "embedded":
            return self.profile.model
        return self.weights.sha256

    @cached_property
    def weights(self) -> assets.Weights:
        """The embedded model's, hashed before they are loaded."""
        return assets.Weights()

    def require_same_model(self) -> None:
        """Raise TipminiError where `model_hash` may not be of the bytes that were computed with."""
        if self.profile.model == "embedded":
            self.weights.require_same()

    @cached_property
    def tokenizer(self):
        return model.load_tokenizer(self.model_path)

    @cached_property
    def dtype(self) -> str:
        """The number format that this machine computes in."""
        return model.number_format(self.model_path, self.profile.dtype, self.profile.device)

    @cached_property
    def base(self) -> nn.Module:
        """The base model, loaded once."""
        model.keep_memory()
        return model.load_base(self.model_path, self.dtype, self.profile.device)

    @property
    def trainable(self) -> nn.Module:
        """Another copy of the base model, with the attention that gradients pass through."""
        model.keep_memory()
        device = self.profile.device
        return model.load_base(self.model_path, self.dtype, device, attention="eager")

    @cached_property
    def lm(self) -> evaluator.PackedLM:
        """The base model as lm-eval sees it; adapters come and go on it."""
        chosen = {"tokens": self.profile.tokens, "answer_tokens": self.profile.answer_tokens}
        return evaluator.PackedLM(self.base, tokenizer=self.tokenizer, first_line=True, **chosen)

    def adapter_path(self, task: str) -> Path:
        """The folder of a task's own adapter; fetched first where it is on the hub."""
        name = self.profile.adapter_names.get(task, task)
        place = self.profile.adapters.format(task=name)
        return model.download(place) if self.profile.data == "hub" else paths.REPOSITORY / place

    @cached_property
    def adapters(self) -> dict[str, tm.LoraAdapter]:
        """The adapters to be merged, by task."""
        return {task: tm.load_adapter(self.adapter_path(task)) for task in self.profile.tasks}

    def task(self, name: str, train: int = 0) -> ConfigurableTask:
        return tasks.load(name, self.profile.rows(name), train, self.profile.data)

    def definition(self, task: str) -> ConfigurableTask:
        """lm-eval's task over the profile's rows, made once."""
        if task not in self._definitions:
            self._definitions[task] = self.task(task)
        return self._definitions[task]

    def input_norms(self, task: str, chosen: Inputs = DEFAULT) -> dict[str, Tensor]:
        """See `InputNorms.of`."""
        return self.norms.of(task, chosen)

    @cached_property
    def weighing(self) -> Weighing:
        """Weights learnt of the adapters."""
        files = [place / "weights.json" for place in (self.kept, self.profile.store) if place]
        return Weighing(self.trainable, self.tokenizer, self.adapters, WeighingRecipe(), files)

    def distill_recipe(self, merge: Merge) -> DistillRecipe:
        """How a variant is learnt, with these adapters."""
        chosen, own = merge.variant.distill, merge.tasks
        settled = chosen.model_dump(exclude={"learn", "fresh", "unseen", "trained", "start"})
        if chosen.unseen:
            settled["passed"] = {task: RECIPES[task].rows for task in own}
        if chosen.trained:
            rows = {t: RECIPES[t] for t in own}
            few = {t: min(r.held_out, chosen.stopping) for t, r in rows.items()}
            settled["counts"] = {t: (r.rows, few[t]) for t, r in rows.items()}
            settled["repeats"] = {t: r.epochs for t, r in rows.items()}
        settled["shares"] = training.shares({t: self.adapter_path(t) for t in own}) or None
        return DistillRecipe(**settled)

    def made_as(self, name: str) -> str:
        """Whose merge a variant's is: of a choice the one that it came to, so that nothing that
        takes long is made twice."""
        known = catalogue.catalogue()
        chosen = known.choices.get(name)
        return catalogue.winner(chosen, known, self.profile) if chosen else name

    def distilled_places(self, name: str) -> list[Path]:
        """The folders that have what was learnt for a variant; new ones are written to the last."""
        places, made = (self.kept, self.profile.scratch), self.made_as(name)
        return [place / "distilled" / made for place in places if place]

    def distilled(
        self, merge: Merge, start: tm.LoraAdapter
    ) -> tuple[tm.LoraAdapter, distilling.Facts]:
        """What is learnt from a merge on, as its variant says, and what there is to tell of it."""
        chosen, own = merge.variant.distill, {task: self.adapters[task] for task in merge.tasks}
        places = self.distilled_places(merge.name)
        given = {
            "recipe": self.distill_recipe(merge),
            "saved": places[-1].with_name(f"{places[-1].name}.checkpoint.safetensors"),
            "temperatures": training.temperatures({t: self.adapter_path(t) for t in own}),
            "answers": self.profile.scratch / "answers" / digests.digest(self.model_hash)[:12],
        }
        model = self.trainable, self.tokenizer, own
        if chosen.learn == "factors":
            run = Distilling(*model, None if chosen.fresh else start, **given)
        else:
            run = Coefficients(*model, chosen.learn, 0.3, **given)
        with alone(self.claims / "distilled" / places[-1].name):  # of its checkpoint
            folder = distilling.kept(run, places)
        return tm.load_adapter(folder), distilling.facts(folder)

    def variant(self, name: str) -> Variant:
        """The variant of a name; raises TipminiError for an unknown one."""
        if name in TABLE_1:
            return Variant(name=name, title=name, method=name)
        known = catalogue.catalogue()
        if name in known.choices:
            return catalogue.resolved(known.choices[name], known, self.profile)
        return known.variant(name)

    def experiment(self, name: str) -> Merge:
        if name not in self._experiments:
            self._experiments[name] = Merge(self, self.variant(name))
        return self._experiments[name]

    def options(self, method: str) -> dict:
        """The profile's settings of a merge; everything else is the library's default."""
        settings = {"drop_rate": self.profile.drop_rate, "sparsity": self.profile.base_sparsity}
        known = {} if method in (*UNMERGED, *BY_BLOCK) else tm.method_options(method)
        return {name: value for name, value in settings.items() if name in known}

    def merged(self, name: str) -> Path:
        """The PEFT folder of the adapters merged as a variant says."""
        return self.experiment(name).folder

    def sparsities(self, task: str) -> Tensor:
        """(L,) sparsity of every layer of a task's adapter, TIP Eq. 5."""
        return tm.tip_sparsities(
            self.adapters[task], self.input_norms(task), self.profile.base_sparsity
        )

    def cell(self, name: str, task: str) -> Cell:
        """The measured cell; read from the store where it was measured from the same things."""
        return self.experiment(name).cell(task)

    def inputs(
        self, folder: Path | None, definition: ConfigurableTask, metric: str | None = None
    ) -> dict:
        """Everything that values on a task follow from, with the adapter of `folder` (None: of the
        base alone), by the task's own metric if None."""
        inputs = {
            "model": self.model_hash,
            "adapter": folder and adapter_hash(folder),
            **_rows_and_task(definition),
            "parameters": self.profile.model_dump(include={"device", "tokens", "answer_tokens"}),
        }
        usual = metric in (None, tasks.METRIC[definition.config.task])
        return inputs if usual else inputs | {"metric": metric}

    def measure(
        self,
        name: str,
        folder: Path | None,
        definition: ConfigurableTask,
        metric: str | None = None,
    ) -> Cell:
        """Evaluate the base model with the adapter of `folder` (None: without) on a task."""
        start, task = time.perf_counter(), definition.config.task
        metric = metric or tasks.METRIC[task]
        inputs = self.inputs(folder, definition, metric)
        self.lm.adapter = folder
        values, margins = evaluator.answers(self.lm, definition, metric)
        place = {"profile": self.profile.name, "method": name, "task": task, "metric": metric}
        told = {"dtype": self.dtype, "values": values, "margins": margins}
        return store.measured(start, inputs, evaluation_code(), **told, **place)


@lru_cache(maxsize=32)
def _rows_and_task(definition: ConfigurableTask) -> dict[str, str]:
    """Hashes of a task's rows and of what is done with them; thousands of cells may ask."""
    rows, task = list(definition.eval_docs), definition.config.task
    return {"data": digests.digest(rows), "task": digests.digest(tasks.fingerprint(task))}


# Groups of variants -------------------------------------------------------------------------------
class Bundled(Lab):
    """Keeps all cells in bundles, those of the paper's methods as well: a whole set to compare."""

    apart = ()

    @property
    def kept(self) -> Path:
        """What is committed, so that a variant is the same merge on every machine."""
        return self.profile.kept_store


class HeldOut(Bundled):
    """Scores train rows that no adapter was trained on; they chose between checkpoints.

    final: more of them, for finalists. Only adapters of this project are known to leave them out:
    raises TipminiError for others.
    """

    def __init__(self, profile: Profile, final: bool = False):
        if profile.data != "embedded":
            raise TipminiError(f"profile {profile.name}: its adapters' held-out rows aren't known")
        store = profile.finals_store if final else profile.selection_store
        super().__init__(profile.model_copy(update={"variants": str(store)}))
        self.final = final

    def task(self, name: str, train: int = 0) -> ConfigurableTask:
        return super().task(name, train) if train else tasks.held_out(name, *self.rows(name))

    def rows(self, task: str) -> tuple[int, int]:
        """How many train rows are passed over, and how many of the next are scored."""
        recipe, most = RECIPES[task], self.profile.rows(task) or FINAL
        asked = FINAL if self.final else min(ADAPTED[task].choosing, most)
        return recipe.rows, min(asked, recipe.held_out)


def run_all(
    lab: Lab, names: Sequence[str], only: Sequence[str] = (), show: Show = lambda cell: None
) -> None:
    """Measure variants on the tasks they merge, or on those of them that are in `only`: `run`."""
    claims = lab.claims / lab.profile.variant_store.name
    run([lab.experiment(name) for name in dict.fromkeys(names)], claims, only, show)


def stale(lab: Lab, names: Sequence[str]) -> list[tuple[str, str]]:
    """The stored cells, as (variant, task), that would be measured again: `is_stale`."""
    every = [lab.experiment(name) for name in names]
    return [(each.name, task) for each in every for task in each.tasks if each.is_stale(task)]


def measure(
    profile: Profile,
    group: str,
    names: Sequence[str] = (),
    only: Sequence[str] = (),
    show: Show = lambda cell: None,
) -> None:
    """Measure a group of declared variants, or those of it that are in `names`: `stages`."""
    for lab, stage in stages(profile, group, names):
        run_all(lab, stage, only, show)


def stages(
    profile: Profile, group: str, names: Sequence[str] = ()
) -> Iterator[tuple[Lab, list[str]]]:
    """What is measured of a group, or of those of it that are in `names`, one after the other.

    Where a profile chooses, all candidates are first scored on held-out rows, with each set of
    adapters that counts. Finalists are those of the stages before, which are then measured. Raises
    TipminiError for an unknown group or name.
    """
    known = catalogue.catalogue()
    members = known.names(group, profile)
    for name in names:
        if name not in members:
            raise TipminiError(f"group {group}: no variant {name!r} at profile {profile.name}")
    wanted = [name for name in members if not names or name in names]
    choices = [known.choices[name] for name in wanted if name in known.choices]
    if choices and profile.chooses:
        for own in (profile, profile.second()):
            if scored := [c for c in choices if own in catalogue.sets(c, profile)]:
                yield HeldOut(own), [n for c in scored for n in known.candidates(c)]
        for own in (profile, profile.second()):
            several = [c for c in choices if c.finalists and own in catalogue.sets(c, profile)]
            if finals := [n for c in several for n in catalogue.finalists(c, known, profile)]:
                yield HeldOut(own, final=True), finals
    yield Bundled(profile), wanted
