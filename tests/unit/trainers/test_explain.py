"""Maps of what a word looks at: the weights are those of the layers, and belong to the right cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.unit.trainers.meters import stirred
from tests.unit.trainers.tasks import tiny
from trainers.batch import Batch, Cells, Pixels
from trainers.explain import ExplainError, Map, explain, watched
from trainers.models.adapters import Adapter, AdapterConfig
from trainers.models.layers import Attention, FusedAttention, LayerConfig, Spans
from trainers.tasks.families import Family, GridFamily, build_model
from trainers.tasks.rows import Row

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = ["picture-1", "picture-2", "picture-3"]  # 64 x 96, 64 x 64 and 64 x 96 pixels; three, four and two boxes
TEXTS = ["what colour is this picture ?", "is it red ?", "the thing in this square is what colour ?"]
SHAPES = {
    "vl_bert": (3,),
    "vl_bert_all": (3,),
    "grid_vlp": (2, 3),
    "pixel_bert": (1, 2),
    "vilt": (2, 3),
    "meter": (4, 4),
    "meter_cached": (2, 2),
}
LAYER = LayerConfig(dim=12, heads=3, hidden=16, dropout=0, attention_dropout=0)


def made(name: str, heads: tuple[str, ...] = ("vqa",), **changes: Any) -> tuple[Any, Family, Batch]:
    """A model with weights far from their start, its family, and a padded batch of three texts and pictures."""
    config, family, visual = tiny.setting(name, training=False, heads=heads, **changes)
    model = stirred(build_model(config)).eval()
    return model, family, batch_of(family, visual, range(len(KEYS)))


def batch_of(family: Family, visual: Any, numbers: Any) -> Batch:
    rows = [family.question(family.tokenizer(TEXTS[number])) for number in numbers]
    return family.batch(rows, visual.look([KEYS[number] for number in numbers]).visual, {})


# the weights


@pytest.mark.parametrize("kind", [Attention, FusedAttention])
@pytest.mark.parametrize("form", ["plain", "masked", "packed"])
def test_watched_weights_are_those_that_the_layer_computes_with(kind: Any, form: str) -> None:
    torch.manual_seed(0)
    layer, lengths = kind(LAYER).eval(), (5, 3)
    x, mask = torch.randn(2, 5, 12), torch.arange(5) < torch.tensor(lengths)[:, None]
    spans = Spans.of(lengths)
    given, padding = (spans.pack(x), spans) if form == "packed" else (x, mask if form == "masked" else None)
    wanted = layer(given, padding=padding)
    with watched([layer]) as seen:
        torch.testing.assert_close(layer(given, padding=padding), wanted, rtol=0, atol=1e-5)
    [weights] = seen
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    if padding is not None:
        assert not weights[1, :, :, 3:].any() and bool((weights[1, :, :, :3] > 0).all())
    q, k, v = (each.unflatten(-1, (3, 4)).transpose(1, 2) for each in _projected(layer, x))
    hidden = torch.zeros(2, 1, 1, 5) if padding is None else torch.where(mask, 0, -torch.inf)[:, None, None]
    wanted_weights = (q @ k.transpose(2, 3) / 2 + hidden).softmax(-1)
    for row, length in enumerate(lengths):  # what padding asks is nobody's business
        torch.testing.assert_close(weights[row, :, :length], wanted_weights[row, :, :length])
    by_hand = layer.out((wanted_weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(spans.pack(by_hand) if form == "packed" else by_hand, wanted, rtol=0, atol=1e-5)
    assert torch.equal(layer(given, padding=padding), wanted) and len(seen) == 1  # it watches no longer


def _projected(layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    if isinstance(layer, FusedAttention):
        return layer.qkv(x).chunk(3, dim=-1)
    return layer.query(x), layer.key(x), layer.value(x)


@pytest.mark.parametrize("name", SHAPES)
def test_a_map_has_the_image_s_shape_and_does_not_depend_on_the_batch(name: str) -> None:
    model, family, batch = made(name)
    visual = tiny.SETTINGS[name].visual()
    for row in range(3):
        among = explain(family, model, batch, [2, 3], row)
        alone = explain(family, model, batch_of(family, visual, [row]), [2, 3])
        for found, wanted in ((among.attention, alone.attention), (among.gradcam, alone.gradcam)):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        assert among.asked.choice == alone.asked.choice
        assert among.attention.dtype == torch.float32 and bool((among.attention > 0).all())
        assert float(among.attention.sum()) < 1 + 1e-5 and bool((among.gradcam >= 0).all())
        if row == 0:
            assert among.attention.shape == among.gradcam.shape == SHAPES[name]
            assert among.gradcam.any()
    assert not model.training


@pytest.mark.parametrize("name", ["vl_bert", "grid_vlp", "vilt", "meter", "meter_cached"])
def test_grad_cam_is_of_the_answer_that_the_model_gives(name: str) -> None:
    model, family, batch = made(name)
    head = model.heads["vqa"]
    logits = head(family.answer(model, family.states(model, batch), batch))
    asked = explain(family, model, batch, [2], 1).asked
    assert (asked.head, asked.choice) == ("vqa", int(logits[1].argmax()))
    assert asked.score == pytest.approx(float(logits[1].max().detach()), rel=1e-4)


def test_a_word_is_hidden_from_a_model_that_tells_hidden_words() -> None:
    model, family, batch = made("vilt", ("mlm", "itm"))
    place = 4
    told = int(batch.text.ids[0, place])
    found = explain(family, model, batch, [place])
    hidden = batch.text.ids.clone()
    hidden[0, place] = family.tokenizer.mask
    states = family.states(model, replace(batch, text=replace(batch.text, ids=hidden)))
    logit = family.word_logits(model, states.text[0, place][None])[0, told]
    assert (found.asked.head, found.asked.choice) == ("mlm", told)
    assert found.asked.score == pytest.approx(float(logit.detach()), rel=1e-4)
    assert int(batch.text.ids[0, place]) == told


# the places


def silent_but_for_one(cell: tuple[int, int], shape: tuple[int, int] = (3, 4)) -> tuple[Map, Map]:
    """Maps of a Grid-VLP of one layer in which every cell but one has a value of zero: of the second image of a padded
    batch, and of it alone."""
    config = replace(tiny.GRID, layers=1, heads=("mlm",))
    torch.manual_seed(0)
    model: Any = build_model(config).eval()
    with torch.no_grad():
        model.text.segment.weight.zero_()
        model.encoder[0].attention.value.weight.mul_(20)
    features = torch.zeros(2, 20, tiny.DIM)
    features[0] = torch.randn(20, tiny.DIM)  # another image, of more cells
    features[1, cell[0] * shape[1] + cell[1]] = 1
    mask = torch.arange(20) < torch.tensor([20, shape[0] * shape[1]])[:, None]
    family = GridFamily(config, tiny.tokenizer(), 20)
    rows = [Row((2, 5, 6, 3)), Row((2, 7, 8, 9, 3))]
    both = family.batch(rows, Cells(features, mask, ((4, 5), shape)), {})
    one = family.batch(rows[1:], Cells(features[1:, : shape[0] * shape[1]], None, (shape,)), {})
    return explain(family, model, both, [2], row=1), explain(family, model, one, [2])


@pytest.mark.parametrize("cell", [(0, 0), (1, 2), (2, 3)])
def test_grad_cam_finds_the_only_cell_that_matters(cell: tuple[int, int]) -> None:
    for found in silent_but_for_one(cell):
        assert found.gradcam.shape == (3, 4) and divmod(int(found.gradcam.argmax()), 4) == cell
        assert int((found.gradcam > 0).sum()) == 1


@pytest.mark.parametrize("name", ["vilt", "grid_vlp", "vl_bert", "meter_cached"])
def test_attention_is_told_of_the_cell_that_it_goes_to(name: str) -> None:
    """In one layer, a cell that changes takes from, or leaves to, each of the others the same share."""
    model, family, batch = made(name, layers=1)
    if name == "vl_bert":  # its words see the whole image: let that stay
        batch = replace(batch, visual=replace(batch.visual, whole_image=torch.ones(3, tiny.DIM)))
    before = explain(family, model, batch, [2]).attention.flatten()
    for place in range(len(before)):
        changed = replace(batch, visual=_changed(batch.visual, place))
        ratios = explain(family, model, changed, [2]).attention.flatten() / before
        others = torch.cat([ratios[:place], ratios[place + 1 :]])
        # alike, but for the mean over two heads
        assert float(others.max() / others.min()) < 1.3 < float((ratios[place] / others).log().abs().min().exp())


def _changed(visual: Any, place: int) -> Any:
    """The first image, 2 x 3 cells or boxes, with another one at a place."""
    if isinstance(visual, Pixels):
        row, column = divmod(place, 3)
        images = visual.images.clone()
        images[0, :, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 0
        return replace(visual, images=images)
    features = visual.features.clone()
    features[0, place] = -features[0, place]
    return replace(visual, features=features)


# what cannot be explained


def test_what_has_no_maps_is_told() -> None:
    model, family, batch = made("vilt", ("nlvr2",), image_types=2)
    with pytest.raises(ExplainError, match="answers by nlvr2, which is no score of one text and one image"):
        explain(family, model, batch, [1])
    shape = {"vocab_size": 80, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
    visual_bert = Adapter(AdapterConfig("visual_bert", "random:0", {**shape, "num_hidden_layers": 1}))
    with pytest.raises(ExplainError, match="Adapter has no layers of ours in which words see an image"):
        explain(family, visual_bert, batch, [1])
    model, family, batch = made("grid_vlp")
    with pytest.raises(ExplainError, match="where the cells lie is not known"):
        explain(family, model, replace(batch, visual=replace(batch.visual, shapes=None), layout=None), [1])
    cut = replace(batch, layout=build_layout(model, batch, [[0, 1], [0], [1]]))
    with pytest.raises(ExplainError, match="2 of 6 cells were read; explain with all of them"):
        explain(family, model, cut, [1])


def build_layout(model: Any, batch: Batch, kept: list[list[int]]) -> Any:
    from trainers.models.grid_vlp import lay_out

    return lay_out(model.config, batch, False, [torch.tensor(each).numpy() for each in kept])


def test_a_model_in_training_goes_on_training_with_its_fast_attention() -> None:
    model, family, batch = made("vilt")
    model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *_: pytest.fail("it is not watched"))
        explain(family, model, batch, [1])
    assert model.training
    assert all("attend" not in vars(layer.attention) for layer in model.encoder)
    assert all(parameter.grad is None for parameter in model.parameters())
