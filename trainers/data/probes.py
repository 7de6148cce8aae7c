"""Single-modality data for probes of encoders: folders of images, a folder a class, and GLUE's tables.

CLASSES/*.jpg     one folder a class, below the split's; its name is the class (CIFAR as torchvision's ImageFolder)
train.tsv dev.tsv GLUE: a table with a head line; columns by task in `GLUE`
"""

from __future__ import annotations

import csv
from pathlib import Path

from storage.errors import TriptychError
from trainers.data.base import Example, Split

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
CSV_FIELD = 1 << 20

# name -> columns of the texts, column of the label, labels in the order of their classes
GLUE: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "sst2": (("sentence",), "label", ("0", "1")),
    "qqp": (("question1", "question2"), "is_duplicate", ("0", "1")),
    "mrpc": (("#1 String", "#2 String"), "Quality", ("0", "1")),
    "qnli": (("question", "sentence"), "label", ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), "label", ("entailment", "not_entailment")),
    "mnli": (("sentence1", "sentence2"), "gold_label", ("contradiction", "neutral", "entailment")),
}
COLA = ("source", "label", "mark", "sentence")  # its table has no head


class ProbeDataError(TriptychError):
    """A folder or table that is not there, or is laid out otherwise."""


def read_image_folder(root: Path, split: str) -> Split:
    """Images by class: `root/split/CLASS/name.jpg`; keys are split/CLASS/name, `truth["label"]` is the class's number.

    Raises:
        ProbeDataError: there are no such folders, or no images in them.
    """
    folder = root / split
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    examples = [
        Example(key := f"{split}/{name}/{file.stem}", (key,), (), {"label": label, "class": name})
        for label, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in IMAGES
    ]
    if not examples:
        raise ProbeDataError(f"{folder} has no images; wanted one folder a class, such as {folder / 'cat' / '1.png'}.")
    return Split("image-folder", split, examples)


def read_glue(root: Path, task: str, split: str) -> Split:
    """One GLUE task's `split.tsv`; `truth["label"]` is the class.

    Raises:
        ProbeDataError: the task is not known, the file is not there, or has other columns or labels.
    """
    if task not in {*GLUE, "cola"}:
        raise ProbeDataError(f"GLUE task {task!r} is not known; choose out of {', '.join(sorted({*GLUE, 'cola'}))}.")
    columns, label, labels = GLUE.get(task, (("sentence",), "label", ("0", "1")))
    path, examples = root / f"{split}.tsv", []
    csv.field_size_limit(CSV_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(
                file, COLA if task == "cola" else None, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
            )
            for number, row in enumerate(rows):
                texts = tuple(row[column] for column in columns)
                examples.append(Example(str(number), (), texts, {"label": labels.index(row[label])}))
    except OSError as error:
        raise ProbeDataError(f"{path} cannot be read ({error.strerror}); it is GLUE's table of {task}.") from error
    except (KeyError, ValueError) as error:
        wanted = ", ".join((*columns, label))
        raise ProbeDataError(f"{path}, row {len(examples) + 1}: {error}; wanted the columns {wanted}.") from error
    return Split(f"glue-{task}", split, examples)
