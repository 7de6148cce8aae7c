"""Batch normalisation that is trained, in the place of fixed statistics: what random weights need to learn at all.

Published detectors are fine-tuned with the statistics of ImageNet, fixed (`extractors.resnet.FrozenNorm`). A network
with random weights has no statistics that fit. Its norms take those of each batch, keep running means, and are saved
under the same four names, so that extraction finds fixed statistics again. Those of the box head come from the RoIs
that training draws; at extraction they stand for all proposals. Of several processes the first one's are saved.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from extractors.resnet import ConvNorm, FrozenNorm

MOMENTUM = 0.1  # torch's and detectron2's


class LiveNorm(FrozenNorm):
    """A norm of the statistics of its batch while training, and of their running means otherwise."""

    def __init__(self, before: FrozenNorm) -> None:
        super().__init__(len(before.weight))
        for name in ("weight", "bias"):
            del self._buffers[name]
            self.register_parameter(name, nn.Parameter(getattr(before, name).clone()))

    def forward(self, x: Tensor) -> Tensor:
        statistics, weights = (self.running_mean, self.running_var), (self.weight, self.bias)
        return F.batch_norm(x, *statistics, *weights, self.training, MOMENTUM, self.eps)


def thaw(network: nn.Module) -> None:
    """Have all norms of a network trained."""
    for layer in network.modules():
        if isinstance(layer, ConvNorm):
            assert layer.norm is not None
            layer.norm = LiveNorm(layer.norm)
