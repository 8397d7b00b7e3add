"""What a model is worth that answers every row of a task alike."""

from collections import Counter

from lm_eval.api.task import ConfigurableTask


def majority(definition: ConfigurableTask) -> float:
    """The accuracy of the best constant answer on the rows that are scored."""
    answers = Counter(str(definition.doc_to_target(doc)) for doc in definition.eval_docs)
    return answers.most_common(1)[0][1] / answers.total()
