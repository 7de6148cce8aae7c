"""METER's fusions and decoder: who reads whom, and that padding is never read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.trainers.meters import LAYER
from trainers.models.fusion import FUSIONS, Decoder, Fusion, GatedLayers, to_sentinels

MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def made(name: str, layers: int = 2) -> Fusion:
    torch.manual_seed(0)
    return FUSIONS[name](LAYER, layers).eval()


def streams() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 12), torch.randn(2, 5, 12)


@pytest.mark.parametrize("name", FUSIONS)
def test_padding_changes_nothing(name: str) -> None:
    fusion, (text, image) = made(name), streams()
    image_mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    both = fusion(text, image, MASK, image_mask)
    for row, (words, patches) in enumerate(((3, 5), (2, 4))):
        alone = fusion(text[row : row + 1, :words], image[row : row + 1, :patches], None)
        torch.testing.assert_close(both[0][row, :words], alone[0][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(both[1][row, :patches], alone[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(fusion(text, image, MASK), fusion(text, image, MASK, torch.ones(2, 5).bool()))


def test_co_attention_reads_the_layer_before_of_both_streams() -> None:
    fusion, (text, image) = made("co-attention"), streams()
    words, patches = text, image
    for of_text, of_image in zip(fusion.text_layers, fusion.image_layers, strict=True):
        words, patches = of_text(words, patches, MASK, None), of_image(patches, words, None, MASK)
    torch.testing.assert_close(fusion(text, image, MASK), (words, patches))


def test_merged_attention_is_one_stack_over_both() -> None:
    fusion, (text, image) = made("merged"), streams()
    wanted = fusion.layers(torch.cat([text, image], dim=1), None)
    words, patches = fusion(text, image, None)
    assert torch.equal(torch.cat([words, patches], dim=1), wanted) and words.shape == text.shape


@pytest.mark.parametrize("name", FUSIONS)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    fusion, gradients = made(name).train(), []
    for fusion.checkpointing in (False, True):
        fusion.zero_grad()
        torch.manual_seed(2)
        sum(each.square().sum() for each in fusion(*streams(), MASK)).backward()  # type: ignore[union-attr]
        gradients.append([each.grad for each in fusion.parameters()])
    torch.testing.assert_close(*gradients)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(LAYER, 2, words=10, positions=8).eval()


def test_a_decoder_sees_no_later_word() -> None:
    model, both, ids = decoder(), streams(), torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1]])
    found = model.words(ids, both, (MASK, None))
    for length in (1, 3):
        torch.testing.assert_close(model.words(ids[:, :length], both, (MASK, None)), found[:, :length])
    assert not torch.equal(model.words(ids.flip(1), both, (MASK, None))[:, -1], found[:, -1])


def test_a_decoder_reads_text_and_image_and_no_padding() -> None:
    model, (text, image) = decoder(), streams()
    found = model.classify((text, image), (MASK, None))
    assert found.shape == (2, 12)
    noisy = torch.where(MASK[..., None], text, 9.0)
    torch.testing.assert_close(model.classify((noisy, image), (MASK, None)), found)
    for other in ((text + 1, image), (text, image.flip(2))):
        assert not torch.allclose(model.classify(other, (MASK, None)), found)


def test_gates_weigh_every_layer_but_the_last() -> None:
    torch.manual_seed(0)
    gated = GatedLayers([6, 4], 4)
    states = [torch.randn(2, 3, 6), torch.randn(2, 3, 4), torch.randn(2, 3, 4)]
    first = states[0] @ gated.projections[0].weight.T  # type: ignore[operator]
    wanted = states[2] + gated.gate(first) * first + gated.gate(states[1]) * states[1]
    torch.testing.assert_close(gated(states), wanted)
    gated.close()
    assert torch.equal(gated(states), states[2])


def test_hidden_runs_become_sentinels() -> None:
    hidden = [False, True, True, False, True, False]
    assert to_sentinels([5, 6, 7, 8, 9, 4], hidden, [90, 91, 92]) == ([5, 90, 8, 91, 4], [90, 6, 7, 91, 9, 92])
    assert to_sentinels([5, 6], [False, False], [90]) == ([5, 6], [90])
    with pytest.raises(ValueError, match="2 sentinels are too few"):
        to_sentinels([5, 6, 7, 8, 9, 4], hidden, [90, 91])
