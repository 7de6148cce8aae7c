"""Which objectives each paper pre-trains with, in which runs of the model, and how it hides words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import TriptychError
from trainers.codebook import Codebook
from trainers.data.answers import AnswerVocabulary
from trainers.models.grid_vlp import GridVLPConfig
from trainers.models.meter import MeterConfig
from trainers.models.vilt import ViLTConfig
from trainers.models.vl_bert import VLBertConfig
from trainers.tasks.image_questions import ImageQuestions
from trainers.tasks.masked_patches import MaskedPatches
from trainers.tasks.masked_regions import MaskedRegions
from trainers.tasks.masked_words import MaskedWords, Masking
from trainers.tasks.matching import Alignment, Matching
from trainers.tasks.objective import Objective
from trainers.tasks.pretraining import Passes
from trainers.tasks.spoken_spans import SpokenSpans


@dataclass(frozen=True)
class Details:
    """What some objectives need beside their name.

    longest   tokens of a padded text
    soft      whether masked RoI classification has distributions as labels
    answers   of image questions
    side      of a patch in pixels, where masked patches come from pixels
    codebook  of masked patches as discrete codes
    """

    longest: int = 40
    soft: bool = True
    answers: AnswerVocabulary | None = None
    side: int | None = None
    codebook: Codebook | None = None


def _vl_bert(config: VLBertConfig, details: Details) -> dict[str, Sequence[tuple[str, Objective]]]:
    relation = Matching("text", "relationship")
    pairs = [("relationship", relation), ("mlm", MaskedWords(Masking("word"))), ("mvrc", MaskedRegions(details.soft))]
    return {"pairs": pairs}


def _grid_vlp(config: GridVLPConfig, details: Details) -> dict[str, Sequence[tuple[str, Objective]]]:
    questions = [] if details.answers is None else [("qa", ImageQuestions(details.answers))]
    return {"pairs": [("itm", Matching("text")), ("mlm", MaskedWords(Masking("token"))), *questions]}


def _vilt(config: ViLTConfig, details: Details) -> dict[str, Sequence[tuple[str, Objective]]]:
    return {
        "masked": [("mlm", MaskedWords(Masking("slots", slots=details.longest)))],
        "matched": [("itm", Matching()), ("wpa", Alignment())],
        "patches": [("mpp", MaskedPatches("mpp", config.patch))],
    }


def _meter(config: MeterConfig, details: Details) -> dict[str, Sequence[tuple[str, Objective]]]:
    words = MaskedWords(Masking("slots", slots=details.longest))
    return {
        "masked": [("mlm", SpokenSpans() if config.decoder_layers else words)],
        "matched": [("itm", Matching())],
        "patches": [("patches", MaskedPatches("patches", details.side))],
        "codes": [("codes", MaskedPatches("codes", details.side, details.codebook))],
    }


_PAPERS: dict[type, Callable[[Any, Details], dict[str, Sequence[tuple[str, Objective]]]]] = {
    VLBertConfig: _vl_bert,
    GridVLPConfig: _grid_vlp,
    ViLTConfig: _vilt,
    MeterConfig: _meter,
}


def passes_of(config: Any, objectives: Sequence[str], details: Details) -> Passes:
    """The runs of a model's step that have one of these objectives, and those they have.

    Raises:
        TriptychError: the model's paper has no such objective.
    """
    all_of = _PAPERS[type(config)](config, details)
    known = [name for each in all_of.values() for name, _ in each]
    unknown = [name for name in objectives if name not in known]
    if unknown:
        raise TriptychError(f"objective {unknown[0]!r} is not among this model's: {', '.join(known)}.")
    chosen = {run: [objective for name, objective in each if name in objectives] for run, each in all_of.items()}
    return {run: each for run, each in chosen.items() if each}
