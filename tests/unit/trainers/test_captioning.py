"""Beam search against all sequences there are, and captions by masked words."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.unit.trainers.meters import CACHED, MASK, PADDING, START, cells, meter
from trainers.batch import Batch, Cells, Text
from trainers.models.beam_search import Search, beam_search
from trainers.models.captioning import caption, caption_by_decoder, cut_captions
from trainers.models.heads import IGNORED
from trainers.models.meter import Meter

WORDS, END, LONGEST = 4, 1, 3


def table() -> Tensor:
    """Log probabilities of the next word by the two before it, of two languages."""
    torch.manual_seed(0)
    return torch.randn(2, WORDS + 1, WORDS + 1, WORDS).mul(2).log_softmax(-1)


def step(tokens: Tensor) -> Tensor:
    language = torch.arange(2).repeat_interleave(len(tokens) // 2)
    before = tokens[:, -2] if tokens.shape[1] > 1 else torch.full_like(tokens[:, 0], WORDS)
    return table()[language, before, tokens[:, -1]]


def all_scores(language: int) -> dict[tuple[int, ...], float]:
    """Every sequence that ends, or is as long as any may be, and its score."""
    scores = {}
    for words in product(range(WORDS), repeat=LONGEST):
        length = words.index(END) + 1 if END in words else LONGEST
        before, last, total = WORDS, 0, 0.0
        for word in words[:length]:
            total += float(table()[language, before, last, word])
            before, last = last, word
        scores[words[:length]] = total
    return scores


def test_with_all_beams_the_search_is_exhaustive() -> None:
    tokens, scores = beam_search(step, 2, Search(0, END, WORDS**LONGEST, LONGEST), torch.device("cpu"))
    for language in range(2):
        wanted = max(all_scores(language).items(), key=lambda each: each[1])
        found = tokens[language].tolist()[1:]
        assert tuple(found[: len(wanted[0])]) == wanted[0] and set(found[len(wanted[0]) :]) <= {END}
        assert float(scores[language]) == pytest.approx(wanted[1], abs=1e-5)


def test_one_beam_is_the_greedy_choice_and_more_are_no_worse() -> None:
    found = [beam_search(step, 2, Search(0, END, beams, LONGEST), torch.device("cpu")) for beams in (1, 2, 3)]
    tokens, last = torch.zeros(2, 1, dtype=torch.long), []
    for _ in range(LONGEST):
        tokens = torch.cat([tokens, step(tokens).argmax(1, keepdim=True)], dim=1)
    for row in range(2):
        words = tokens[row].tolist()
        last = words[: words.index(END, 1) + 1] if END in words[1:] else words
        assert found[0][0][row, : len(last)].tolist() == last
    assert bool((found[0][1] <= found[2][1] + 1e-6).all())


def test_it_stops_where_all_have_ended() -> None:
    sure = torch.tensor([-9.0, -0.1, -9.0, -9.0])
    tokens, scores = beam_search(
        lambda given: sure.expand(len(given), -1), 1, Search(0, END, 1, 9), torch.device("cpu")
    )
    assert tokens.tolist() == [[0, 1]] and float(scores[0]) == pytest.approx(-0.1)


def test_captions_are_the_likeliest_by_the_model_itself() -> None:
    model, images = meter(), cells(2)
    tokens, scores = caption(model, images, Search(START, 2, beams=40, longest=2), MASK)
    assert tokens.shape == (2, 3) and tokens[:, 0].tolist() == [START, START]
    pairs = torch.tensor([[START, word, MASK] for word in range(40)])
    for image in range(2):
        first = words_at(model, image, torch.tensor([[START, MASK]]))[0]
        second = words_at(model, image, pairs).max(1).values
        second[2] = 0.0  # the end: nothing follows
        assert float(scores[image]) == pytest.approx(float((first + second).max()), abs=1e-4)


def test_a_decoder_tells_the_likeliest_by_itself() -> None:
    model, images, prompt = meter(replace(CACHED, layers=1, decoder_layers=2)), cells(2), (START, 7, 2)
    tokens, scores = caption_by_decoder(model, images, Search(START, 2, beams=40, longest=2), prompt)
    pairs = torch.tensor([[START, word] for word in range(40)])
    for image in range(2):
        states = model(Batch(Text(torch.tensor([prompt] * 40)), images, image_of=(image,) * 40))
        said = model.heads["mlm"](model.words(pairs, states)).log_softmax(-1)
        second = said[:, 1].max(1).values
        second[2] = 0.0  # the end: nothing follows
        assert float(scores[image]) == pytest.approx(float((said[0, 0] + second).max()), abs=1e-4)
        assert int(tokens[image, 1]) == int((said[0, 0] + second).argmax())


def test_padding_of_an_image_is_not_told_of() -> None:
    model, search = meter(replace(CACHED, layers=1, decoder_layers=1)), Search(START, 2, beams=3, longest=4)
    found = caption_by_decoder(
        model, cells(2, torch.tensor([[True] * 4, [True] * 2 + [False] * 2])), search, (START, 2)
    )
    whole = cells(2)
    assert whole.whole_image is not None
    alone = Cells(whole.features[1:, :2], whole_image=whole.whole_image[1:])
    wanted = caption_by_decoder(model, alone, search, (START, 2))
    assert torch.equal(found[0][1], wanted[0][0])
    torch.testing.assert_close(found[1][1:], wanted[1], rtol=0, atol=1e-5)


def test_each_model_speaks_in_its_own_way() -> None:
    decoder = meter(replace(CACHED, decoder_layers=1))
    with pytest.raises(ValueError, match="without a decoder"):
        caption(decoder, cells(2), Search(START, 2), MASK)
    with pytest.raises(ValueError, match="has no decoder"):
        caption_by_decoder(meter(), cells(2), Search(START, 2), (START,))
    with pytest.raises(ValueError, match="65 words are wanted, the decoder has 64 places"):
        caption_by_decoder(decoder, cells(2), Search(START, 2, longest=65), (START,))


def words_at(model: Meter, image: int, ids: Tensor) -> Tensor:
    """Log probabilities of the last word of each text, of one image."""
    with torch.no_grad():
        states = model(Batch(Text(ids), cells(2), image_of=(image,) * len(ids)))
        return model.heads["mlm"](states.text[:, -1]).log_softmax(-1)


def test_a_cut_caption_asks_for_one_word() -> None:
    ids = torch.tensor([[START, 7, 8, 2], [START, 9, 2, PADDING]])
    lengths = torch.tensor([4, 3])
    texts, labels = cut_captions(ids, lengths, torch.tensor([2, 1]), (MASK, PADDING))
    assert texts.ids.tolist() == [[START, 7, MASK], [START, MASK, PADDING]] and texts.lengths == (3, 2)
    assert labels.tolist() == [[IGNORED, IGNORED, 8], [IGNORED, 9, IGNORED]]
    logits = meter()(Batch(texts, cells(2))).text
    assert logits.shape[:2] == labels.shape
    with pytest.raises(ValueError, match="outside its caption"):
        cut_captions(ids, lengths, torch.tensor([2, 3]), (MASK, PADDING))
