"""Captions: by masked words, METER's appendix C, or by the decoder.

By masked words the next one is what the model reads at a [MASK] behind the words so far. Nothing is causal: words and
image see all words so far, as they do in pre-training, so every step reads the text anew. A decoder tells the next word
itself, and text and image are read once. Shapes in this file: V images, B texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
        raise ValueError("captions by masked words need a METER without a decoder; take caption_by_decoder")
    with torch.no_grad():
        seen = model.see(visual)
    count = len(seen.tokens)

    def step(tokens: Tensor) -> Tensor:
        image_of = torch.arange(count, device=tokens.device).repeat_interleave(len(tokens) // count)
        ids = torch.cat([tokens, tokens.new_full((len(tokens), 1), mask_id)], dim=1)
        states = model.fuse(Text(ids), seen, image_of)
        return model.heads["mlm"](states.text[:, -1]).float().log_softmax(-1)

    return beam_search(step, count, search, seen.tokens.device)


def caption_by_decoder(
    model: Meter, visual: VisualInput, search: Search, prompt: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """As `caption`, by a METER with a decoder, which starts with `search.start`.

    Args:
        prompt: what the text encoder reads beside every image. After pre-training on hidden runs that is a text of
            which nothing is shown: start token, first sentinel, end token; the decoder then says that sentinel, the
            words, and the second one, which is `search.end`.

    Raises:
        ValueError: the model has no decoder, or one of fewer positions than words are asked for.
    """
    if model.decoder is None:
        raise ValueError("this METER has no decoder; build it with decoder_layers, or take caption")
    places = model.decoder.position.num_embeddings
    if search.longest > places:
        raise ValueError(
            f"captions of {search.longest} words are wanted, the decoder has {places} places; ask for less"
        )
    with torch.no_grad():
        seen = model.see(visual)
        count, device = len(seen.tokens), seen.tokens.device
        states = model.fuse(Text(torch.tensor([list(prompt)], device=device).repeat(count, 1)), seen)

    def step(tokens: Tensor) -> Tensor:
        beams = len(tokens) // count
        text, image = (each.repeat_interleave(beams, 0) for each in (states.text, states.image))
        mask = None if states.image_mask is None else states.image_mask.repeat_interleave(beams, 0)
        said = model.words(tokens, replace(states, text=text, image=image, image_mask=mask))
        return model.heads["mlm"](said[:, -1]).float().log_softmax(-1)

    return beam_search(step, count, search, device)


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
