"""What a cell's values follow from: the model, the adapter, the rows, the settings, the code."""

from functools import lru_cache
from pathlib import Path

from lm_eval.api.task import ConfigurableTask

from tipmini.lab import digests, evaluation, tasks
from tipmini.lab.merging import adapter_hash
from tipmini.lab.profiles import Profile


def evaluation_code() -> dict[str, str]:
    """What a cell's values are computed by."""
    return {"evaluation": digests.code_digest(evaluation.answers, evaluation.PackedLM)}


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
    return {"data": digests.digest(rows), "task": digests.digest(tasks.fingerprint(task))}
