"""Pooling by the kernel, read by Triton's interpreter, beside torchvision's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from extractors.kernels import has_triton

INTERPRETED = """
import torch
from torchvision.ops import roi_pool
from extractors.kernels import has_triton
from extractors.roi_pool_kernel import pool
generator = torch.Generator().manual_seed(0)
padded = torch.randn(2, 5, 12, 14, generator=generator).to(memory_format=torch.channels_last)
cells = padded[1:, :, :11, :9]
boxes = torch.tensor([[0.0, 0, 144, 176], [8, 24, 8, 24], [-30, -20, -5, -3], [100, 90, 60, 50], [130, 30, 400, 90.5]])
for side in (2, 1):
    found = pool(cells, boxes, side, 1 / 16)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, roi_pool(cells.contiguous(), [boxes], side, 1 / 16)), side
assert pool(cells, boxes[:0], 2, 1 / 16).shape == (0, 5, 2, 2)
"""


@pytest.mark.skipif(not has_triton(), reason="there is no Triton, or no C compiler")
def test_the_kernel_read_by_tritons_interpreter_pools_as_torchvision_does() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
