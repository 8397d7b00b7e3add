"""What a cell's values follow from: the code, the model, the adapter, the rows and settings."""

from functools import lru_cache
from pathlib import Path

from lm_eval.api.task import ConfigurableTask

from tipmini.lab import (
    attention,
    evaluation,
    generation,
    llama,
    model,
    packing,
    resident,
    results,
    tasks,
)
from tipmini.lab.merging import adapter_hash
from tipmini.lab.profiles import Profile

EVALUATION_CODE = (
    packing.Row,
    packing.pack_requests,
    packing.together,
    packing.flatten,
    packing.runs,
    packing.collate,
    packing.batches,
    packing.Group,
    attention,
    generation,
    llama,
    model.target_hidden,
    model.scored_targets,
    model.target_logprobs,
    resident.Resident,
    evaluation.PackedLM,
    evaluation.Stop,
    evaluation.evaluate,
)


def cell_inputs(
    profile: Profile,
    model_hash: str,
    folder: Path | None,
    definition: ConfigurableTask,
    metric: str | None = None,
) -> dict:
    """Of a task scored with the adapter of `folder` (None: without), by its own metric if None."""
    task = definition.config.task
    inputs = {
        "code": results.code_digest(EVALUATION_CODE),
        "model": model_hash,
        "adapter": folder and adapter_hash(folder),
        **_rows_and_task(definition),
        "parameters": profile.model_dump(include={"device", "tokens", "answer_tokens"}),
    }
    return inputs | ({"metric": metric} if metric not in (None, tasks.METRIC[task]) else {})


@lru_cache(maxsize=32)
def _rows_and_task(definition: ConfigurableTask) -> dict[str, str]:
    """Hashes of a task's rows and of what is done with them; thousands of cells may ask."""
    rows, task = list(definition.eval_docs), definition.config.task
    return {"data": results.digest(rows), "task": results.digest(tasks.fingerprint(task))}
