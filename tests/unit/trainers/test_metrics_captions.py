"""Scores of captions: as published for real captions, from their words and from raw text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from storage.errors import TriptychError
from trainers.data.base import Example
from trainers.metrics import caption_scores
from trainers.metrics_captions import tokenised_scores
from trainers.tasks.captions import Captioning

REFERENCES = {"a": ["a dog runs", "the dog is running fast"], "b": ["two cats sleep", "cats are sleeping"]}


def test_the_same_words_score_best() -> None:
    scores = tokenised_scores(REFERENCES, {"a": "the dog is running fast", "b": "two cats sleep"})
    assert scores["BLEU-1"] == pytest.approx(1) and scores["ROUGE-L"] == pytest.approx(1)
    other = tokenised_scores(REFERENCES, {"a": "two cats sleep", "b": "a dog runs"})
    assert other["BLEU-1"] < 0.01 and other["ROUGE-L"] == other["CIDEr"] == 0


def test_captions_of_other_images() -> None:
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        tokenised_scores(REFERENCES, {"a": "a dog"})


def test_predictions_are_split_and_paired_with_all_captions() -> None:
    asked = [Example(id, (id,), tuple(f"{text.capitalize()}." for text in texts)) for id, texts in REFERENCES.items()]
    said = [{"id": "b", "caption": "Two cats sleep"}, {"id": "a", "caption": "A dog runs!"}]
    wanted = tokenised_scores(REFERENCES, {"a": "a dog runs", "b": "two cats sleep"})
    assert caption_scores(said, asked) == {name: pytest.approx(100 * score) for name, score in wanted.items()}


def test_published_scores(shared: Path) -> None:
    folder = shared / "data/annotations/caption_metrics/flickr8k_vit8k"
    official = json.loads((folder / "expected.json").read_text())
    split = json.loads((folder / "tokenized.json").read_text())
    found = tokenised_scores(split["references"], split["predictions"])
    for name, theirs in {**{f"BLEU-{at}": f"Bleu_{at}" for at in range(1, 5)}, "ROUGE-L": "ROUGE_L"}.items():
        assert found[name] == pytest.approx(official["recomputed_with_pycocoevalcap_1.2"][theirs], abs=1e-12)
        assert round(found[name], 3) == official["published"][theirs]
    assert found["CIDEr"] == pytest.approx(official["recomputed_with_pycocoevalcap_1.2"]["CIDEr"], abs=1e-12)


def test_published_scores_from_raw_captions(shared: Path) -> None:
    folder = shared / "data/annotations/caption_metrics/flickr8k_vit8k"
    official = json.loads((folder / "expected.json").read_text())["recomputed_with_pycocoevalcap_1.2"]
    said = json.loads((folder / "predictions.json").read_text())
    true = json.loads((folder / "references.json").read_text())
    asked = [Example(id, (id,), tuple(texts)) for id, texts in true.items()]
    found = caption_scores([{"id": id, "caption": caption} for id, caption in said.items()], asked)
    assert found["CIDEr"] == pytest.approx(100 * official["CIDEr"]) and found["BLEU-4"] == pytest.approx(
        100 * official["Bleu_4"]
    )


def test_published_example_of_nlg_eval(shared: Path) -> None:
    case = json.loads((shared / "data/annotations/caption_metrics/nlg_eval_example.json").read_text())
    references = {str(at): texts for at, texts in enumerate(case["references"])}
    found = tokenised_scores(references, {str(at): text for at, text in enumerate(case["predictions"])})
    for name, theirs in (("BLEU-4", "Bleu_4"), ("ROUGE-L", "ROUGE_L"), ("CIDEr", "CIDEr")):
        assert round(found[name], 6) == case["published"][theirs]


@pytest.mark.parametrize("which", ["good", "bad"])
def test_published_example_of_clipscore(shared: Path, which: str) -> None:
    case = json.loads((shared / "data/annotations/caption_metrics/clipscore_example.json").read_text())
    asked = [Example(id, (id,), tuple(texts)) for id, texts in case["references"].items()]
    said = [{"id": id, "caption": caption} for id, caption in case[which]["predictions"].items()]
    found = caption_scores(said, asked)
    for name, theirs in (("BLEU-1", "Bleu_1"), ("BLEU-3", "Bleu_3"), ("ROUGE-L", "ROUGE_L"), ("CIDEr", "CIDEr")):
        assert round(found[name] / 100, 4) == case[which]["published"][theirs]


def test_without_the_package_captions_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    for make in (lambda: tokenised_scores({"a": ["a dog"]}, {"a": "a dog"}), lambda: Captioning(None, None, None)):
        with pytest.raises(TriptychError, match=r"which is not installed; install triptych\[captions\]\."):
            make()
