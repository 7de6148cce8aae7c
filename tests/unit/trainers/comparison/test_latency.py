"""The time of an answer by its parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainers.tasks import tiny
from tests.unit.trainers.tasks.test_fine_tuning import ANSWERS, questions
from trainers.batch import Pixels
from trainers.comparison import latency as measuring
from trainers.comparison.latency import Extracted, alone, latency, parts_of
from trainers.config import TrainConfig
from trainers.tasks.answers import Answers
from trainers.tasks.families import build_model
from trainers.tasks.retrieval import Retrieval

CONFIG = TrainConfig(out="", steps=1, device="cpu")
NAPS = {"look": 0.03, "transformer": 0.06, "heads": 0.02, "text": 0.04}


def after_a_nap(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def late(*given: Any) -> Any:
        time.sleep(seconds)
        return call(*given)

    return late


def task_of(name: str) -> tuple[torch.nn.Module, Any]:
    answers = {"vqa_answers" if name in ("grid_vlp", "pixel_bert") else "answers": len(ANSWERS)}
    config, family, visual = tiny.setting(name, training=False, heads=("vqa",), **answers)
    return build_model(config), Answers(questions("vqa"), family, visual, ANSWERS)


@pytest.mark.parametrize("name", ["vl_bert", "vl_bert_e2e", "grid_vlp", "pixel_bert", "vilt", "meter_cached", "meter"])
def test_every_model_s_time_has_all_its_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "EXAMPLES", 2)
    model, task = task_of(name)
    model.train()
    found = latency(model, task, CONFIG)
    assert min(found.visual, found.transformer, found.heads, found.rest) > 0
    assert model.training and not any(each._forward_hooks for part in parts_of(model).values() for each in part)


def test_parts_are_what_took_the_time_and_add_up_to_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "EXAMPLES", 1)
    monkeypatch.setattr(measuring, "WARMUP", 0)
    model, task = task_of("grid_vlp")
    monkeypatch.setattr(task.visual, "look", after_a_nap(task.visual.look, NAPS["look"]))
    for name, modules in parts_of(model).items():
        monkeypatch.setattr(modules[0], "forward", after_a_nap(modules[0].forward, NAPS[name]))
    monkeypatch.setattr(task.family, "question", after_a_nap(task.family.question, NAPS["text"]))
    began = time.perf_counter()
    found = latency(model, task, CONFIG)
    took = 1e3 * (time.perf_counter() - began)
    parts = (found.visual, found.transformer, found.heads, found.rest)
    for part, nap in zip(parts, NAPS.values(), strict=True):
        assert 1e3 * nap <= part < took
    assert sum(parts) == found.total <= took


def test_an_extractor_gives_what_its_store_would() -> None:
    visual = Extracted(tiny.Pictures(4), tiny.pixel_extractor())
    assert visual.missing(["picture-0", "picture-9"]) == ["picture-9"]
    found = visual.look(["picture-1", "picture-2"])
    assert isinstance(found.visual, Pixels) and found.sizes.tolist() == [[64, 96], [64, 64]]
    assert np.array_equal(found.visual.images[1, :, :64, :64].permute(1, 2, 0).numpy(), tiny.picture("picture-2"))


def test_an_image_of_retrieval_goes_with_one_of_its_texts() -> None:
    _, family, visual = tiny.setting("vilt", training=False, heads=("itm", "rank"))
    task = Retrieval(tiny.captions(6, each=3), family, visual)
    assert len(task.collate([2], 0)["texts"].text) == 18
    only = alone(task, 2)
    assert len(only) == 1 and len(only.collate([0], 0)["texts"].text) == 1
    assert only.split.examples[0].id == "2" and len(task.split.examples) == 6


def test_images_may_come_from_elsewhere() -> None:
    _, task = task_of("vilt")
    elsewhere = Extracted(tiny.Pictures(), tiny.pixel_extractor())
    assert alone(task, 3, elsewhere).visual is elsewhere and task.visual is not elsewhere
