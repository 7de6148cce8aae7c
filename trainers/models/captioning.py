"""Captions by masked words: METER's appendix C.

The next word is what the model reads at a [MASK] behind the words so far. Nothing is causal: words and image see all
words so far, as they do in pre-training, so every step reads the text anew. Shapes in this file: V images, B texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.batch import Text, VisualInput
from trainers.models.beam_search import Search, beam_search
from trainers.models.heads import IGNORED
from trainers.models.meter import Meter


def caption(model: Meter, visual: VisualInput, search: Search, mask_id: int) -> tuple[Tensor, Tensor]:
    """The likeliest caption found for each of V images, and its log probability, as of `beam_search`.

    The images pass their encoder once. Call it in evaluation mode.

    Raises:
        ValueError: the model has a decoder, whose words are no masked ones.
    """
    if model.decoder is not None:
        raise ValueError("captions by masked words need a METER without a decoder; build it with decoder_layers 0")
    with torch.no_grad():
        seen = model.see(visual)
    count = len(seen.tokens)

    def step(tokens: Tensor) -> Tensor:
        image_of = torch.arange(count, device=tokens.device).repeat_interleave(len(tokens) // count)
        ids = torch.cat([tokens, tokens.new_full((len(tokens), 1), mask_id)], dim=1)
        states = model.fuse(Text(ids), seen, image_of)
        return model.heads["mlm"](states.text[:, -1]).float().log_softmax(-1)

    return beam_search(step, count, search, seen.tokens.device)


def cut_captions(ids: Tensor, lengths: Tensor, cuts: Tensor, marks: tuple[int, int]) -> tuple[Text, Tensor]:
    """Captions cut before one word each, with a [MASK] in its place, and the labels: one step of `caption` to learn.

    With cuts drawn evenly from 1 to the length less 1 the expected loss is the likelihood of the whole caption, per
    token.

    Args:
        ids: (B, T) from the start to the end token, padded.
        lengths: (B,) tokens of each, both counted.
        cuts: (B,) the place of the word to tell, from 1 to the length less 1, which is the end token's.
        marks: the [MASK] and the padding token.

    Raises:
        ValueError: a cut lies outside its caption.
    """
    if bool((cuts < 1).any()) or bool((cuts >= lengths).any()):
        raise ValueError("a cut lies outside its caption; draw it from 1 to the length less 1")
    mask_id, padding = marks
    place, cut = torch.arange(ids.shape[1]), cuts[:, None]
    shown = ids.where(place < cut, padding).where(place != cut, mask_id)
    width = int(cuts.max()) + 1
    labels = ids.where(place == cut, IGNORED)
    return Text(shown[:, :width], (place <= cut)[:, :width]), labels[:, :width]
