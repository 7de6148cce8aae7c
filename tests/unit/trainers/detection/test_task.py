"""Detection as a task: batches in the input's pixels, losses in the loop, scores by the kept library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from extractors import ConfigError
from extractors.trunk import Colours
from trainers.batch import Regions
from trainers.detection.building import Plan, build
from trainers.detection.data import Detections, Labelled
from trainers.detection.images import FolderImages
from trainers.detection.losses import Truth
from trainers.detection.scores import require_metrics, scores
from trainers.detection.task import IMAGES, DetectionTask, mirrored
from trainers.detection.vocabulary import Names, Vocabulary
from trainers.visual import VisualError

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = Vocabulary(Names.of(["cat", "dog"]), Names.of(["red", "wet"]))
GREY = Colours((100.0, 100.0, 100.0))


def labelled(key: str, *boxes: tuple[float, ...], attributes: tuple[tuple[int, ...], ...] = ()) -> Labelled:
    said = attributes or ((),) * len(boxes)
    return Labelled(key, np.array(boxes, np.float32), np.ones(len(boxes), np.int64), said)


def task(folder: Path, *images: Labelled, vocabulary: Vocabulary = VOCABULARY, **settings: Any) -> DetectionTask:
    """Images of 60 x 40 pixels, red at the left and blue at the right, halved."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0], pixels[:, 30:, 2] = 200, 200
    for image in images:
        Image.fromarray(pixels).save(folder / f"{image.key}.png")
    return DetectionTask(Detections(images, vocabulary, {}), FolderImages(folder, 20, 40), GREY, **settings)


def regions(batch: Any) -> Regions:
    assert isinstance(batch.visual, Regions)
    return batch.visual


def test_boxes_are_in_the_pixels_of_the_input_and_cut_to_it(tmp_path: Path) -> None:
    image = labelled("a", (10, 10, 30, 40), (50, 20, 80, 60), (60, 0, 70, 10), attributes=((1,), (0, 1), (0,)))
    batch = task(tmp_path, image, labelled("b", (0, 0, 8, 8))).collate([0, 1], 0)[IMAGES]
    found = regions(batch)
    assert found.pixels is not None and found.pixels.images.shape == (2, 3, 20, 30)
    torch.testing.assert_close(found.boxes[0], torch.tensor([[5.0, 5, 15, 20], [25, 10, 30, 20]]))
    torch.testing.assert_close(found.boxes[1, 0], torch.tensor([0.0, 0, 4, 4]))
    assert found.mask is not None and found.mask.tolist() == [[True, True], [True, False]]
    assert batch.targets["attributes"].tolist() == [[[1, -1], [0, 1]], [[-1, -1], [-1, -1]]]
    assert Truth.of(found, batch.targets["classes"], batch.targets["attributes"]).sizes == ((20, 30), (20, 30))


def test_half_of_the_images_are_mirrored_in_training_with_their_boxes(tmp_path: Path) -> None:
    learns = task(tmp_path, labelled("a", (0, 10, 20, 30)), training=True)
    found = [regions(learns.collate([0], epoch)[IMAGES]) for epoch in range(40)]
    lefts = [each.boxes[0, 0].tolist() for each in found]
    assert 10 <= lefts.count([0, 5, 10, 15]) <= 30 and lefts.count([20, 5, 30, 15]) == 40 - lefts.count([0, 5, 10, 15])
    for each in found:
        assert each.pixels is not None
        box_is_left = each.boxes[0, 0, 0] == 0
        assert bool(each.pixels.images[0, 0, 10, 2] > each.pixels.images[0, 2, 10, 2]) == bool(box_is_left)


def test_mirrored_twice_is_what_it_was() -> None:
    pixels, boxes = torch.rand(3, 4, 6), torch.tensor([[1.0, 0, 3, 2]])
    again = mirrored(*mirrored(pixels, boxes))
    assert torch.equal(again[0], pixels) and torch.equal(again[1], boxes)
    assert mirrored(pixels, boxes)[1].tolist() == [[3, 0, 5, 2]]


def test_attributes_are_named_in_all_batches_or_in_none(tmp_path: Path) -> None:
    assert "attribute" in (found := task(tmp_path, labelled("a", (0, 0, 9, 9)))).counts(found.collate([0], 0))
    without = task(tmp_path, labelled("a", (0, 0, 9, 9)), vocabulary=Vocabulary(VOCABULARY.classes, Names.of([])))
    batches = without.collate([0], 0)
    assert "attribute" not in without.counts(batches)
    model = build(Plan("grid", divisor=16, shorter=20), without.split.vocabulary).detector.train()
    assert sorted(without.losses(model, batches)) == sorted(without.counts(batches))


def test_an_image_that_breaks_is_named(tmp_path: Path) -> None:
    broken = task(tmp_path, labelled("a", (0, 0, 9, 9)))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(VisualError, match="image 'a' cannot be used"):
        broken.collate([0], 0)


def test_what_is_found_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    scored = task(tmp_path, labelled("a", (0, 0, 9, 9)), labelled("b", (0, 0, 9, 9)))
    Image.new("RGB", (90, 40), (9, 99, 199)).save(tmp_path / "b.png")
    model = build(Plan("grid", divisor=16, shorter=20), VOCABULARY).detector.eval()
    chance = torch.Generator().manual_seed(0)
    scores: Any = model.roi_heads.box_predictor.cls_score  # type: ignore[union-attr]
    torch.nn.init.normal_(scores.weight, generator=chance)
    with torch.no_grad():
        together = scored.predict(model, scored.collate([0, 1], 0))
        alone = [scored.predict(model, scored.collate([number], 0))[0] for number in (0, 1)]
    assert [each["id"] for each in together] == ["a", "b"]
    for one, other in zip(together, alone, strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-2)
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def found(*boxes: tuple[float, ...], classes: int = 1, attribute: int = 0) -> dict[str, Any]:
    count = len(boxes)
    steps = [0.9 - 0.1 * number for number in range(count)]
    return {"boxes": list(boxes), "scores": steps, "classes": [classes] * count, "attributes": [attribute] * count}


def test_scores_are_those_of_coco() -> None:
    true = [labelled("a", (0, 0, 10, 10), (20, 20, 40, 40))]
    exact = [found((0, 0, 10, 10), (20, 20, 40, 40))]
    assert scores(exact, true, with_attributes=False) == {"mAP": pytest.approx(100), "mAP50": pytest.approx(100)}
    rough = [found((0, 0, 10, 8), (20, 20, 40, 36))]  # overlaps of 0.8: right at 0.5 to 0.8, 7 of 10 thresholds
    measured = scores(rough, true, with_attributes=False)
    assert measured["mAP50"] == pytest.approx(100) and 60 <= measured["mAP"] <= 70
    assert scores([found((0, 0, 10, 10), classes=0)], true, with_attributes=False)["mAP50"] == 0


def test_attributes_are_right_where_one_is_among_those_said_of_a_box_that_was_found() -> None:
    true = [labelled("a", (0, 0, 10, 10), (20, 20, 40, 40), (50, 0, 60, 9), attributes=((0, 1), (1,), (0,)))]
    seen = [found((0, 0, 10, 10), (20, 20, 40, 40), attribute=0)]  # the third was not found: it does not count
    assert scores(seen, true, with_attributes=True)["attributes"] == 50
    assert scores([found()], true, with_attributes=True)["attributes"] == 0


def test_what_measures_is_asked_for_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    require_metrics()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torchmetrics and pycocotools; install triptych\[detection\]"):
        require_metrics()
