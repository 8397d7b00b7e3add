"""The laboratory: data, training, evaluation, results. Importing it registers lm-eval's `tipmini`.

Only the name is registered; the model's module (and torch, transformers, datasets with it) is
imported once lm-eval asks for it.
"""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # the command line runs without it, too
    from lm_eval.api.registry import model_registry

    model_registry.register("tipmini", target="tipmini_lab.evaluation.evaluator:PackedLM")
