"""Box arithmetic once more, slowly and on its own, for tests to compare with."""

from __future__ import annotations


def overlap(a: list[float], b: list[float], plus: int) -> float:
    """IoU of two boxes; `plus` is 1 where both end pixels count."""
    wide = min(a[2], b[2]) - max(a[0], b[0]) + plus
    high = min(a[3], b[3]) - max(a[1], b[1]) + plus
    if wide <= 0 or high <= 0:
        return 0.0
    areas = sum((box[2] - box[0] + plus) * (box[3] - box[1] + plus) for box in (a, b))
    return wide * high / (areas - wide * high)
