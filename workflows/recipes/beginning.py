"""How models begin that start from nothing, where the official codes start from BERT: so that they see sooner.

What each of the two saves was measured on generated scenes (docs/log.md, 2026-11-27).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainers.models.grid_vlp import GridVLP
from trainers.models.vl_bert import VLBert
from trainers.tasks.base import Task

ANSWERING = {
    "qa": "qa_answers",
    "vqa": "vqa_answers",
    "gqa": "gqa_answers",
}  # heads of answers; Grid-VLP's numbers of them
SEEING: dict[type, str] = {VLBert: "appearance", GridVLP: "cell"}  # the layers that take features
SEEN = 64  # examples of which the mean is taken


def begin_rare(heads: Any, answers: int) -> None:
    """Let heads of answers begin with each as rare as it is among so many, not with all of them half true.

    The official codes begin with a bias of 0. Until a random model has unlearned it, by all rows in one direction, it
    does not see.
    """
    for name in ANSWERING.keys() & set(heads):
        last = list(heads[name].modules())[-1]
        nn.init.constant_(last.bias, -math.log(answers))


@torch.no_grad()
def begin_centred(model: nn.Module, task: Task) -> None:
    """Let the layer that takes visual features begin with what all of them share taken off.

    Features have been through a ReLU: two fifths of their square is the mean, which tells nothing, and which a layer of
    random weights passes on to all that follows. A layer that has a bias already is left as it is, and so are models
    that take no features. Such starts from data: Mishkin and Matas, "All you need is a good init", ICLR 2016.
    """
    name = SEEING.get(type(model))
    if name is None:
        return
    layer: Any = model.get_submodule(name)
    if layer.bias.any():
        return
    found: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(0, -2).mean(0)))
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            task.losses(model, task.collate(range(0, len(task), -(-len(task) // SEEN)), 0))
    finally:
        hook.remove()
        model.train(training)
    layer.bias.copy_(-layer.weight @ torch.stack(found).mean(0))
