"""What a pruned model is made by, below `run`: a result of other code is not the same result."""

from tipmini import (
    calibration,
    criteria,
    groups,
    int8,
    loraprune,
    masking,
    removal,
    schedules,
    wanda,
    weights,
)
from tipmini.dare import named_generator
from tipmini.lab import lora_linear, model, objective, packing, resumable, training
from tipmini.lab.pruning import masked_result, recipe, scoring, texts

BELOW = (  # whole modules where most of one takes part
    *(criteria, groups, int8, loraprune, masking, removal, schedules, wanda),
    *(lora_linear, masked_result, recipe, resumable, scoring, texts),
    *(calibration.calibrate, calibration._InputSums, named_generator, weights.save_merged),
    *(objective.losses, objective._scored, model.HeadLogprobs, model.target_hidden),
    *(model.recompute, packing.batches, packing.collate, packing.pack, training.schedule),
)
