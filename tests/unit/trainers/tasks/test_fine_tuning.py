"""Every model's tasks: one batch is learnt by heart, is then answered rightly, and scores what that is worth."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainers import meters
from tests.unit.trainers.tasks import tiny
from trainers.batch import Pixels, Regions
from trainers.data.answers import AnswerVocabulary
from trainers.data.base import Example, Split
from trainers.data.karpathy import one_a_text
from trainers.metrics import vcr_accuracy
from trainers.models.image_towers import ImageTower
from trainers.models.text_towers import TextTower
from trainers.object_pixels import ObjectPixels
from trainers.tasks.answers import Answers
from trainers.tasks.captions import Captioning, CaptionTraining
from trainers.tasks.common import SplitTask
from trainers.tasks.commonsense import Commonsense, names_of, tagged_pair, together
from trainers.tasks.entailment import Entailment
from trainers.tasks.expressions import Expressions, boxes_of
from trainers.tasks.probes import ImageClasses, ImageProbe, TextClasses, TextProbe, matthews
from trainers.tasks.reasoning import Reasoning
from trainers.tasks.retrieval import FALSE_TEXTS, Retrieval, RetrievalTraining, nth
from trainers.visual import VisualError

ANSWERS = AnswerVocabulary((*tiny.COLOURS, "yes", "no"))
NAMES = list(tiny.COLOURS)
PICTURES = 12


def key(number: int) -> str:
    return f"picture-{number}"


def questions(kind: str) -> Split:
    """What colour a picture has."""
    examples = []
    for number in range(PICTURES):
        colour = tiny.colour_of(key(number))
        truth: dict[str, Any] = {"answers": (colour,) * 8 + ("no", "yes"), "scores": {colour: 1.0, "no": 0.3}}
        if kind == "gqa":
            truth = {"answer": colour, "scores": {colour: 1.0}, "structural": "query", "balanced": True}
        else:
            truth |= {"answer_type": "other", "question_type": "what"}
        examples.append(Example(str(number), (key(number),), ("what colour is it ?",), truth))
    return Split(kind, "val", examples)


def pairs() -> Split:
    """Whether two pictures have one colour."""
    examples = []
    for number in range(PICTURES):
        second = number + 6 if number % 2 else number + 1
        truth = {"label": bool(number % 2)}
        examples.append(Example(f"dev-{number}-0-0", (key(number), key(second)), ("both the same",), truth))
    return Split("nlvr2", "dev", examples)


def hypotheses() -> Split:
    examples = []
    for number in range(PICTURES):
        colour = NAMES[(number + (number % 3 == 0)) % len(NAMES)]
        text = "why because" if number % 3 == 1 else f"it is {colour}"
        examples.append(Example(str(number), (key(number),), (text,), {"label": number % 3}))
    return Split("snli_ve", "dev", examples)


def expressions() -> Split:
    """Boxes by their colour."""
    examples = []
    for number in range(PICTURES):
        record = tiny._regions(key(number))
        place = number % len(record.boxes)
        assert record.class_ids is not None
        text = f"the {NAMES[record.class_ids[place]]} box"
        examples.append(Example(str(number), (key(number),), (text,), {"box": record.boxes[place]}))
    return Split("refcoco+", "val", examples)


def choices() -> Split:
    """What colour the first object has, and why."""
    examples = []
    for number in range(PICTURES):
        objects = tuple(["person", "cup", "dog", "person"][: len(tiny._regions(key(number)).boxes)])
        own = NAMES.index(tiny.colour_of(key(number)))
        said = [NAMES[(own + step) % len(NAMES)] for step in range(4)]
        right, why = number % 4, (number + 1) % 4
        answers = [((0,), "is", said[(step - right) % 4]) for step in range(4)]
        reasons = [("it", "is", said[(step - why) % 4], (0, 1)) for step in range(4)]
        tokens = (("what", "colour", "is", (0,), "?"), *answers, *reasons)
        truth = {"objects": objects, "tokens": tokens, "answer": right, "rationale": why, "metadata": ""}
        examples.append(Example(f"val-{number}", (key(number),), ("",) * 9, truth))
    return Split("vcr", "val", examples)


@dataclass(frozen=True)
class Case:
    """A model, a task, and data that it can learn."""

    model: str
    split: Callable[[], Split]
    task: Callable[..., SplitTask]
    heads: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    lr: float = 3e-3
    pictures: int = PICTURES

    def build(self, training: bool = True, seed: int = 0) -> tuple[Any, SplitTask]:
        config, family, visual = tiny.setting(self.model, training, heads=self.heads, **self.changes)
        return config, self.task(self.split(), family, visual, seed=seed, training=training)


def vqa(*given: Any, **settings: Any) -> SplitTask:
    return Answers(*given, ANSWERS, "vqa", **settings)


def gqa(*given: Any, **settings: Any) -> SplitTask:
    return Answers(*given, ANSWERS, "gqa", **settings)


def rationale(*given: Any, **settings: Any) -> SplitTask:
    return Commonsense(*given, "rationale", **settings)


ANSWERED: dict[str, Any] = {"answers": len(ANSWERS)}
GRIDS: dict[str, Any] = {"vqa_answers": len(ANSWERS), "gqa_answers": len(ANSWERS)}
VCR = ("vcr", "vcr_objects")
CASES = {
    "vl_bert vqa": Case(
        "vl_bert", lambda: questions("vqa"), vqa, ("vqa",), {**ANSWERED, "mask_id": tiny.tokenizer().mask}
    ),
    "vl_bert refcoco": Case("vl_bert", expressions, Expressions, ("refcoco",), steps=60),
    "vl_bert vcr answer": Case("vl_bert_all", choices, Commonsense, VCR, {"object_classes": 81}, 120, pictures=4),
    "vl_bert vcr rationale": Case("vl_bert_all", choices, rationale, VCR, {"object_classes": 81}, 120, pictures=4),
    "grid_vlp vqa": Case("grid_vlp", lambda: questions("vqa"), vqa, ("vqa",), GRIDS),
    "grid_vlp regions vqa": Case("grid_vlp_regions", lambda: questions("vqa"), vqa, ("vqa",), GRIDS),
    "grid_vlp gqa": Case("grid_vlp", lambda: questions("gqa"), gqa, ("gqa",), GRIDS),
    "grid_vlp nlvr2": Case("grid_vlp", pairs, Reasoning, ("nlvr2",), steps=60),
    "pixel_bert vqa": Case("pixel_bert", lambda: questions("vqa"), vqa, ("vqa",), GRIDS),
    "pixel_bert nlvr2": Case("pixel_bert", pairs, Reasoning, ("nlvr2",), steps=40, pictures=6),
    "vilt vqa": Case("vilt", lambda: questions("vqa"), vqa, ("vqa",), ANSWERED),
    "vilt nlvr2": Case("vilt", pairs, Reasoning, ("nlvr2",), {"image_types": 2}, 60),
    "vilt retrieval": Case("vilt", tiny.captions, RetrievalTraining, ("itm", "rank"), pictures=4),
    "meter vqa": Case("meter", lambda: questions("vqa"), vqa, ("vqa",), ANSWERED),
    "meter nlvr2": Case("meter", pairs, Reasoning, ("nlvr2",), steps=40, pictures=6),
    "meter snli_ve": Case("meter", hypotheses, Entailment, ("snli",)),
    "meter retrieval": Case("meter_cached", tiny.captions, RetrievalTraining, ("itm", "rank"), {}, 80, 1e-3, 4),
    "meter captions": Case("meter_cached", tiny.captions, CaptionTraining, ("mlm",)),
    "meter merged vqa": Case("meter_cached", lambda: questions("vqa"), vqa, ("vqa",), {**ANSWERED, "fusion": "merged"}),
    "meter decoder vqa": Case(
        "meter_cached", lambda: questions("vqa"), vqa, ("vqa",), {**ANSWERED, "decoder_layers": 1}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_batch_is_learnt_by_heart_and_answered(name: str) -> None:
    case = CASES[name]
    config, task = case.build()
    task.family.mirrors = False  # answers are compared with the pictures as they are
    model = tiny.built(config)
    losses = tiny.train(model, task, range(case.pictures), case.steps, case.lr)
    assert losses[-1] < 0.5 * losses[0], losses[:: len(losses) // 5]
    model.eval()
    with torch.no_grad():
        predictions = task.predict(model, task.collate(range(case.pictures), 0))
    task.split = split = replace(task.split, examples=task.split.examples[: case.pictures])
    assert [each["id"] for each in predictions] == [example.id for example in split.examples]
    json.dumps(predictions)
    least = 60 if "vqa" in name else 70  # of VQA's ten answers eight are right: 80 out of 100 at best, and a bit
    assert task.score(predictions)[task.metric] >= least


@pytest.mark.parametrize("name", CASES)
def test_a_batch_does_not_change_its_examples_loss(name: str) -> None:
    """The mean over two batches, weighted by their counts, is that over both together."""
    config, task = CASES[name].build(training=False)
    model = tiny.built(config).eval()
    with torch.no_grad():
        whole, parts = task.collate(range(6), 0), [task.collate(range(2), 0), task.collate(range(2, 6), 0)]
        counts = [task.counts(each) for each in parts]
        for loss, wanted in task.losses(model, whole).items():
            found = [float(task.losses(model, each)[loss]) for each in parts]
            total = task.counts(whole)[loss]
            assert sum(each[loss] for each in counts) == total
            mean = sum(value * each[loss] for value, each in zip(found, counts, strict=True)) / total
            assert mean == pytest.approx(float(wanted), rel=1e-4, abs=1e-5)


def test_vl_bert_answers_at_a_mask_behind_the_question() -> None:
    _, task = CASES["vl_bert vqa"].build()
    batch = task.collate([0], 0)["pairs"]
    tokenizer = tiny.tokenizer()
    assert batch.text.ids[0, -3:].tolist() == [tokenizer.end, tokenizer.mask, tokenizer.end]
    assert batch.text.segments is not None and batch.text.segments[0].tolist()[-3:] == [0, 1, 1]


def test_predictions_are_written_as_submissions(tmp_path: Path) -> None:
    _, task = CASES["grid_vlp nlvr2"].build(training=False)
    task.write([{"id": "dev-0-0-0", "answer": True}], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "dev-0-0-0,True\n"
    _, task = CASES["vilt vqa"].build(training=False)
    task.write([{"id": "7", "answer": "red"}], tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == [{"question_id": 7, "answer": "red"}]


# retrieval


def scored(name: str, heads: tuple[str, ...]) -> tuple[Any, Retrieval]:
    config, family, visual = tiny.setting(name, False, heads=heads)
    split = tiny.captions(6, each=3)
    return tiny.built(config).eval(), Retrieval(split, family, visual)


@pytest.mark.parametrize("name", ("vilt", "meter", "meter_cached"))
@pytest.mark.parametrize("heads", (("itm", "rank"), ("itm",)))
def test_every_pair_is_scored_as_it_would_be_by_itself(name: str, heads: tuple[str, ...]) -> None:
    model, task = scored(name, heads)
    with torch.no_grad():
        predictions = task.predict(model, task.collate([0, 1, 2, 3, 4, 5], 0))
        rows = np.stack([np.frombuffer(base64.b64decode(each["scores"]), np.float32) for each in predictions])
        texts = [text for example in task.split.examples for text in example.texts]
        assert rows.shape == (6, len(texts))
        for image, text in ((0, 0), (3, 7), (5, 17)):
            row = task.family.row(task.family.tokenizer(texts[text]))
            looked = task.visual.look([key(image)])
            batch = task.family.batch([row], looked.visual, {})
            pooled = task.family.pooled(model, task.family.states(model, batch))
            wanted = model.heads["rank"](pooled)[0, 0] if "rank" in heads else model.heads["itm"](pooled)[0, 1]
            assert rows[image, text] == pytest.approx(float(wanted), abs=1e-5)
    scores = task.score(predictions)
    assert {"TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "recall_mean"} == scores.keys()


def test_texts_are_scored_in_batches_and_meter_reads_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = scored("meter", ("itm", "rank"))
    monkeypatch.setattr("trainers.tasks.retrieval.AT_ONCE", 4 * model.config.layer.dim)
    seen = []
    monkeypatch.setattr(model.image, "forward", lambda pixels, own=model.image.forward: seen.append(1) or own(pixels))
    with torch.no_grad():
        small = task.predict(model, task.collate([0, 1], 0))
        assert len(seen) == 1
        monkeypatch.setattr("trainers.tasks.retrieval.AT_ONCE", 99 * model.config.layer.dim)
        for one, other in zip(small, task.predict(model, task.collate([0, 1], 0)), strict=True):
            values = [np.frombuffer(base64.b64decode(each["scores"]), np.float32) for each in (one, other)]
            assert np.abs(values[0] - values[1]).max() < 1e-5


def test_trained_retrieval_finds_its_pictures() -> None:
    config, family, visual = tiny.setting("vilt", True, heads=("itm", "rank"))
    split = tiny.captions(6)
    model = tiny.built(config)
    tiny.train(model, RetrievalTraining(one_a_text(split), family, visual, training=True), range(6), 40)
    task = Retrieval(split, family, visual)
    with torch.no_grad():
        scores = task.score(task.predict(model.eval(), task.collate(range(6), 0)))
    assert scores["TR@1"] > 60 and scores["IR@1"] > 60


def test_false_texts_depend_on_the_example_alone() -> None:
    _, task = CASES["vilt retrieval"].build()
    whole, part = task.collate([3, 5], 1)["pairs"], task.collate([5], 1)["pairs"]
    width, texts = part.text.ids.shape[1], 1 + FALSE_TEXTS
    assert len(part.text) == texts and part.image_of == (0,) * texts
    assert torch.equal(whole.text.ids[texts:, :width], part.text.ids)


def test_one_image_of_many_keeps_its_own_numbers() -> None:
    boxes, mask = torch.arange(24.0).view(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]])
    regions = Regions(boxes, torch.ones(2, 2), mask, torch.zeros(2, 3, 5))
    second = nth(regions, 1)
    assert second.lengths == (1,) and torch.equal(second.boxes, boxes[1:])
    pixels = Pixels(torch.zeros(2, 3, 8, 8), torch.tensor([[8, 8], [4, 6]]))
    assert nth(pixels, 1).shapes == ((4, 6),)


# captions


def test_captions_are_learnt_and_searched() -> None:
    config, family, visual = tiny.setting("meter_cached", True, heads=("mlm",))
    right = [tiny.colour_of(key(number)) for number in range(4)]
    split = Split("coco", "train", [Example(key(n), (key(n),), (f"{right[n]} box",)) for n in range(4)])
    model = tiny.built(config)
    tiny.train(model, CaptionTraining(one_a_text(split), family, visual, training=True), range(4), 120, fixed=False)
    task = Captioning(split, family, visual)
    with torch.no_grad():
        predictions = task.predict(model.eval(), task.collate(range(4), 0))
    told = [each["caption"] for each in predictions]
    assert sum(each == f"{colour} box" for each, colour in zip(told, right, strict=True)) >= 3, told


# VCR


def test_tags_point_to_the_objects_that_texts_speak_of() -> None:
    said = names_of(["person", "cup", "person"])
    assert said == ["casey", "cup", "riley"]
    tokenizer = tiny.tokenizer()
    row = tagged_pair(("is", (0, 1), "?"), ("yes",), ("red", "blue", "green"), tokenizer)
    red, blue = (tokenizer.vocabulary[name] for name in ("red", "blue"))
    assert row.ids[2] == red and row.ids[4] == blue and row.tags == (0, 0, 1, 0, 2, 0, 0, 0, 0)
    assert row.second == 7
    long = tagged_pair(("is",) * 90, ("yes",) * 20, (), tokenizer)
    assert len(long) == 64 + 3 and long.second == 2 + 44


def test_rationales_are_scored_given_each_answer_and_both_together() -> None:
    config, task = CASES["vl_bert vcr rationale"].build(training=False)
    model = tiny.built(config).eval()
    batches = task.collate([0, 1], 0)
    assert len(batches["pairs"].text) == 2 * 16
    with torch.no_grad():
        rationales = task.predict(model, batches)
    assert np.array([each["rationales"] for each in rationales]).sum(-1) == pytest.approx(np.ones((2, 4)))
    answers = [{"id": each["id"], "answer": [0.1, 0.2, 0.3, 0.4]} for each in rationales]
    both = together(answers, rationales)
    assert both[0].keys() == {"id", "answer", "rationales"}
    assert vcr_accuracy(both, task.split.examples[:2]).keys() == {"Q->A", "QA->R", "Q->AR"}


def test_objects_that_do_not_fit_the_regions_are_told() -> None:
    _, task = CASES["vl_bert vcr answer"].build()
    example = task.split.examples[0]
    truth = {**example.truth, "objects": ("person",) * 9}
    task.split = replace(task.split, examples=[replace(example, truth=truth)])
    with pytest.raises(VisualError, match="'picture-0' has 2 regions for the 9 objects of val-0; extract those"):
        task.collate([0], 0)


def test_objects_end_to_end_have_boxes_and_outlines(tmp_path: Path) -> None:
    corner = [[4, 4], [40, 4], [4, 40]]
    known = {
        "names": ["person", "cup"],
        "boxes": [[4, 4, 40, 40, 0.9], [10, 10, 30, 60, 0.9]],
        "segms": [[corner], [corner, corner]],
        "width": 64,
        "height": 64,
    }
    for number in range(3):
        (tmp_path / f"{key(number)}.json").write_text(json.dumps(known), encoding="utf-8")
    visual = ObjectPixels(tiny.Pictures(), tmp_path, 64, 128)
    assert visual.missing([key(0), key(5), "other-1"]) == [key(5), "other-1"]
    regions = visual.look([key(0), key(2)]).visual
    assert isinstance(regions, Regions) and regions.outlines is not None
    assert regions.outlines.shape == (2, 2, 14, 14) and 0.3 < float(regions.outlines[0, 0].mean()) < 0.7
    config, family, _ = tiny.setting("vl_bert_e2e", heads=VCR, object_classes=81)
    split = replace(
        choices(), examples=[replace(e, truth={**e.truth, "objects": ("person", "cup")}) for e in choices().examples]
    )
    task = Commonsense(split, family, visual, training=True)
    losses = tiny.train(tiny.built(config), task, range(2), 12)
    assert losses[-1] < losses[0]


# RefCOCO+


def test_boxes_of_more_than_half_are_right_and_padding_never_is() -> None:
    _, task = CASES["vl_bert refcoco"].build()
    targets = task.collate(range(6), 0)["pairs"].targets
    assert targets["right"].sum(1).tolist() == [1] * 6 and not bool(targets["right"][:, 0].any())
    places = [1 + number % len(tiny._regions(key(number)).boxes) for number in range(6)]
    assert targets["right"].int().argmax(1).tolist() == places
    assert not bool((targets["right"] & ~targets["counted"]).any())


def test_boxes_are_those_of_the_original_and_the_whole_image_comes_first() -> None:
    for name in ("vl_bert", "vl_bert_e2e"):
        _, _, visual = tiny.setting(name)
        boxes, counted = boxes_of(visual.look([key(0), key(1)]))
        assert boxes[:, 0].tolist() == [[0, 0, 63, 63], [0, 0, 95, 63]]
        assert counted.sum(1).tolist() == [3, 4]
        assert boxes[1, 1].tolist() == pytest.approx([0, 0, 12, 12], abs=1e-4)


# probes


def test_the_probe_of_images_learns_without_changing_the_encoder() -> None:
    _, family, visual = tiny.setting("meter")
    examples = [Example(key(n), (key(n),), (), {"label": n % 6}) for n in range(PICTURES)]
    task = ImageClasses(Split("folder", "train", examples), family, visual, training=True)
    torch.manual_seed(0)
    model = ImageProbe(meters.stirred(ImageTower(meters.tower("clip"))), 6)
    before = {name: value.clone() for name, value in model.tower.state_dict().items()}
    losses = tiny.train(model, task, range(PICTURES), 60, lr=0.1)
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in model.tower.state_dict().items())
    assert not model.tower.training
    with torch.no_grad():
        assert task.score(task.predict(model.eval(), task.collate(range(PICTURES), 0)))["accuracy"] > 80


def test_the_probe_of_texts_learns_classes_of_pairs() -> None:
    _, family, visual = tiny.setting("meter_cached")
    examples = [
        Example(
            str(n), (), (f"it is {NAMES[n % 6]}", f"a {NAMES[n % 6 if n % 2 else (n + 1) % 6]} box"), {"label": n % 2}
        )
        for n in range(PICTURES)
    ]
    task = TextClasses(Split("glue-mrpc", "train", examples), family, visual, training=True)
    torch.manual_seed(0)
    model = TextProbe(TextTower(tiny.METER.text), 2, dropout=0.0)
    losses = tiny.train(model, task, range(PICTURES), 80, lr=5e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_matthews_correlation() -> None:
    truth = np.array([0, 0, 1, 1])
    assert matthews(truth, truth) == pytest.approx(1) and matthews(1 - truth, truth) == pytest.approx(-1)
    assert matthews(np.zeros(4), truth) == 0
    assert matthews(np.array([0, 1, 1, 1]), truth) == pytest.approx(0.57735, abs=1e-4)
