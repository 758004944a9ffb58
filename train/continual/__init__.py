"""Learning on and on without forgetting.

items     what is learned: questions with answers and plain sentences, as tokens and batches with their loss
replay    the reservoir of what was learned before
rows      the loss of a classifier and of a language model, as methods see it
method    the hooks of a method; trainer: the loop over tasks (progress: where it is) and step: the one that calls them
checks    what cannot be learned; checkpoints: a trainer on disk
mixing    replay in every batch, from a buffer (buffer) in memory or on disk
ewc, si   weights that mattered are held (quadratic: all pulls as one); lwf: old answers are
packnet   each task has weights of its own; progressive: a column of layers; finetune: an adapter
router    which task's adapter an input is for, or none
domain    a language model through domains of text; pretraining: a pre-training run goes on with new data
drift     when a stream is no longer what it was, and in which way
metrics   what the tasks did to each other: accuracy and loss matrices, transfer, forgetting
abilities what else a language model lost; report: the page with heat maps and curves
scenarios a labelled set as tasks; study: one method on them, scored
"""

from train.continual.items import (
    EncodedItem,
    ItemBatch,
    LearningItem,
    build_batch,
    encode_item,
    encode_text,
    render_chat,
    target_logits,
    text_item,
    token_losses,
)
from train.continual.replay import ExperienceReplay, replay_key

__all__ = [
    "EncodedItem",
    "ExperienceReplay",
    "ItemBatch",
    "LearningItem",
    "build_batch",
    "encode_item",
    "encode_text",
    "render_chat",
    "replay_key",
    "target_logits",
    "text_item",
    "token_losses",
]
