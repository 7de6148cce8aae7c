"""Whether this project's Triton kernels can be used; where they cannot, torch's own steps do the same, slower."""

from __future__ import annotations

import importlib.util
import shutil
from functools import cache

import torch
from torch import Tensor


def kernels_for(x: Tensor) -> bool:
    """Whether a kernel may take a tensor: on a GPU, and no gradient is wanted, of which kernels know nothing."""
    return x.device.type == "cuda" and has_triton() and not has_gradient(x)


def has_gradient(*tensors: Tensor | None) -> bool:
    """Whether one is wanted, which no kernel has, nor steps that write into memory of ours."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


@cache
def has_triton() -> bool:
    """Whether Triton can be used: it needs a C compiler, too."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
