"""Questions in the official files of VQA v2 and GQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.files import write_json
from trainers.scenes.asking import Question, guessed
from trainers.scenes.official import PARTS, SPLITS, Asked, Scenes, Written, image_id
from trainers.scenes.scene import Scene, chance

PEOPLE, WRONG = 10, 0.05  # who answer each question, and how often one of them is wrong
MOST_WRONG = 3  # of them, so that the right answer is that of most


def flat(asked: Sequence[Sequence[Question]]) -> list[Question]:
    return [each for of_scene in asked for each in of_scene]


def _of_questions(asked: Asked, splits: Mapping[str, str]) -> Written:
    counts = {name: len(flat(asked[split])) for name, split in splits.items()}
    return Written(counts, guessed(flat(asked["train"]), flat(asked["val"])))


def write_vqa(scenes: Scenes, asked: Asked, folder: Path) -> Written:
    for split in SPLITS:
        rows, answers = [], []
        for scene, of_scene in zip(scenes[split], asked[split], strict=True):
            for at, each in enumerate(of_scene):
                ids = {"image_id": image_id(scene), "question_id": image_id(scene) * 1000 + at}
                rows.append({**ids, "question": each.text})
                answers.append({**ids, **_ten_answers(each, chance(scene.seed, scene.number, 100 + at))})
        head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": PARTS[split]}
        for part in (PARTS[split], "test-dev2015") if split == "test" else (PARTS[split],):
            path = folder / f"v2_OpenEnded_mscoco_{part}_questions.json"
            write_json(path, {**head, "task_type": "Open-Ended", "questions": rows})
        if split != "test":
            write_json(folder / f"v2_mscoco_{PARTS[split]}_annotations.json", {**head, "annotations": answers})
    return _of_questions(asked, {**{split: split for split in SPLITS}, "test-dev": "test"})


def _ten_answers(question: Question, rng: np.random.Generator) -> dict[str, Any]:
    """Ten people's answers, some of which may be wrong."""
    others = [each for each in question.answers if each != question.answer]
    wrong = [str(rng.choice(others)) for _ in range(min(MOST_WRONG, rng.binomial(PEOPLE, WRONG)))]
    given = [str(each) for each in rng.permutation([question.answer] * (PEOPLE - len(wrong)) + wrong)]
    kinds = {"yes": "yes/no", "no": "yes/no", "0": "number", "1": "number", "2": "number", "3": "number"}
    rows = [{"answer": each, "answer_confidence": "yes", "answer_id": at} for at, each in enumerate(given, 1)]
    return {
        "question_type": " ".join(question.text.lower().split()[:2]),
        "answer_type": kinds.get(question.answer, "other"),
        "multiple_choice_answer": question.answer,
        "answers": rows,
    }


def write_gqa(scenes: Scenes, asked: Asked, folder: Path) -> Written:
    splits = {"train": "train", "val": "val", "testdev": "test"}
    for name, split in splits.items():
        rows = {
            f"{image_id(scene):08d}{at}": _gqa_question(scene, each)
            for scene, of_scene in zip(scenes[split], asked[split], strict=True)
            for at, each in enumerate(of_scene)
        }
        write_json(folder / f"{name}_balanced_questions.json", rows)
    return _of_questions(asked, splits)


def _gqa_question(scene: Scene, question: Question) -> dict[str, Any]:
    verify = question.answer in ("yes", "no")
    structural = "verify" if verify else "choose" if question.family in ("size", "pattern") else "query"
    return {
        "question": question.text,
        "imageId": str(image_id(scene)),
        "answer": question.answer,
        "fullAnswer": f"{question.answer[0].upper()}{question.answer[1:]}.",
        "isBalanced": True,
        "types": {"detailed": question.family, "semantic": "rel" if len(question.about) > 1 else "attr"}
        | {"structural": structural},
        "groups": {"global": question.family, "local": None},
        "entailed": [],
        "equivalent": [],
        "semantic": [],
        "semanticStr": "",
        "annotations": {},
    }
