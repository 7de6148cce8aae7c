"""The kernels, read by Triton's interpreter, beside what they stand for: run as a program with TRITON_INTERPRET=1.

Prints a line of JSON: of each kernel what went wrong, or nothing.
"""

from __future__ import annotations

import json
import traceback
from unittest.mock import patch

import torch
from torchvision.ops import roi_pool

from extractors import GridConfig
from extractors.base import prepare_later, prepare_pil
from extractors.ragged import Areas, largest
from extractors.resize import originals
from extractors.suppression import survivors, survivors_of_orders
from tests.unit.extractors.pictures import noisy_photo
from tests.unit.extractors.test_suppression import LISTS, random_lists


def suppression() -> None:
    from extractors.suppression_kernel import walk

    for lists, count in [*LISTS, (1, 700)]:
        for plus, limit, by_class in ((0, 7, True), (1, 1000, False)):
            boxes, alive, classes = random_lists(lists, count)
            kinds = classes if by_class else None
            limit = min(limit, 20) if count > 100 else limit
            found = walk(boxes, alive, kinds, (0.5, plus, limit))
            wanted = survivors(boxes, alive, 0.5, plus, limit, kinds)
            assert torch.equal(found, wanted), (lists, count, plus)
            if count <= 40:
                turned = walk(
                    boxes, alive.t().contiguous().t(), kinds, (0.5, plus, limit)
                )  # a sort of columns lays it so
                assert torch.equal(turned, wanted), (lists, count, plus)


def suppression_in_parts() -> None:
    boxes, alive, classes = random_lists(3, 90)
    for limit, kinds in ((7, classes), (1000, None)):
        wanted = survivors(boxes, alive, 0.25, 0, limit, kinds)
        with patch.multiple("extractors.suppression", kernels_for=lambda boxes: True, LONGEST=40):
            assert torch.equal(survivors(boxes, alive, 0.25, 0, limit, kinds), wanted), limit


def suppression_in_orders() -> None:
    from extractors.suppression_kernel import walk_orders

    for images, lists, count in [(3, 5, 40), (1, 1, 1), (2, 2, 0), (1, 1, 90)]:
        boxes = random_lists(images, count)[0]
        generator = torch.Generator().manual_seed(count)
        orders = torch.rand(images, lists, count, generator=generator).argsort(dim=2)
        alive = torch.rand(images, lists, count, generator=generator) < 0.9
        wanted = survivors_of_orders(boxes, orders, alive, 0.3, 1)
        for laid in (orders, orders.transpose(1, 2).contiguous().transpose(1, 2)):  # a sort of columns lays it so
            assert torch.equal(walk_orders(boxes, laid, alive, (0.3, 1, count)), wanted), (lists, count)
        for mine, order, there, found in zip(boxes, orders, alive, wanted, strict=True):
            assert torch.equal(found.gather(1, order), survivors(mine[order], there, 0.3, 1)), (lists, count)


def pooling() -> None:
    from extractors.roi_pool_kernel import pool

    generator = torch.Generator().manual_seed(0)
    padded = torch.randn(2, 5, 12, 14, generator=generator).to(memory_format=torch.channels_last)
    cells = padded[1:, :, :11, :9]
    corners = [[0.0, 0, 144, 176], [8, 24, 8, 24], [-30, -20, -5, -3], [100, 90, 60, 50], [130, 30, 400, 90.5]]
    boxes = torch.tensor(corners)
    for side in (2, 1):
        found = pool(cells, boxes, side, 1 / 16)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, roi_pool(cells.contiguous(), [boxes], side, 1 / 16)), side
    assert pool(cells, boxes[:0], 2, 1 / 16).shape == (0, 5, 2, 2)


def clearing() -> None:
    from extractors.ragged_kernel import clear

    for sizes in ([(30, 32), (20, 25), (32, 3)], [(9, 9)]):
        areas = Areas(sizes, False, torch.device("cpu"))
        for channels in (1, 3, 40):
            maps = torch.randn(len(sizes), channels, *areas.padded).to(memory_format=torch.channels_last)
            wanted = areas.clear(maps.clone(memory_format=torch.preserve_format))
            assert clear(maps, torch.tensor(sizes)) is maps and torch.equal(maps, wanted)


def resizing() -> None:
    images = [noisy_photo(*size) for size in ((30, 41), (75, 20), (24, 33), (3, 50))]
    config = GridConfig(shorter=24, longer=60)
    late = [prepare_later("", image, config) for image in images]
    wanted = [prepare_pil("", image, config) for image in images]
    assert [each.size for each in late] == [each.size for each in wanted]
    shape = largest([each.size for each in wanted])
    for batch in (late, [late[0], wanted[1], *late[2:]]):
        found = originals(batch, pinned=False).resized(torch.device("cpu"), 6, shape)
        assert found.shape == (6, 3, *shape) and not found[4:].any()
        for image, mine in zip(wanted, found, strict=False):
            height, width = image.size
            assert torch.equal(mine[:, :height, :width], image.pixels), image.size


KERNELS = {
    "suppression": suppression,
    "parts": suppression_in_parts,
    "orders": suppression_in_orders,
    "pooling": pooling,
    "clearing": clearing,
    "resizing": resizing,
}


def main() -> None:
    wrong = dict.fromkeys(KERNELS, "")
    for name, compared in KERNELS.items():
        try:
            compared()
        except Exception:
            wrong[name] = traceback.format_exc()
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
