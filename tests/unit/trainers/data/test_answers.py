"""Vocabularies of answers: published ones, built ones, and what is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.official_files import write_gqa, write_vqa
from trainers.data import AnswerVocabulary, DataError, load
from trainers.data.answers import gqa_vocabulary, soft_scores, vqa_vocabulary


def test_built_in_the_order_of_first_questions() -> None:
    answers = ["two"] * 3 + ["a dog", "cats, dogs", "The dog", "2", "dog"] + ["1,000"] * 2 + ["rare"]
    assert vqa_vocabulary(answers, 2).answers == ("2", "dog", "1000")
    assert vqa_vocabulary(answers, 4).answers == ("2",)
    assert vqa_vocabulary(["yes"] * 9 + ["no"] * 8).answers == ("yes",)
    with pytest.raises(DataError, match="it is empty"):
        vqa_vocabulary(answers)


def test_built_from_files(tmp_path: Path) -> None:
    examples = load("vqav2", "train+val", write_vqa(tmp_path, 8).annotations).examples
    vocabulary = vqa_vocabulary((example.truth["multiple_choice_answer"] for example in examples), 4)
    assert vocabulary.answers == ("red", "circle", "green", "blue", "yellow", "square")
    assert vocabulary.targets(examples[0].truth["scores"]) == {0: 1.0}
    asked = load("gqa", "train+val", write_gqa(tmp_path / "gqa", 4).annotations).examples
    assert gqa_vocabulary(example.truth["answer"] for example in asked).answers[:3] == ("red", "yes", "green")


def test_soft_scores_count_what_was_written() -> None:
    answers = ["red"] * 4 + ["blue"] * 3 + ["The dog"] * 2 + ["dog"]
    assert soft_scores(answers) == {"red": 1.0, "blue": 0.9, "The dog": 0.6, "dog": 0.3}
    assert AnswerVocabulary(("dog", "red")).targets(soft_scores(answers)) == {0: 0.3, 1: 1.0}


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    vocabulary = AnswerVocabulary(("", "café", "2"))
    vocabulary.save(tmp_path / "answers.json")
    assert AnswerVocabulary.load(tmp_path / "answers.json") == vocabulary


@pytest.mark.parametrize(
    "content",
    [
        ["b", "a"],
        [{"ans": "b", "dsets": ["vqa"]}, {"ans": "a", "dsets": []}, {"ans": "c"}],
        {"a": 1, "b": 0},
        {"1": "a", "0": "b"},
        [{"a": 1, "b": 0}, {"1": "a", "0": "b"}],
    ],
)
def test_published_forms(tmp_path: Path, content: object) -> None:
    path = tmp_path / "published.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert AnswerVocabulary.load(path).answers[:2] == ("b", "a")


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "[1]", "{", '["a", "a"]', "3", '{"a": "x"}'])
def test_other_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "published.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError):
        AnswerVocabulary.load(path)


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("<unk>\nyes\n", encoding="utf-8")
    assert AnswerVocabulary.load(tmp_path / "answers.txt").index == {"<unk>": 0, "yes": 1}


def test_the_official_lists_hold_the_same_answers(shared: Path) -> None:
    folder = shared / "data/annotations/vocab"
    names = ("vqa_trainval_label2ans", "vqa_trainval_ans2label", "vqa_ans2label_uniter", "vqa_answer_dict_mcan")
    lists = [AnswerVocabulary.load(folder / f"{name}.json") for name in names]
    assert [len(each) for each in lists] == [3129] * 4 and len({frozenset(each.answers) for each in lists}) == 1
    assert lists[0] == lists[1] != lists[2]
    assert len(AnswerVocabulary.load(folder / "gqa_trainval_label2ans.json")) == 1842
