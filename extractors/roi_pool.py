"""RoI max-pooling of one image's boxes, bit for bit torchvision's: there on a CPU, and on a GPU as a Triton kernel.

torchvision's own kernel takes maps in planes and in float32 only, and what it gives must then be turned to the layout
and number type that the box head computes in: a fifth of a detector's time in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extractors.kernels import kernels_for


def roi_pool(cells: Tensor, boxes: Tensor, side: int, scale: float) -> Tensor:
    """The largest value in each of `side` x `side` parts of every box.

    Source of the rounding: torchvision `ops/roi_pool.py`, which is Fast R-CNN's (Girshick 2015, section 2.1).

    Args:
        cells: (1, C, h, w).
        boxes: (R, 4) in the network's input pixels.
        scale: cells per input pixel.

    Returns:
        (R, C, side, side): on a GPU in the number type of the cells, channels_last; else float32.
    """
    if kernels_for(cells) and cells.stride(1) == 1:
        from extractors.roi_pool_kernel import pool  # Triton is no package of every machine

        return pool(cells, boxes, side, scale)
    from torchvision.ops import roi_pool  # here, as it takes seconds to import

    found: Tensor = roi_pool(cells.float(), [boxes], side, scale)
    return found.to(cells.dtype, memory_format=torch.channels_last) if cells.device.type == "cuda" else found
