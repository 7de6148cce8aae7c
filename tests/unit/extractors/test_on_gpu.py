"""On a GPU: fused convolutions, the suppression kernel, and extractors beside the same ones on a CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from extractors import GridConfig, ImageError, RegionConfig, make_extractor
from extractors.base import float32_multiplied
from extractors.boxes import class_survivors_together, nms_together
from extractors.configs import ConvConfig
from extractors.faster_rcnn import Predictions
from extractors.fused import convolve
from extractors.ragged import padded_count
from extractors.resnet import ConvNorm
from extractors.roi_pool import roi_pool
from extractors.selection import DEFAULTS, RULES, Frame, Proposed, select
from extractors.suppression import survivors
from extractors.trunk import TrunkExtractor, on_device
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import JobStart, run_job
from pipeline.sources import SourceConfig
from pipeline.unit import UnitReport
from storage import Record, RegionRecord, open_store
from tests.unit.extractors.test_suppression import random_lists

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


class Silent:
    """Shows nothing of a running job."""

    def started(self, start: JobStart) -> None: ...
    def advanced(self, images: int, failed: int) -> None: ...
    def reported(self, total: UnitReport) -> None: ...
    def stopped(self) -> None: ...


TINY = {"weights": "random:0", "width_divisor": 8, "device": "cpu", "store_dtype": "float32"}
SIZES = [(96, 128), (96, 120), (128, 96), (100, 128), (60, 200)]


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fused_convolution_is_the_steps_it_stands_for(dtype: torch.dtype, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, 1, 2, 2, groups).requires_grad_(False).cuda()
    x, residual = torch.randn(2, 2, 64, 20, 30).cuda().unbind()
    conv.to(dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode(), float32_multiplied("float32", torch.device("cuda")):
        exact = F.relu(F.conv2d(x.to(dtype).double(), conv.weight.double(), conv.bias.double(), 1, 2, 2, groups))
        alone = convolve(x.to(dtype).to(memory_format=torch.channels_last), conv, None, relu=True)
        added = convolve(x.to(dtype).to(memory_format=torch.channels_last), conv, residual.to(dtype), relu=True)
        linear = F.conv2d(x.to(dtype).double(), conv.weight.double(), conv.bias.double(), 1, 2, 2, groups)
    near = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(alone.double(), exact, rtol=near, atol=near)
    torch.testing.assert_close(added.double(), F.relu(linear + residual.to(dtype).double()), rtol=near, atol=near)


@pytest.mark.parametrize(("lists", "count"), [(1600, 300), (3, 6000), (1, 1), (2, 500)])
@pytest.mark.parametrize("plus", [0, 1])
def test_the_kernel_leaves_what_settles(lists: int, count: int, plus: int) -> None:
    from extractors.suppression_kernel import walk

    boxes, alive, classes = random_lists(min(lists, 40), count)
    for kinds in (None, classes):
        few = slice(0, 2 if count > 1000 else None)
        mine = None if kinds is None else kinds[few].cuda()
        found = walk(boxes[few].cuda(), alive[few].cuda(), mine, (0.5, plus, count))
        wanted = survivors(boxes[few], alive[few], 0.5, plus, None, None if kinds is None else kinds[few])
        assert torch.equal(found.cpu(), wanted)


def beside_a_cpu(config: ConvConfig) -> Iterator[tuple[Record | ImageError, Record | ImageError]]:
    """What a GPU gives of each image, all together and then one by one, and what a CPU gives."""
    there = make_extractor(replace(config, device="cuda"))
    prepared = [there.prepare(str(row), image) for row, image in enumerate(images())]
    wanted = make_extractor(config).extract(prepared)
    yield from zip(there.extract(prepared), wanted, strict=True)
    for image, other in zip(prepared, wanted, strict=True):
        yield there.extract([image])[0], other


GRIDS = [GridConfig(model=name, **TINY) for name in ("r50", "x101", "x152pp")]  # type: ignore[arg-type]


@pytest.mark.parametrize("config", GRIDS, ids=lambda config: config.model)
def test_grids_are_those_of_a_cpu_whatever_the_batch(config: GridConfig) -> None:
    for one, other in beside_a_cpu(config):
        np.testing.assert_allclose(one.features, other.features, rtol=2e-3, atol=2e-4)  # type: ignore[union-attr]


def test_regions_of_given_boxes_are_those_of_a_cpu_whatever_the_batch(tmp_path: Path) -> None:
    """Which boxes random weights would find, rounding decides."""
    boxes = {str(row): [[0, 0, 90, 50], [10, 5, 40, 45], [3, 3, 9, 9]] for row in range(len(SIZES))}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    config = RegionConfig(boxes=str(tmp_path / "boxes.json"), box_format="xyxy", box_units="pixels", **TINY)  # type: ignore[arg-type]
    for one, other in beside_a_cpu(config):
        assert isinstance(one, RegionRecord) and isinstance(other, RegionRecord)
        for name in ("features", "whole_image", "class_scores", "attribute_scores"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("plus", [0, 1])
def test_boxes_are_suppressed_as_on_a_cpu(plus: int) -> None:
    boxes, _, classes = random_lists(3, 400)
    scores = torch.rand(3, 400, generator=torch.Generator().manual_seed(1)).round(decimals=2)
    each = [boxes[0], boxes[1, :30], boxes[2, :0]], [scores[0], scores[1, :30], scores[2, :0]]
    together = (
        pad_sequence(each[0], batch_first=True),
        pad_sequence(each[1], batch_first=True, padding_value=-torch.inf),
    )
    for thresholds, limit, kinds in (([0.5], 50, None), ([0.3, 0.5, 0.7], 90, None), ([0.3, 0.5, 0.7], 200, classes)):
        if kinds is not None and plus:
            continue
        wanted, few = nms_together(*together, thresholds, plus, limit, kinds)
        there = None if kinds is None else kinds.cuda()
        found, counts = nms_together(*(part.cuda() for part in together), thresholds, plus, limit, there)
        assert torch.equal(counts.cpu(), few)
        for mine, other, count in zip(found, wanted, few, strict=True):
            assert torch.equal(mine[:count].cpu(), other[:count])
    many = torch.rand(3, 300, 200, generator=torch.Generator().manual_seed(2)).round(decimals=2)
    rest = 0.3, torch.tensor([300, 20, 0])
    alive = class_survivors_together(boxes[:, :300].cuda(), many.cuda(), rest[0], rest[1].cuda())
    assert torch.equal(alive.cpu(), class_survivors_together(boxes[:, :300], many, *rest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_is_that_of_a_cpu(dtype: torch.dtype) -> None:
    padded = torch.randn(2, 96, 30, 40).to(dtype).to(memory_format=torch.channels_last)
    cells, boxes = padded[1:, :, :25, :37], random_lists(1, 50)[0][0] * 19.3 - 10
    found = torch.cat([*roi_pool(cells.cuda(), boxes.cuda(), 14, 1 / 16, 20)])
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.float().cpu(), next(roi_pool(cells, boxes, 14, 1 / 16, 50)))


def test_gradients_are_those_of_a_cpu() -> None:
    """Kernels and fused steps know none, and stand back where they are wanted."""
    conv = ConvNorm(8, 8, 3)
    x, boxes = torch.randn(2, 8, 20, 30), torch.tensor([[0.0, 0, 300, 200], [40, 30, 90, 99]])
    found = {}
    for name in ("cpu", "cuda"):
        mine = x.to(name).to(memory_format=torch.channels_last).requires_grad_()
        with float32_multiplied("float32", torch.device(name)):
            maps = conv.to(name)(mine, relu=True)
            next(roi_pool(maps[1:], boxes.to(name), 3, 1 / 16, 50)).square().sum().backward()
        assert mine.grad is not None
        found[name] = mine.grad.cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-5)
    assert found["cpu"].abs().max() > 0


def test_a_job_on_a_gpu_loses_nothing(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for row, image in enumerate(images() * 8):
        Image.fromarray(image).save(photos / f"{row}.png")
    config = GridConfig(model="r50", weights="random:0", width_divisor=8, device="cuda", dtype="bfloat16")
    for out, batch in (("one", 1), ("many", "auto")):
        engine = EngineConfig(str(tmp_path / out), batch_size=batch, images_per_shard=16)  # type: ignore[arg-type]
        assert run_job(ExtractJob(SourceConfig(str(photos)), config, engine), Silent()).status == 0
    one, many = open_store(tmp_path / "one"), open_store(tmp_path / "many")
    assert sorted(one.keys()) == sorted(many.keys()) and len(one) == 40
    for key in one:
        np.testing.assert_allclose(
            one[key].features.astype(np.float32), many[key].features.astype(np.float32), rtol=0.1, atol=0.05
        )


@pytest.mark.parametrize("longest", [8192, 1000])
@pytest.mark.parametrize("name", RULES)
def test_boxes_are_selected_as_on_a_cpu(name: str, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every rule, without waiting; also where candidates are suppressed part by part."""
    monkeypatch.setattr("extractors.suppression.LONGEST", longest)
    generator = torch.Generator().manual_seed(3)
    regressed, counts = random_lists(3 * 300, 41)[0].view(3, 300, 41, 4) * 40, torch.tensor([300, 200, 5])
    logits = torch.randn(3, 300, 42, generator=generator) * 3
    logits[:, 150:] = logits[:, :150]
    probs = (logits.softmax(2) * 64).floor() / 64  # ties
    frames = [Frame((600, 800), (300, 400), scale) for scale in (2.0, 1.3, 0.7)]
    nothing = torch.zeros(3, 300, 0)

    def proposed(device: str) -> Proposed:
        moved, images = regressed.to(device), torch.arange(3, device=device)[:, None]
        found = Predictions(probs.to(device), nothing.to(device), nothing.to(device))

        def regress(rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
            return moved[images, rows, classes]

        return Proposed(moved[:, :, 0].contiguous(), counts.to(device), found, frames, regress)

    here, there = proposed("cpu"), proposed("cuda")
    for most in (5, 36, 400):
        for score in (0.2, 0.5, 0.999):
            rule = replace(DEFAULTS[name], min_boxes=5, max_boxes=most, score_threshold=score)
            wanted, kept = select(here, rule)
            select(there, rule)  # kernels are compiled
            torch.cuda.set_sync_debug_mode("error")
            try:
                mine, on_gpu = select(there, rule)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert torch.equal(on_gpu.cpu(), kept)
            for row, count in enumerate(kept):
                pairs = zip(mine, wanted, strict=True)
                assert all(torch.equal(each[row, :count].cpu(), other[row, :count]) for each, other in pairs)


@pytest.mark.parametrize("rule", ["10-100", "class-aware", "class-agnostic", "detectron2"])
def test_every_rule_gives_whole_records_whatever_the_batch(rule: str) -> None:
    extractor = make_extractor(replace(RegionConfig(**TINY, selection=rule), device="cuda"))  # type: ignore[arg-type]
    prepared = [extractor.prepare(str(row), image) for row, image in enumerate(images())]
    for image, record in zip(prepared, extractor.extract(prepared), strict=True):
        assert isinstance(record, RegionRecord) and record.key == image.key
        count = len(record.boxes)
        fields = (record.features, record.class_ids, record.class_scores, record.attribute_ids, record.attribute_scores)
        assert count <= 100 and {len(each) for each in fields if each is not None} == {count}
        assert count >= 10 or rule != "10-100"
        [alone] = extractor.extract([image])
        np.testing.assert_allclose(alone.whole_image, record.whole_image, rtol=2e-3, atol=2e-4)  # type: ignore[union-attr]


def test_a_gpu_resizes_to_the_bytes_that_a_cpu_resizes_to() -> None:
    extractor = make_extractor(GridConfig(model="r50", weights="random:0", width_divisor=8, shorter=96, longer=160))
    assert isinstance(extractor, TrunkExtractor)
    generator = np.random.default_rng(0)
    sizes = [(96, 128), (300, 400), (50, 67), (120, 160), (500, 667)]  # one as it is, two smaller, two larger
    pictures = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    late = [extractor.resize_late(str(row), picture) for row, picture in enumerate(pictures)]
    wanted = [extractor.resize(str(row), picture) for row, picture in enumerate(pictures)]
    assert all(each.resized == mine.size for each, mine in zip(late, wanted, strict=True))
    for batch in (late, [wanted[0], *late[1:]], late[3:]):
        ready = [wanted[int(each.key)] for each in batch]
        stacked = extractor.stack(batch)
        found = on_device(stacked, extractor.device).cpu()
        assert len(found) == padded_count(len(batch)) and not found[len(batch) :].any()
        for mine, image in zip(found, ready, strict=False):
            height, width = image.size
            assert torch.equal(mine[:, :height, :width], image.pixels)
        for mine, other in zip(extractor.extract(batch), extractor.extract(ready), strict=True):
            assert isinstance(mine, Record) and isinstance(other, Record)
            np.testing.assert_array_equal(mine.features, other.features)
