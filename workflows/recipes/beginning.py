"""How models begin for which the official codes have no start: so that they see sooner.

What each of them saves was measured on generated scenes (docs/log.md, 2026-11-27).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batch import Batch, Regions, Text
from trainers.models.grid_vlp import GridVLP
from trainers.models.vl_bert import WAVES, VLBert, lay_out
from trainers.tasks.base import Task

ANSWERING = {
    "qa": "qa_answers",
    "vqa": "vqa_answers",
    "gqa": "gqa_answers",
}  # heads of answers; Grid-VLP's numbers of them
SEEING: dict[type, str] = {VLBert: "appearance", GridVLP: "cell"}  # the layers that take features
SEEN = 64  # examples of which the mean is taken
RIDGE = 0.01  # of the features' mean variance: what keeps a fit to few regions from learning them by heart


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


@torch.no_grad()
def begin_translated(
    model: VLBert, seen: Iterable[tuple[Regions, Regions]], other: Mapping[str, Tensor], device: torch.device
) -> float:
    """Let a VL-BERT make of its own network's features what its start has learnt to make of another network's.

    By least squares, with a small penalty (ridge regression): the features of both networks tell much the same of a
    region, so that a run end to end begins near where the run on the cache ended.

    Args:
        seen: the same regions with pixels, and with the features that the start has learnt from.
        other: of the start, `appearance.weight` (D, 8 * WAVES + F) and `appearance.bias` (D,) for those features.
        device: where the network is to look.

    Returns:
        how much of the variance of what the start makes of these regions' features is met, 1 being all of it.
    """
    layer, first = model.appearance, 8 * WAVES
    learnt, bias = (other[f"appearance.{name}"].to(layer.weight) for name in ("weight", "bias"))

    def features(regions: Regions) -> Tensor:
        text = Text(torch.zeros(len(regions.boxes), 1, dtype=torch.int64))
        layout = lay_out(Batch(text, regions))
        return model.seen_of(regions.to(device), layout.to(device))[:, first:].cpu()

    model.to(device)
    pairs = [(features(pixels), features(cached) @ learnt[:, first:].T) for pixels, cached in seen]
    model.to("cpu")
    ours, wanted = (torch.cat(each).double() for each in zip(*pairs, strict=True))
    ours_mean, wanted_mean = ours.mean(0), wanted.mean(0)
    ours, wanted = ours - ours_mean, wanted - wanted_mean
    products = ours.T @ ours
    products += RIDGE * products.diagonal().mean() * torch.eye(len(products), dtype=products.dtype)
    weight = (torch.linalg.pinv(products, hermitian=True) @ (ours.T @ wanted)).T  # a random network may be silent
    layer.weight[:, first:] = weight.to(layer.weight)
    layer.bias.copy_(bias + (wanted_mean - weight @ ours_mean).to(bias))
    return 1 - float((wanted - ours @ weight.T).square().sum() / wanted.square().sum())
