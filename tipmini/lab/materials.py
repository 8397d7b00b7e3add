"""What experiments are made of: a profile's model, adapters and tasks, each loaded once."""

import logging
from functools import cached_property
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from torch import nn

import tipmini as tm
from tipmini.lab import assets, digests, evaluation, model, paths, tasks
from tipmini.lab.profiles import Profile


class Materials:
    """Of one profile; nothing is read before it is asked for."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self._definitions: dict[str, ConfigurableTask] = {}
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    @cached_property
    def model_path(self) -> Path | str:
        embedded = self.profile.model == "embedded"
        return assets.embedded() / "model" if embedded else self.profile.model

    @cached_property
    def model_hash(self) -> str:
        """Of the weights' file; of a hub model its id."""
        if self.profile.model != "embedded":
            return self.profile.model
        return digests.file_digest(assets.embedded() / "model" / "model.safetensors")

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
    def lm(self) -> evaluation.PackedLM:
        """The base model as lm-eval sees it; adapters come and go on it."""
        return evaluation.PackedLM(
            self.base,
            tokenizer=self.tokenizer,
            tokens=self.profile.tokens,
            first_line=True,
            answer_tokens=self.profile.answer_tokens,
        )

    def adapter_path(self, task: str) -> Path:
        """The folder of a task's own adapter; fetched first where it is on the hub."""
        name = self.profile.adapter_names.get(task, task)
        place = self.profile.adapters.format(task=name)
        if self.profile.data == "hub":
            return model.download(place)
        return paths.REPOSITORY / place

    @cached_property
    def adapters(self) -> dict[str, tm.LoraAdapter]:
        """The seven adapters to be merged, by task."""
        return {task: tm.load_adapter(self.adapter_path(task)) for task in self.profile.tasks}

    def task(self, name: str, train: int = 0):
        return tasks.load(name, self.profile.rows(name), train, self.profile.data)

    def definition(self, task: str) -> ConfigurableTask:
        """lm-eval's task over the profile's rows, made once."""
        if task not in self._definitions:
            self._definitions[task] = self.task(task)
        return self._definitions[task]
