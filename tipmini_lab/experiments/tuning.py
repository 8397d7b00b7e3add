r"""Ways to tune a model for a task: what each adds or frees, and the run that trains it.

PEFT has LoRA, prefixes, prompts and LayerNorms. The bottleneck adapters that LoRA is compared with
are here: the library that has them (`adapters` 1.3) needs transformers 4.57.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from peft import LNTuningConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import llama, objective
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.training import (
    Resumable,
    TrainingRecipe,
    add_lora,
    learning_rate,
    schedule,
)
from tipmini_lab.results import digests


# What is trained ----------------------------------------------------------------------------------
class Bottleneck(nn.Module):
    """h + W_up relu(W_down h), (..., d) to (..., d), through r channels; W_up is zero at first.

    normed: W_down reads a LayerNorm of h that is trained too, as AdapterL's does.
    """

    def __init__(self, width: int, rank: int, normed: bool, dtype: torch.dtype):
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=dtype) if normed else nn.Identity()
        self.down = nn.Linear(width, rank, dtype=dtype)
        self.up = nn.Linear(rank, width, dtype=dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(torch.relu(self.down(self.norm(h))))


PLACES = {  # whose output an adapter reads and replaces, below a layer; "" is the layer's own
    "houlsby": ("self_attn.o_proj", "mlp.down_proj"),  # AdapterH: before either residual sum
    "lin": ("mlp.down_proj",),  # AdapterL
    "pfeiffer": ("",),  # AdapterP: after the residual sum
}


def bottleneck(model: nn.Module, seed: int, *, kind: str, rank: int, first: int = 0) -> nn.Module:
    """An adapter in every layer from `first` on: those before it have none, as in AdapterDrop."""
    torch.manual_seed(seed)
    for layer in model.model.layers[first:]:
        for place in PLACES[kind]:
            made = Bottleneck(model.config.hidden_size, rank, kind == "lin", model.dtype)
            module = layer.get_submodule(place)
            module.adapter = made
            module.register_forward_hook(lambda module, given, out: module.adapter(out))
    return model


def lora(
    model: nn.Module, seed: int, *, rank: int, alpha: int, targets: Sequence[str]
) -> nn.Module:
    """PEFT's; see `training.add_lora`."""
    return add_lora(model, rank, alpha, targets, seed, light=True).get_base_model()


def norms(model: nn.Module, seed: int) -> nn.Module:
    """PEFT's LNTuning of all norms."""
    return get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM")).get_base_model()


def biases(model: nn.Module, seed: int) -> nn.Module:
    """BitFit: a bias on every linear layer of the blocks. LLaMA has none, so they start at zero."""
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features))
    return model


def weights(model: nn.Module, seed: int, *, last: int | None = None) -> nn.Module:
    """All weights of the last so many layers, or of all of them and the norm after them.

    The embedding, which is the head as well, stays: no gradient passes through the head's
    log-probabilities to it (`model.HeadLogprobs`).
    """
    model.model.layers[-(last or 0) :].requires_grad_(True)
    model.model.norm.requires_grad_(last is None)
    return model


def prefix(model: nn.Module, seed: int, *, length: int) -> nn.Module:
    """PEFT's prefix tuning: keys and values of `length` places before the text, in every layer."""
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    return _prompted(model, seed, config)


def prompt(model: nn.Module, seed: int, *, length: int) -> nn.Module:
    """PEFT's prompt tuning: embeddings of `length` places before the text."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    return _prompted(model, seed, config)


def _prompted(model: nn.Module, seed: int, config) -> nn.Module:
    torch.manual_seed(seed)
    return Prompted(get_peft_model(model, config))


class Prompted(nn.Module):
    """A model with PEFT's virtual tokens before every row, as packed batches are read.

    PEFT's own forward takes plain rows alone; of it are the tokens' embeddings, or keys and values.
    """

    def __init__(self, peft: nn.Module):
        super().__init__()
        self.peft, self.config = peft, peft.get_base_model().config
        self.length = peft.active_peft_config.num_virtual_tokens

    @property
    def dtype(self) -> torch.dtype:
        return self.peft.get_base_model().dtype

    @property
    def device(self) -> torch.device:
        return self.peft.get_base_model().device

    @property
    def lm_head(self) -> nn.Module:
        return self.peft.get_base_model().lm_head

    def base_model(self, tokens: Tensor, attention_mask, position_ids: Tensor, **options):
        """The decoder's output of (B, T) tokens, with a (B, 1, T, T) mask or None."""
        decoder, rows = self.peft.get_base_model().model, len(tokens)
        if attention_mask is not None:  # every place sees all virtual tokens
            attention_mask = nn.functional.pad(attention_mask, (self.length, 0))
        given = {"position_ids": position_ids + self.length}
        made = self.peft.get_prompt(rows)
        if isinstance(self.peft.active_peft_config, PrefixTuningConfig):
            return decoder(tokens, attention_mask, past_key_values=made, **given, **options)
        virtual = made.to(self.dtype)
        own = torch.arange(self.length, device=tokens.device).expand(rows, -1)
        given["position_ids"] = torch.cat([own, given["position_ids"]], 1)
        if attention_mask is not None:  # and they see one another, causally
            attention_mask = nn.functional.pad(
                attention_mask, (0, 0, self.length, 0), value=-torch.inf
            )
            among = torch.ones(self.length, self.length, dtype=torch.bool).tril()[None, None]
            attention_mask[:, :, : self.length, : self.length] = llama.additive(
                among, self.dtype, tokens.device
            )
        embedded = torch.cat([virtual, decoder.embed_tokens(tokens)], 1)
        found = decoder(None, attention_mask, inputs_embeds=embedded, **given, **options)
        found.last_hidden_state = found.last_hidden_state[:, self.length :]
        return found


PARTS: Mapping[str, Callable[..., nn.Module]] = {
    part.__name__: part for part in (weights, norms, biases, lora, bottleneck, prefix, prompt)
}
Parts = Sequence[Mapping[str, object]]  # each with a name of PARTS as "part", and its options


def tunable(base: nn.Module, parts: Parts, seed: int) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A frozen base with these parts in it, and the parameters that they train, by name.

    Parts that are prompts stand last: they are around the model. Raises TipminiError for a part or
    an option that there is not.
    """
    model, chosen = base, []
    for told in parts:
        options = {key: value for key, value in told.items() if key != "part"}
        if told["part"] not in PARTS:
            raise TipminiError(f"part {told['part']!r}: not one of {', '.join(PARTS)}")
        try:
            with warnings.catch_warnings(action="ignore"):  # of a model's second adapter
                model = PARTS[told["part"]](model, seed, **options)
        except (TypeError, KeyError) as error:
            raise TipminiError(f"part {told['part']}: {error}") from None
        chosen += [p for p in model.parameters() if p.requires_grad]
    for parameter in chosen:  # PEFT freezes what it has not made itself
        parameter.requires_grad_(True)
    return model, {n: p for n, p in model.named_parameters() if p.requires_grad}


def temperature(base: nn.Module, task: str, held_out: list[Example], tokens: int) -> float:
    """Of `objective`'s loss: 1 where choices are of one token, else what fits the untuned model."""
    if METRIC[task] != "acc_norm":
        return 1.0
    scores = objective.all_scores(base, held_out, tokens)
    return objective.fit_temperature(scores, objective.gold(held_out))


# The run that trains it ---------------------------------------------------------------------------
@dataclass(frozen=True)
class TuningRecipe:
    """What a run does, but for its parts; rows are the first of `tasks.rows`' order."""

    rows: int
    rate: float = 1e-3
    epochs: int = 1
    batch: int = 16
    tokens: int = 2048  # padded tokens of one forward pass; a step accumulates several
    warmup: float = 0.05
    held_out: int = 128  # the train rows after those, which nothing is trained on
    seed: int = 0


class Tuning(Resumable):
    """A run of minutes: where it is killed it starts again, so that no checkpoint is written.

    What is trained in 16 bits has a copy in 32 that takes the steps: most would be rounded away.
    """

    every = sys.maxsize

    def __init__(
        self,
        base: nn.Module,
        parts: Parts,
        recipe: TuningRecipe,
        every: list[Example],
        temperature: float,
    ):
        self.parts, self.recipe, self.tokens = parts, recipe, recipe.tokens
        self.train, self.held_out = every[: recipe.rows], every[recipe.rows :]
        self.temperature = temperature
        self.model, self.trained = tunable(base, parts, recipe.seed)
        self.factors = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.float())
            for name, p in self.trained.items()
        }
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.steps = schedule(recipe.rows, recipe.epochs, recipe.batch, recipe.seed)
        self.log: dict = {"loss": [], "seconds": 0.0}

    def identity(self) -> str:
        rows = [list(example.content) for example in self.train + self.held_out]
        return digests.digest([json.dumps(self.parts), asdict(self.recipe), rows])

    def step(self, number: int) -> float:
        """One optimiser step over one batch."""
        total = self.backward([self.train[i] for i in self.steps[number]])
        pairs = [(p, self.factors[n]) for n, p in self.trained.items()]
        for parameter, kept in pairs:
            if kept is not parameter:
                kept.grad, parameter.grad = parameter.grad.float(), None
        nn.utils.clip_grad_norm_(self.factors.values(), 1.0)
        given = TrainingRecipe(
            self.recipe.rows, learning_rate=self.recipe.rate, warmup=self.recipe.warmup
        )
        self.update(learning_rate(given, number, len(self.steps)))
        with torch.no_grad():
            for parameter, kept in pairs:
                parameter.copy_(kept)
        return total

    def run(self) -> None:
        self.advance(0, len(self.steps), "tuning")

    @torch.no_grad()
    def held_out_losses(self) -> list[float]:
        """Of every row that nothing was trained on."""
        scores = objective.all_scores(self.model, self.held_out, self.tokens)
        right = objective.gold(self.held_out)
        return objective.choice_losses(scores, right, self.temperature).tolist()
