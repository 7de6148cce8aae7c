"""Scores of captions: BLEU, ROUGE-L and CIDEr by COCO's own code, pycocoevalcap, of which METEOR and SPICE need Java.

COCO scores words as the Stanford tokeniser splits them, which is Java too; `trainers.caption_words` splits as it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from storage.errors import TriptychError

PACKAGE = "pycocoevalcap"


def require_scorer() -> None:
    """See that captions can be scored; before they are made, which takes long.

    Raises:
        TriptychError: the package is not there; it is an extra for the 100 MB of Java that it brings along.
    """
    if find_spec(PACKAGE) is None:
        raise TriptychError(f"captions are scored by {PACKAGE}, which is not installed; install triptych[captions].")


def tokenised_scores(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> dict[str, float]:
    """Scores as pycocoevalcap gives them, of captions that are split already: words with single spaces between.

    Args:
        references, candidates: by image, the same ones. CIDEr weighs words by how many of these images have them.

    Raises:
        TriptychError: as of `require_scorer`.
        ValueError: there are no images, or other ones.
    """
    require_scorer()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if not references or references.keys() != candidates.keys():
        raise ValueError(f"{len(candidates)} captions for {len(references)} images; wanted one of each image")
    true = {image: list(texts) for image, texts in references.items()}
    found = {image: [candidates[image]] for image in true}
    bleu, _ = Bleu(4).compute_score(true, found, verbose=0)
    rouge, _ = Rouge().compute_score(true, found)
    cider, _ = Cider().compute_score(true, found)
    scores = {f"BLEU-{at}": float(score) for at, score in enumerate(bleu, 1)}
    return {**scores, "ROUGE-L": float(rouge), "CIDEr": float(cider)}
