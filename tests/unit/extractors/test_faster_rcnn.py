"""The detector's stages on small random inputs, against plain loops, in both conventions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from extractors import boxes as box_ops
from extractors.faster_rcnn import (
    CAFFE,
    PY_BOTTOM_UP,
    ROIS_AT_ONCE,
    BottomUpDetector,
    Conventions,
    DetectorConfig,
)
from extractors.resnet import ResNetConfig
from extractors.weights import randomise
from tests.unit.extractors.plain import overlap

BODY = ResNetConfig(depth=50, ceil_pool=True, last_stage=4).narrowed(16)
BOTH = pytest.mark.parametrize("rules", [CAFFE, PY_BOTTOM_UP], ids=["caffe", "py-bottom-up-attention"])
MAP, SIZE, SCALE = (4, 5), (62, 75), 1.5


def detector(rules: Conventions, proposals: int = 300) -> BottomUpDetector:
    config = DetectorConfig(
        conventions=rules, body=BODY, rpn_channels=8, classes=6, attributes=3, embedding=4, attribute_hidden=5,
        proposals=proposals,
    )  # fmt: skip
    network = BottomUpDetector(config).eval()
    randomise(network, 0)
    return network


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits_and_deltas(rules: Conventions, seed: int) -> tuple[Tensor, Tensor]:
    return noise(1, 24 if rules.paired_logits else 12, *MAP, seed=seed), noise(1, 48, *MAP, seed=seed + 100) * 0.3


def slow_proposals(network: BottomUpDetector, logits: Tensor, deltas: Tensor) -> list[tuple[float, list[float]]]:
    """(score, box), best first: every anchor of every cell by itself."""
    rules, candidates = network.config.conventions, []
    cell = network.proposal_generator.anchor_generator.cell
    for row in range(MAP[0]):
        for column in range(MAP[1]):
            for anchor in range(12):
                score = float(logits[0, anchor, row, column])
                if rules.paired_logits:
                    pair = torch.stack([logits[0, anchor, row, column], logits[0, anchor + 12, row, column]])
                    score = float(pair.softmax(0)[1])
                start = cell[anchor] + torch.tensor([16.0 * column, 16 * row, 16 * column, 16 * row])
                moves = deltas[0, 4 * anchor : 4 * anchor + 4, row, column]
                box = box_ops.decode(moves[None], start[None], (1, 1, 1, 1), rules.plus)
                box = box_ops.clip(box, SIZE[0] - rules.plus, SIZE[1] - rules.plus)[0].tolist()
                sides = (box[2] - box[0] + rules.plus, box[3] - box[1] + rules.plus)
                small = rules is CAFFE and min(sides) <= 16 * SCALE
                if box[2] > box[0] and box[3] > box[1] and not small:
                    candidates.append((score, box))
    kept: list[tuple[float, list[float]]] = []
    for score, box in sorted(candidates, key=lambda each: -each[0]):  # Python's sort is stable: ties go by anchor
        if all(overlap(box, other, rules.plus) <= 0.7 for _, other in kept):
            kept.append((score, box))
    return kept[: network.config.proposals]


@BOTH
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("proposals", [5, 300])
def test_proposals_are_those_of_a_plain_loop(rules: Conventions, seed: int, proposals: int) -> None:
    network = detector(rules, proposals)
    logits, deltas = logits_and_deltas(rules, seed)
    boxes, scores = network.proposal_generator.propose(logits, deltas, SIZE, SCALE)
    wanted = slow_proposals(network, logits, deltas)
    assert len(wanted) == 5 if proposals == 5 else len(wanted) > 10
    torch.testing.assert_close(scores, torch.tensor([score for score, _ in wanted]))
    torch.testing.assert_close(boxes, torch.tensor([box for _, box in wanted]))


@BOTH
def test_an_image_without_a_proposal_has_none(rules: Conventions) -> None:
    logits, deltas = logits_and_deltas(rules, 0)
    boxes, scores = detector(rules).proposal_generator.propose(logits, deltas - 1000, SIZE, SCALE)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@BOTH
def test_background_and_no_attribute_are_sorted_out(rules: Conventions) -> None:
    predictor = detector(rules).roi_heads.box_predictor
    features = noise(7, 128).relu()
    with torch.inference_mode():
        classes, deltas, attributes = predictor.logits(features)
        found = predictor(features)
    assert found.class_probs.shape == (7, 7) and found.box_deltas.shape == (7, 24)
    assert found.attribute_probs.shape == (7, 3)
    torch.testing.assert_close(found.class_probs.sum(1), torch.ones(7))
    if rules is CAFFE:  # background first, "no attribute" first and part of the softmax
        torch.testing.assert_close(found.class_probs[:, -1], classes.softmax(1)[:, 0])
        torch.testing.assert_close(found.class_probs[:, 0], classes.softmax(1)[:, 1])
        assert torch.equal(found.box_deltas, deltas[:, 4:])
        torch.testing.assert_close(found.attribute_probs, attributes.softmax(1)[:, 1:])
    else:  # both last, "no attribute" dropped before the softmax
        torch.testing.assert_close(found.class_probs, classes.softmax(1))
        assert torch.equal(found.box_deltas, deltas)
        torch.testing.assert_close(found.attribute_probs, attributes[:, :3].softmax(1))


@BOTH
def test_attributes_are_told_from_the_embedding_of_the_best_class_even_where_that_is_background(
    rules: Conventions,
) -> None:
    predictor = detector(rules).roi_heads.box_predictor
    background = 0 if rules is CAFFE else 6
    with torch.no_grad():
        predictor.cls_score.bias[background] = 1e6
    features = noise(2, 128).relu()
    with torch.inference_mode():
        _, _, found = predictor.logits(features)
        embedded = predictor.cls_embedding.weight[background].expand(2, -1)
        hidden = torch.relu(predictor.fc_attr(torch.cat([features, embedded], dim=1)))
        torch.testing.assert_close(found, predictor.attr_score(hidden))


@BOTH
def test_boxes_are_decoded_by_the_weights_of_their_convention(rules: Conventions) -> None:
    proposals, deltas = torch.tensor([[0.0, 0, 9, 19], [4, 4, 30, 20]]), noise(2, 24)
    weights = (1, 1, 1, 1) if rules is CAFFE else (10, 10, 5, 5)
    rows, classes = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]), torch.tensor([[5, 0, 2, 5], [0, 3, 3, 5]])
    together = torch.stack([proposals, proposals.flip(0)]), torch.stack([deltas, deltas.flip(0) / 2])
    found = detector(rules).decode(*together, rows, classes)
    assert found.shape == (2, 4, 4)
    for image, (boxes, moves) in enumerate(zip(*together, strict=True)):
        for place, (row, column) in enumerate(zip(rows[image], classes[image], strict=True)):
            mine = moves[row, 4 * column : 4 * column + 4][None]
            moved = box_ops.decode(mine, boxes[row][None], weights, rules.plus)
            torch.testing.assert_close(found[image, place], moved[0])


def test_features_do_not_depend_on_how_many_boxes_run_at_once() -> None:
    heads = detector(CAFFE).roi_heads
    res4 = noise(1, 64, *MAP).relu()
    corners = torch.rand(2 * ROIS_AT_ONCE + 1, 2, generator=torch.Generator().manual_seed(0)) * 30
    boxes = torch.cat([corners, corners + 25], dim=1)
    with torch.inference_mode():
        together = heads.features(res4, boxes)
        alone = torch.cat([heads.features(res4, boxes[row : row + 1]) for row in (0, ROIS_AT_ONCE, -1 + len(boxes))])
    assert together.shape == (2 * ROIS_AT_ONCE + 1, 128) and together.dtype == torch.float32
    torch.testing.assert_close(together[[0, ROIS_AT_ONCE, -1]], alone, rtol=1e-5, atol=1e-5)


def test_no_boxes_have_no_features() -> None:
    assert detector(CAFFE).roi_heads.features(noise(1, 64, *MAP), torch.empty(0, 4)).shape == (0, 128)


def test_pooling_takes_the_maximum_of_whole_cells() -> None:
    res4 = torch.arange(20.0).reshape(1, 1, *MAP)
    pooled = next(detector(CAFFE).roi_heads.pool(res4, torch.tensor([[0.0, 0, 64, 48], [16, 16, 16, 16]])))
    assert pooled.shape == (2, 1, 14, 14)
    assert (float(pooled[0, 0, 0, 0]), float(pooled[0, 0, -1, -1])) == (0, 19)
    assert pooled[1].unique().tolist() == [6]  # the one cell that (16, 16) lies in


def test_the_box_head_keeps_its_size_and_is_dilated() -> None:
    head = detector(CAFFE).roi_heads.res5
    assert [block.conv2.dilation for block in head] == [(2, 2)] * 3
    assert [block.conv1.stride for block in head] == [(1, 1)] * 3


def test_the_checkpoints_anchors_win() -> None:
    network = detector(CAFFE)
    network.load_state_dict(
        network.state_dict() | {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(12, 4)}
    )
    assert network.proposal_generator.anchor_generator.cell.unique().tolist() == [1]


def test_conventions_differ_where_the_published_codes_do() -> None:
    assert replace(CAFFE, name="") != replace(PY_BOTTOM_UP, name="")
    assert (CAFFE.min_side, PY_BOTTOM_UP.min_side) == (16, 0)
    assert detector(PY_BOTTOM_UP).roi_heads.box_predictor.bbox_pred.out_features == 24
    assert detector(CAFFE).roi_heads.box_predictor.bbox_pred.out_features == 28
