"""ViLT on tiny sizes: what its rules promise; and at full size the same numbers as transformers' ViLT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.batch import Batch, Cells, Pixels, Text, stack_pixels
from trainers.models.alignment import alignment_loss, distances, inner_words, transport
from trainers.models.layers import LayerConfig
from trainers.models.published import load_vilt
from trainers.models.vilt import HEADS, SECOND_IMAGE, ViLT, ViLTConfig, lay_out, stretched

TINY = ViLTConfig(LayerConfig(12, 3, 24, 1e-6), 2, 40, 8, patch=4, side=3, image_types=2, heads=tuple(HEADS), answers=5)
SIZES = ((12, 20), (8, 8), (20, 4))


def model_of(config: ViLTConfig = TINY) -> ViLT:
    torch.manual_seed(0)
    model = ViLT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return model


def images_of(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def batch_of(texts: tuple[int, ...] = (5, 2, 8), sizes: tuple[tuple[int, int], ...] = SIZES) -> Batch:
    images = images_of(sizes)
    ids = torch.randint(4, 40, (len(texts), max(texts)))
    return Batch(Text(ids, torch.arange(max(texts)) < torch.tensor(texts)[:, None]), stack_pixels(images))


def alone(batch: Batch, row: int) -> Batch:
    """One sample without any padding."""
    assert isinstance(batch.visual, Pixels) and batch.visual.shapes and batch.text.lengths
    height, width = batch.visual.shapes[row]
    image = batch.visual.images[row : row + 1, :, :height, :width]
    return Batch(Text(batch.text.ids[row : row + 1, : batch.text.lengths[row]]), Pixels(image))


def everything(model: ViLT, batch: Batch) -> dict[str, Tensor]:
    """Every head's logits."""
    states = model(batch)
    pooled = model.pooled(states)
    two = torch.cat([pooled, model.pooled(model(batch, SECOND_IMAGE))], dim=1)
    given = {"mlm": states.text, "mpp": states.visual, "itm": pooled, "vqa": pooled, "rank": pooled, "nlvr2": two}
    return {name: model.heads[name](inputs) for name, inputs in given.items()}


def test_padding_changes_no_logit() -> None:
    model, batch = model_of(), batch_of()
    together = everything(model, batch)
    for row in range(3):
        for name, wanted in everything(model, alone(batch, row)).items():
            found = together[name][row : row + 1]
            found = found[:, : wanted.shape[1]] if name in ("mlm", "mpp") else found
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_what_stands_in_the_padding_is_never_read() -> None:
    model, batch = model_of(), batch_of()
    assert isinstance(batch.visual, Pixels)
    wanted = model(batch).tokens
    floats = batch.visual.normalised((127.5,) * 3, (127.5,) * 3)
    noise = replace(floats, images=floats.images.where(floats.inside()[:, None], torch.nan))
    torch.testing.assert_close(model(replace(batch, visual=noise)).tokens, wanted, rtol=0, atol=1e-5)


def test_an_edge_that_fills_no_patch_is_left_out() -> None:
    model, batch = model_of(), batch_of(sizes=((8, 12), (8, 8)), texts=(3, 3))
    assert isinstance(batch.visual, Pixels)
    wider = stack_pixels([F.pad(batch.visual.images[0], (0, 3, 0, 1), value=9), batch.visual.images[1, :, :8, :8]])
    assert torch.equal(model(replace(batch, visual=wider)).tokens, model(batch).tokens)


def test_texts_may_share_an_image() -> None:
    model, batch = model_of(), batch_of()
    assert isinstance(batch.visual, Pixels) and batch.visual.sizes is not None
    rows = (2, 2, 0)
    repeated = Pixels(batch.visual.images[list(rows)], batch.visual.sizes[list(rows)])
    wanted = everything(model, replace(batch, visual=repeated))
    for name, found in everything(model, replace(batch, image_of=rows)).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-5)


def test_a_layout_made_ahead_changes_nothing_and_sizes_may_be_the_device_s() -> None:
    model, batch = model_of(), batch_of()
    wanted = model(batch).tokens
    assert torch.equal(model(replace(batch, layout=lay_out(TINY, batch))).tokens, wanted)
    text, pixels = replace(batch.text), replace(batch.visual)  # type: ignore[type-var]
    object.__setattr__(text, "lengths", None)
    object.__setattr__(pixels, "shapes", None)
    assert torch.equal(model(replace(batch, text=text, visual=pixels)).tokens, wanted)


def test_random_patches_are_different_ones_and_never_more_than_there_are() -> None:
    batch, config = batch_of(), replace(TINY, max_patches=6)
    torch.manual_seed(0)
    layouts = [lay_out(config, batch).patches for _ in range(2)]
    assert not torch.equal(*layouts)
    counts = np.bincount(layouts[0][0].numpy())
    assert counts.tolist() == [6, 4, 5]
    assert len({tuple(each) for each in layouts[0].T.tolist()}) == 15


def test_hidden_patches_are_not_seen_and_their_colours_are_asked_for() -> None:
    model, batch = model_of(replace(TINY, masks_patches=True)), batch_of()
    layout = model.layout(batch)
    hidden = torch.zeros(layout.patches.shape[1], dtype=torch.bool)
    hidden[0] = True  # the first image's top left patch
    assert isinstance(batch.visual, Pixels)
    other = batch.visual.images.clone()
    other[0, :, :4, :4] = 255 - other[0, :, :4, :4]
    changed = replace(batch, visual=replace(batch.visual, images=other))
    assert torch.equal(model(batch, hidden=hidden).tokens, model(changed, hidden=hidden).tokens)
    assert not torch.equal(model(batch).tokens, model(changed).tokens)
    colours = model.mean_colours(batch, layout)
    wanted = batch.visual.images[0, :, :4, :4].float().mean((1, 2))
    assert (colours[0] - wanted).abs().max() <= 1
    states = model(batch, hidden=hidden)
    assert torch.equal(states.tokens[layout.patch_tokens][:15], states.visual[0, 1:16])


def test_positions_are_stretched_as_interpolation_does() -> None:
    table = torch.randn(9, 5)
    batch = batch_of(sizes=((12, 20), (4, 8), (12, 12)))
    found = stretched(table, lay_out(TINY, batch).places).split([15, 2, 9])
    square = table.T.reshape(1, 5, 3, 3)
    for each, shape in zip(found, ((3, 5), (1, 2), (3, 3)), strict=True):
        wanted = F.interpolate(square, shape, mode="bilinear", align_corners=True)
        torch.testing.assert_close(each, wanted.flatten(2)[0].T, rtol=0, atol=1e-6)


def test_what_it_cannot_read_is_refused() -> None:
    model, batch = model_of(), batch_of()
    with pytest.raises(ValueError, match="not Cells"):
        model(Batch(batch.text, Cells(torch.zeros(3, 4, 6))))
    with pytest.raises(ValueError, match="3 x 20 pixels holds no patch of 4"):
        model(batch_of(sizes=((12, 20), (3, 20), (8, 8))))
    with pytest.raises(ValueError, match="no head 'gqa'"):
        ViLTConfig(heads=("gqa",))


# Word-patch alignment.


def test_a_plan_moves_every_word_and_fills_every_patch_alike() -> None:
    torch.manual_seed(0)
    rows, columns = torch.arange(4) < torch.tensor([[4], [2]]), torch.arange(6) < torch.tensor([[5], [6]])
    plan = transport(torch.rand(2, 4, 6), rows, columns)
    torch.testing.assert_close(plan.sum(2), rows / rows.sum(1, keepdim=True), rtol=0, atol=1e-4)
    torch.testing.assert_close(plan.sum(1), columns / columns.sum(1, keepdim=True), rtol=0, atol=1e-4)


def test_what_is_equal_is_near_and_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    words = torch.randn(2, 3, 8)
    patches = torch.cat([words.flip(1), torch.randn(2, 2, 8)], dim=1)
    mask = torch.arange(5) < 3
    all_words = torch.ones(2, 3, dtype=torch.bool)
    near = distances(words, patches, all_words, mask.expand(2, 5))
    assert (near < 0.05).all() and (distances(words, -patches, all_words, mask.expand(2, 5)) > 0.5).all()
    torch.testing.assert_close(near, distances(words, patches[:, :3], all_words, all_words))
    assert torch.isclose(alignment_loss(torch.tensor([1.0, 3.0]), torch.tensor([1, 0])), torch.tensor(-1.0))
    assert inner_words(torch.tensor([4, 2]), 4).tolist() == [[False, True, True, False], [False] * 4]


# The published size.


def test_parameter_count_is_the_papers() -> None:
    with torch.device("meta"):
        model = ViLT(ViLTConfig())
    parts = ("patch", "class_token", "encoder", "norm")  # the paper counts neither embeddings nor heads
    count = sum(each.numel() for name, each in model.named_parameters() if name.startswith(parts))
    assert round(count / 1e6, 1) == 87.4


def test_full_size_equals_transformers() -> None:
    from transformers import ViltConfig, ViltModel

    torch.manual_seed(0)
    theirs = ViltModel(ViltConfig(max_image_length=-1, layer_norm_eps=1e-12)).eval()
    ours = ViLT(ViLTConfig(LayerConfig(), heads=())).eval()
    report = load_vilt(ours, theirs.state_dict())
    assert not report.missing and not report.unexpected and not report.changed
    texts = torch.arange(20) < torch.tensor([20, 7])[:, None]
    ids = torch.randint(1000, 30000, (2, 20)) * texts
    pixels = stack_pixels([torch.randn(3, 96, 160), torch.randn(3, 128, 64)])
    with torch.inference_mode():
        states = ours(Batch(Text(ids, texts), pixels))
        wanted = theirs(ids, texts.long(), pixel_values=pixels.images, pixel_mask=pixels.inside().long())
    torch.testing.assert_close(states.text[texts], wanted.last_hidden_state[:, :20][texts], rtol=0, atol=2e-5)
    torch.testing.assert_close(ours.pooled(states), wanted.pooler_output, rtol=0, atol=2e-5)
    shorter = wanted.last_hidden_state[1, 20 : 20 + 9]  # the other image's patches come shuffled
    torch.testing.assert_close(states.visual[1, :9], shorter, rtol=0, atol=2e-5)
