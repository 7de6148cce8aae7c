"""VCR: which of four answers to a question is right, and which of four rationales explains the right answer.

    vcr-answer     [CLS] question [SEP] answer [SEP], four times
    vcr-rationale  [CLS] question and right answer [SEP] rationale [SEP], four times

Questions speak of tagged objects: a tag is read as the object's class, a person's as a neutral name, and its tokens
carry the object's own visual part. The four choices share the image's objects. Beside the choice, every object's class
is told from its final state, the whole image's being class 0.
Source: jackroos/VL-BERT `vcr/data/datasets/vcr.py`, `vcr/modules/resnet_vlbert_for_vcr.py`. Shapes in this file: B
questions, N objects, 4 choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from storage.errors import TriptychError
from trainers.batch import Regions
from trainers.data.base import Example, Split
from trainers.data.submissions import write_vcr
from trainers.data.vcr import CHOICES, Token
from trainers.models.heads import IGNORED, binary_loss, class_loss
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, numbered, one, percent
from trainers.tasks.families import Family
from trainers.tasks.rows import Row
from trainers.text import Tokenizer
from trainers.visual import Visual, VisualError

PERSON = "person"
_NAMES = "casey riley jessie jackie avery jaime peyton kerry jody kendall frankie pat quinn"
NAMES = tuple(_NAMES.split())  # in turn, for the persons of an image
_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
CLASS = {name.strip(): number for number, name in enumerate(_COCO.split(","), 1)}
_OLD = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant"}
_OLD |= {"diningtable": "dining table", "tvmonitor": "tv"}
PAIR = 64  # tokens of both texts together, special ones not counted


class Commonsense(SplitTask):
    """VCR for VL-BERT, by the heads "vcr" on the pooled state and "vcr_objects" on the states of all regions.

    Args:
        kind: which choice is made.
        split, family, visual, seed, training: as of `SplitTask`; regions are the annotated objects, in their order.
    """

    def __init__(
        self,
        split: Split,
        family: Family,
        visual: Visual,
        kind: Literal["answer", "rationale"] = "answer",
        seed: int = 0,
        training: bool = False,
    ) -> None:
        super().__init__(split, family, visual, seed, training)
        self.kind: Literal["answer", "rationale"] = kind

    @property
    def groups(self) -> int:
        """Fours of choices a question: rationales are predicted given each answer, and learnt given the right one."""
        return CHOICES if self.kind == "rationale" and not self.training else 1

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance = self.examples(numbers), self.chances(numbers, epoch)
        rows = [row for example in examples for row in self._rows(example)]
        looked = self.look([example.images[0] for example in examples], chance)
        texts = self.groups * CHOICES
        objects = _object_classes(examples, looked.visual).repeat_interleave(texts, 0)
        labels = [example.truth.get(self.kind, IGNORED) for example in examples]
        given = [example.truth.get("answer", 0) if self.groups > 1 else 0 for example in examples]
        image_of = [row for row in range(len(examples)) for _ in range(texts)]
        targets = numbered(numbers, labels=labels, given=given, objects=objects)
        return {ONE: self.family.batch(rows, looked.visual, targets, image_of)}

    def counts(self, batches: Batches) -> dict[str, float]:
        targets = one(batches).targets
        return {
            "vcr": CHOICES * float((targets["labels"] != IGNORED).sum()),
            "vcr_objects": float((targets["objects"] != IGNORED).sum()),
        }

    def losses(self, model: Any, batches: Batches) -> dict[str, Tensor]:
        batch = one(batches)
        states, labels = self.family.states(model, batch), batch.targets["labels"][:, None]
        logits = self._logits(model, states)[torch.arange(len(labels), device=labels.device), batch.targets["given"]]
        right = labels == torch.arange(CHOICES, device=labels.device)
        return {
            "vcr": binary_loss(logits, right, (labels != IGNORED).expand_as(right)),
            "vcr_objects": class_loss(model.heads["vcr_objects"](states.visual), batch.targets["objects"]),
        }

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """Of each question the probabilities of its four answers, or of its four rationales given each answer."""
        logits = self._logits(model, self.family.states(model, one(batches)))
        found = logits.float().softmax(-1).tolist()
        name = "answer" if self.kind == "answer" else "rationales"
        ids = self.ids(one(batches))
        return [{"id": id, name: fours if self.groups > 1 else fours[0]} for id, fours in zip(ids, found, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Of answers, or of rationales given the right answer; `vcr_accuracy` of `together` tells both."""
        found, labels = [], []
        for example, each in zip(self.split.examples, predictions, strict=True):
            fours = each["answer"] if self.kind == "answer" else each["rationales"]
            fours = fours[example.truth["answer"]] if self.groups > 1 else fours
            found.append(max(range(CHOICES), key=fours.__getitem__))
            labels.append(example.truth[self.kind])
        return {"accuracy": percent(sum(map(eq, found, labels)), len(labels))}

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        """The official table, which wants answers and rationales `together`; of one of them alone, JSON."""
        whole = all({"answer", "rationales"} <= each.keys() for each in predictions)
        write_vcr(predictions, path) if whole else super().write(predictions, path)

    def _logits(self, model: Any, states: Any) -> Tensor:
        """(B, groups, 4)."""
        found: Tensor = model.heads["vcr"](self.family.pooled(model, states)).view(-1, self.groups, CHOICES)
        return found

    def _rows(self, example: Example) -> list[Row]:
        """Groups of four texts."""
        question, *choices = example.truth["tokens"]
        said, tokenizer = names_of(example.truth["objects"]), self.family.tokenizer
        answers, rationales = choices[:CHOICES], choices[CHOICES:]
        if self.kind == "answer":
            return [tagged_pair(question, answer, said, tokenizer) for answer in answers]
        given = answers if self.groups > 1 else [answers[example.truth["answer"]]]
        firsts = [(*question, *answer) for answer in given]
        return [tagged_pair(first, rationale, said, tokenizer) for first in firsts for rationale in rationales]


def together(answers: Sequence[Prediction], rationales: Sequence[Prediction]) -> list[Prediction]:
    """The predictions of both tasks as one: what `vcr_accuracy` scores and `write_vcr` writes.

    Raises:
        TriptychError: they are not of the same questions.
    """
    found = {each["id"]: each["rationales"] for each in rationales}
    ids = {each["id"] for each in answers}
    if ids != found.keys():
        raise TriptychError(
            f"the answers are of {len(ids)} questions, the rationales of {len(found)}, and {len(ids & found.keys())} "
            "are the same; evaluate both runs on one split."
        )
    return [{**each, "rationales": found[each["id"]]} for each in answers]


def class_of(name: str) -> int:
    """A class of COCO, from 1, by its name or the older one that VCR may use.

    Raises:
        VisualError: it is neither.
    """
    name = _OLD.get(name, name)
    if name not in CLASS:
        raise VisualError(f"object {name!r} is no class of COCO; VCR's objects are.")
    return CLASS[name]


def names_of(objects: Sequence[str]) -> list[str]:
    """How each object is read: its class, of persons neutral names in turn."""
    persons = 0
    found = []
    for name in objects:
        found.append(NAMES[persons % len(NAMES)] if name == PERSON else name)
        persons += name == PERSON
    return found


def tagged_pair(first: Sequence[Token], second: Sequence[Token], said: Sequence[str], tokenizer: Tokenizer) -> Row:
    """[CLS] first [SEP] second [SEP], with tags; the longer one loses its last tokens where both are too long."""
    pairs = [_tagged(tokens, said, tokenizer) for tokens in (first, second)]
    while sum(map(len, pairs)) > PAIR:
        max(pairs, key=len).pop()
    start, end = (tokenizer.start, 0), (tokenizer.end, 0)
    tokens = [start, *pairs[0], end, *pairs[1], end]
    ids, tags = zip(*tokens, strict=True)
    return Row(ids, 2 + len(pairs[0]), tags)


def _tagged(tokens: Sequence[Token], said: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Ids with the region that each speaks of, from 1; 0 for the whole image."""
    found: list[tuple[int, int]] = []
    for token in tokens:
        if isinstance(token, str):
            found += [(piece, 0) for piece in tokenizer(token)]
            continue
        for place, number in enumerate(token):
            found += [(piece, 0) for piece in tokenizer("and")] if place else []
            found += [(piece, 1 + number) for piece in tokenizer(said[number])]
    return found


def _object_classes(examples: Sequence[Example], visual: object) -> Tensor:
    """(B, 1 + N) int64: 0 for the whole image, then each object's class; IGNORED in the padding."""
    if not isinstance(visual, Regions):
        raise VisualError(f"VCR speaks of objects, {type(visual).__name__} have none; use a store of regions.")
    assert visual.lengths is not None
    found = torch.full((len(examples), 1 + visual.boxes.shape[1]), IGNORED)
    for row, (example, count) in enumerate(zip(examples, visual.lengths, strict=True)):
        objects = example.truth["objects"]
        if len(objects) != count:
            raise VisualError(
                f"image {example.images[0]!r} has {count} regions for the {len(objects)} objects of {example.id}; "
                "extract those of its metadata (--boxes), all of them and in their order."
            )
        found[row, : 1 + count] = torch.tensor([0, *(class_of(name) for name in objects)])
    return found
