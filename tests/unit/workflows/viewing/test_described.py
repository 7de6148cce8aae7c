"""Records of foreign files: without sizes, names, scores, or finite numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from storage import FeatureLayout, GridRecord, RegionRecord, Spec, StoreWriter
from workflows.viewing.described import described
from workflows.viewing.opened import Opened

BARE = ("attribute_ids", "attribute_scores", "class_ids", "class_scores", "whole_image")


def opened(path: Path, spec: Spec, record: RegionRecord | GridRecord) -> Opened:
    with StoreWriter(path, spec).unit([record.key]) as unit:
        unit.append(record)
        unit.commit()
    return Opened(path)


def test_boxes_without_size_lie_on_the_ground_that_holds_them(tmp_path: Path) -> None:
    spec = Spec("regions", FeatureLayout(2, without=BARE))
    boxes = np.array([[0, 0, 10.5, 20], [5, 5, np.nan, 8]], np.float32)
    store = opened(tmp_path / "a", spec, RegionRecord("a", (0, 0), boxes, np.ones((2, 2), np.float16)))
    facts = described(store, store.store["a"])
    assert (facts["height"], facts["width"], facts["sized"]) == (20, 11, False)
    assert facts["boxes"][1]["box"] == [5, 5, None, 8] and facts["boxes"][0]["label"] is None
    json.dumps(facts, allow_nan=False)


def test_boxes_in_fractions_are_drawn_on_the_ground(tmp_path: Path) -> None:
    spec = Spec("regions", FeatureLayout(2, without=BARE, box_units="fractions"))
    boxes = np.array([[0, 0.5, 0.25, 1]], np.float32)
    store = opened(tmp_path / "a", spec, RegionRecord("a", (0, 0), boxes, np.ones((1, 2), np.float16)))
    facts = described(store, store.store["a"])
    assert facts["boxes"][0]["box"] == [0, 500, 250, 1000] and facts["width"] == 1000


def test_cells_cover_what_the_spec_says(tmp_path: Path) -> None:
    spec = Spec("grid", FeatureLayout(2), preprocess={"shorter": 600, "longer": 1000})
    store = opened(tmp_path / "a", spec, GridRecord("a", (480, 640), np.ones((19, 25, 2), np.float16)))
    assert described(store, store.store["a"])["frame"] == [0, 0, 640, 486.4]
    store = opened(tmp_path / "b", spec, GridRecord("b", (0, 0), np.ones((2, 3, 2), np.float16)))
    assert described(store, store.store["b"])["frame"] == [0, 0, 96, 64]


def test_ids_beyond_the_vocabulary_are_shown_as_numbers(tmp_path: Path) -> None:
    spec = Spec("regions", FeatureLayout(2, without=tuple(set(BARE) - {"class_ids"})))
    record = RegionRecord("a", (9, 9), np.ones((1, 4), np.float32), np.ones((1, 2), np.float16))
    with_class = RegionRecord(**{**vars(record), "class_ids": np.array([7], np.int32)})
    store = opened(tmp_path / "a", spec, with_class)
    assert described(store, store.store["a"])["boxes"][0]["label"] == "class 7"
