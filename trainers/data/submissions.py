"""Predictions in the form that each benchmark's server or script takes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Predictions = Sequence[Mapping[str, Any]]  # what `Task.predict` gives: with "id", and what each writer names


def write_vqa(predictions: Predictions, path: Path) -> None:
    """VQA: [{"question_id": 9000, "answer": "red"}]. Of predictions: "answer"."""
    _write(path, ({"question_id": int(each["id"]), "answer": each["answer"]} for each in predictions))


def write_gqa(predictions: Predictions, path: Path) -> None:
    """GQA: [{"questionId": "202218727", "prediction": "yes"}]. Of predictions: "answer"."""
    _write(path, ({"questionId": each["id"], "prediction": each["answer"]} for each in predictions))


def write_captions(predictions: Predictions, path: Path) -> None:
    """COCO captions: [{"image_id": 9, "caption": "..."}]. Of predictions: "caption"; ids not of COCO stay text."""
    _write(path, ({"image_id": _number(each["id"]), "caption": each["caption"]} for each in predictions))


def write_refcoco(predictions: Predictions, path: Path) -> None:
    """Expressions: [{"sent_id": 3, "box": [x1, y1, x2, y2]}]. Of predictions: "box", in pixels of the original."""
    rows = ({"sent_id": int(each["id"]), "box": [float(side) for side in each["box"]]} for each in predictions)
    _write(path, rows)


def write_nlvr2(predictions: Predictions, path: Path) -> None:
    """NLVR2: lines of identifier,True. Of predictions: "answer", a bool."""
    _write_table(path, ([each["id"], str(bool(each["answer"]))] for each in predictions))


def write_snli_ve(predictions: Predictions, path: Path) -> None:
    """SNLI-VE has no server: JSON lines of pairID and gold_label, as its own files. Of predictions: "label"."""
    lines = (json.dumps({"pairID": each["id"], "gold_label": each["label"]}) + "\n" for each in predictions)
    path.write_text("".join(lines), encoding="utf-8")


def write_vcr(predictions: Predictions, path: Path) -> None:
    """VCR: a table of 20 probabilities a question (rowanz/r2c models/README.md), four of the answers, then four of the
    rationales given each answer. Of predictions: "answer" (4) and "rationales" (4 of 4)."""
    groups = ["answer", *(f"rationale_conditioned_on_a{answer}" for answer in range(4))]
    head = ["annot_id", *(f"{group}_{at}" for group in groups for at in range(4))]
    rows = ([each["id"], *each["answer"], *(p for four in each["rationales"] for p in four)] for each in predictions)
    _write_table(path, [head, *rows])


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text(json.dumps(list(rows)), encoding="utf-8")


def _write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _number(id: str) -> int | str:
    return int(id) if id.isdigit() else id
