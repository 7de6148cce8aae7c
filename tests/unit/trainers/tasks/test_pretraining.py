"""Every model's pre-training: losses fall, one batch is learnt by heart, and chance depends on the example alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainers.tasks import tiny
from trainers.batch import Regions
from trainers.codebook import Codebook, CodebookConfig
from trainers.data.answers import AnswerVocabulary
from trainers.data.base import Example, Split
from trainers.models.heads import IGNORED
from trainers.tasks.families import GridFamily, VLBertFamily, fit
from trainers.tasks.masked_regions import draw_regions
from trainers.tasks.papers import Details, passes_of
from trainers.tasks.pretraining import Pretraining, window
from trainers.tasks.rows import Row
from trainers.tasks.spoken_spans import sentinels_of
from trainers.visual import VisualError

ANSWERS = AnswerVocabulary(tuple(tiny.COLOURS))
CODES = 30
CODEBOOK = CodebookConfig("random:0", {"hidden_size": 4, "vocab_size": CODES})
CORPUS = ("this is a red square", "the thing is not blue", "what colour is it ?", "yes")
CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "vl_bert": ("vl_bert", ("mlm", "mvrc"), {}),
    "vl_bert relation": (
        "vl_bert",
        ("relationship", "mlm", "mvrc"),
        {"heads": ("relationship", "mlm", "mvrc")},
    ),
    "vl_bert e2e": ("vl_bert_e2e", ("mlm", "mvrc"), {}),
    "grid_vlp": ("grid_vlp", ("itm", "mlm", "qa"), {"sampled": 3}),
    "pixel_bert": ("pixel_bert", ("itm", "mlm"), {}),
    "vilt": ("vilt", ("mlm", "itm", "wpa"), {"max_patches": 3}),
    "vilt patches": ("vilt", ("mlm", "mpp"), {"heads": ("mlm", "mpp"), "masks_patches": True}),
    "meter": ("meter", ("mlm", "itm"), {}),
    "meter cached": ("meter_cached", ("mlm", "itm"), {}),
    "meter merged": ("meter_cached", ("mlm", "itm"), {"fusion": "merged"}),
    "meter decoder": ("meter_cached", ("mlm", "itm"), {"decoder_layers": 1}),
    "meter patches": ("meter_cached", ("mlm", "patches"), {"heads": ("mlm", "patches")}),
    "meter patches of pixels": ("meter", ("mlm", "patches"), {"heads": ("mlm", "patches")}),
    "meter codes": ("meter", ("mlm", "codes"), {"heads": ("mlm", "codes"), "codes": CODES}),
}


def examples() -> Split:
    """Captions, and for image questions every other one a question."""
    found = []
    for example in tiny.captions().examples:
        colour = tiny.colour_of(example.images[0])
        if int(example.id) % 2:
            example = replace(example, texts=("what colour is it ?",), truth={"scores": {colour: 1.0, "no": 0.3}})
        found.append(example)
    return Split("mixed", "train", found)


def task(case: str, training: bool = True, seed: int = 0) -> tuple[Any, Pretraining]:
    name, objectives, changes = CASES[case]
    config, family, visual = tiny.setting(name, training, **changes)
    codebook = Codebook(CODEBOOK) if "codes" in objectives else None
    details = Details(family.longest, answers=ANSWERS, side=8 if name == "meter" else None, codebook=codebook)
    passes = passes_of(config, objectives, details)
    corpus = CORPUS if name == "vl_bert" else None
    return config, Pretraining(examples(), family, visual, passes, corpus, seed, training)


@pytest.mark.parametrize("case", CASES)
def test_losses_fall_and_one_batch_is_learnt(case: str) -> None:
    config, learnt = task(case)
    model = tiny.built(config)
    losses = tiny.train(model, learnt, range(8), 20 if "e2e" in case else 30)
    least = 0.75 if any(each in case for each in ("e2e", "pixel_bert", "mpp", "vilt patches")) else 0.5
    assert losses[-1] < least * losses[0], losses
    model.eval()
    with torch.no_grad():
        predictions = learnt.predict(model, learnt.collate(range(8), 0))
    assert [each["id"] for each in predictions] == [str(number) for number in range(8)]
    scores = learnt.score(predictions)
    assert scores["mlm_accuracy"] >= 50


@pytest.mark.parametrize("case", CASES)
def test_chance_depends_on_the_example_alone(case: str) -> None:
    """The same rows, whatever else is in the batch, and in whatever order."""
    _, learnt = task(case)
    whole, part = learnt.collate([4, 9, 2, 7], 3), learnt.collate([7, 9], 3)
    for name, batch in part.items():
        for row, other in ((0, 3), (1, 1)):
            _assert_same_row(batch, row, whole[name], other)
    again = learnt.collate([4, 9, 2, 7], 4)
    assert any(not torch.equal(again[name].text.ids, whole[name].text.ids) for name in whole if "mlm" not in name)
    _, seeded = task(case, seed=1)
    assert any(
        each.text.ids.shape != whole[name].text.ids.shape or not torch.equal(each.text.ids, whole[name].text.ids)
        for name, each in seeded.collate([4, 9, 2, 7], 3).items()
    )


def _assert_same_row(batch: Any, row: int, other: Any, other_row: int) -> None:
    assert batch.text.lengths is not None
    length = batch.text.lengths[row]
    assert other.text.lengths[other_row] == length
    assert batch.text.ids[row, :length].tolist() == other.text.ids[other_row, :length].tolist()
    for name, labels in batch.targets.items():
        if name not in ("words", "hidden", "regions", "region_classes", "itm", "qa", "relationship"):
            continue
        mine, theirs = labels[row], other.targets[name][other_row]
        if name == "hidden" and mine.dim() == 0:
            continue  # of ViLT's packed patches, which have no rows
        width = min(mine.shape[0], theirs.shape[0]) if mine.dim() else None
        assert torch.equal(mine[:width], theirs[:width]) if width else mine == theirs
    if isinstance(batch.visual, Regions) and batch.visual.hidden is not None:
        count = batch.visual.lengths[row]
        assert torch.equal(batch.visual.hidden[row, :count], other.visual.hidden[other_row, :count])


def test_half_of_the_pairs_are_strangers() -> None:
    for case in ("vilt", "grid_vlp", "vl_bert relation"):
        _, learnt = task(case)
        labels = [
            batch.targets[name]
            for epoch in range(30)
            for batch in learnt.collate(range(24), epoch).values()
            for name in ("itm", "relationship")
            if name in batch.targets
        ]
        assert torch.cat(labels).float().mean() == pytest.approx(0.5, abs=0.06)


def test_questions_about_strangers_and_captions_have_no_answer() -> None:
    _, learnt = task("grid_vlp")
    for epoch in range(5):
        targets = learnt.collate(range(24), epoch)["pairs"].targets
        asked = torch.arange(24) % 2 == 1
        assert bool((targets["qa"][~asked] == IGNORED).all())
        assert bool((targets["qa"][targets["itm"] == 0] == IGNORED).all())
        matched = asked & (targets["itm"] == 1)
        assert targets["qa"][matched].tolist() == [int(n) % 6 for n in torch.arange(24)[matched]]


def test_regions_are_drawn_at_15_percent_and_9_of_10_hidden() -> None:
    both = [draw_regions(40, np.random.default_rng(number)) for number in range(500)]
    drawn, hidden = (np.stack([each[place] for each in both]) for place in (0, 1))
    assert drawn.mean() == pytest.approx(0.15, abs=0.01)
    assert hidden.sum() / drawn.sum() == pytest.approx(0.9, abs=0.02)
    assert not (hidden & ~drawn).any()


def test_region_labels_begin_with_the_background_as_official_ones_do() -> None:
    _, learnt = task("vl_bert")
    for epoch in range(20):
        classes = learnt.collate([0], epoch)["pairs"].targets["region_classes"]
        if bool(classes[0, 0].any()):
            assert int(classes[0, 0].argmax()) == 1  # red, the first class, behind the background
            return
    pytest.fail("the first region was never drawn")


def test_soft_labels_that_the_store_lacks_are_asked_for() -> None:
    _, learnt = task("vl_bert")
    learnt.visual.fields = learnt.visual.read_too = ()  # type: ignore[attr-defined]
    with pytest.raises(VisualError, match="needs regions with class_probs; extract them with it"):
        learnt.collate([0], 0)


def test_words_and_boxes_share_a_limit_in_vl_bert_s_pretraining() -> None:
    row = Row(tuple(range(10)), labels=tuple(range(10)))
    assert fit(row, 4, 20) == (row, 4)
    fitted, boxes = fit(row, 9, 12)
    assert (len(fitted), boxes) == (6, 6) and fitted.ids[-1] == 9 and fitted.labels == fitted.ids
    fitted, boxes = fit(row, 1, 4)
    assert (len(fitted), boxes) == (3, 1)
    config, _, visual = tiny.setting("vl_bert")
    family = VLBertFamily(config, tiny.tokenizer(), 64, True, total=8)
    passes = passes_of(config, ("mlm", "mvrc"), Details())
    batch = Pretraining(tiny.captions(), family, visual, passes, training=True).collate(range(6), 0)["pairs"]
    assert isinstance(batch.visual, Regions) and batch.visual.lengths and batch.text.lengths
    sums = [words + boxes for words, boxes in zip(batch.text.lengths, batch.visual.lengths, strict=True)]
    assert max(sums) == 8 and batch.targets["region_classes"].shape[:2] == batch.visual.boxes.shape[:2]


def test_text_alone_has_windows_of_one_length_without_special_tokens() -> None:
    tokenizer = tiny.tokenizer()
    for number in range(50):
        ids = window(CORPUS, tokenizer, 6, np.random.default_rng(number))
        assert len(ids) == 6 and not set(ids) & tokenizer.special
    assert len(window(("yes",), tokenizer, 6, np.random.default_rng(0))) == 1


def test_only_training_draws_cells() -> None:
    for training, wanted in ((True, 3), (False, 6)):
        _, learnt = task("grid_vlp", training)
        assert isinstance(learnt.family, GridFamily)
        assert learnt.collate([1], 0)["pairs"].layout.visual_width == wanted


def test_an_unknown_objective_is_refused_by_the_model_s_own() -> None:
    with pytest.raises(Exception, match="objective 'mvrc' is not among this model's: mlm, itm, wpa, mpp"):
        passes_of(tiny.VILT, ("mvrc",), Details())


def test_one_of_several_texts_is_drawn() -> None:
    config, family, visual = tiny.setting("vilt")
    split = Split("two", "train", [Example("0", ("picture-0",), ("yes", "no no no no"))])
    learnt = Pretraining(split, family, visual, passes_of(config, ("mlm",), Details()), training=True)
    lengths = {learnt.collate([0], epoch)["masked"].text.lengths for epoch in range(20)}
    assert lengths == {(3,), (6,)}


def test_spans_are_said_behind_their_sentinels() -> None:
    """What is shown and what is told together are the text again."""
    _, learnt = task("meter decoder")
    tokenizer = tiny.tokenizer()
    sentinels = set(sentinels_of(tokenizer))
    hidden = 0
    for epoch in range(20):
        batch = learnt.collate([0], epoch)["masked"]
        told, before = batch.targets["told"][0].tolist(), batch.targets["before"][0].tolist()
        assert before == [tokenizer.start, *told[:-1]] and told[-1] in sentinels
        spans: dict[int, list[int]] = {}
        for token in told:
            if token in sentinels:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        shown = [token for each in batch.text.ids[0].tolist() for token in spans.get(each, [each])]
        assert shown == [tokenizer.start, *tokenizer(learnt.split.examples[0].texts[0]), tokenizer.end]
        hidden += len(told) - len(spans)
    assert 0.05 < hidden / (20 * 5) < 0.3
