"""The shared blocks against plain formulas: attention in its three forms, the layers, and resized positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.models import layers
from trainers.models.layers import Encoder, LayerConfig, Spans, attend

CONFIG = LayerConfig(dim=12, heads=3, hidden=20)
LENGTHS = (4, 1, 3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attention written out: the scores of every pair, minus infinity where a key is padding."""
    q, k, v = (x.view(len(x), x.shape[1], heads, -1).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(query.shape)


def masked(lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("mask", [None, masked()], ids=["whole", "padded"])
def test_attention_is_plain_attention(mask: Tensor | None) -> None:
    query, key, value = torch.randn(3, 5, 12), torch.randn(3, 4, 12), torch.randn(3, 4, 12)
    found = attend(query, key, value, 3, mask)
    torch.testing.assert_close(found, plain_attention(query, key, value, 3, mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [LENGTHS, (3, 3)], ids=["padded", "whole"])
def test_packed_attention_is_masked_attention(lengths: tuple[int, ...]) -> None:
    spans, mask = Spans.of(lengths), masked(lengths)
    x = [torch.randn(len(lengths), max(lengths), 12) for _ in range(3)]
    wanted = spans.pack(plain_attention(*x, 3, mask))
    packed = [spans.pack(each).requires_grad_() for each in x]
    for form in (attend, layers.attend_each, layers.attend_padded):
        found = form(*packed, 3, spans, 0.0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        assert all(each.isfinite().all() for each in torch.autograd.grad(found.sum(), packed))


def test_sequences_are_padded_where_calls_take_longer_than_the_arithmetic() -> None:
    spans = Spans.of(LENGTHS)
    assert layers._packed_form(torch.zeros(8, 128), spans) is layers.attend_padded
    assert layers._packed_form(torch.zeros(8, layers.SMALL), spans) is layers.attend_each


def test_spans_pad_and_pack() -> None:
    spans, x = Spans.of(LENGTHS), torch.randn(8, 2)
    padded = spans.pad(x)
    assert padded.shape == (3, 4, 2) and torch.equal(spans.pack(padded), x) and torch.equal(spans.mask(), masked())
    assert torch.equal(padded[1, :1], x[4:5]) and not padded[1, 1:].any()
    whole = Spans.of((2, 2))
    assert whole.rows is None and whole.mask() is None and torch.equal(whole.pack(whole.pad(x[:4])), x[:4])


def test_parts_are_interleaved_by_sample() -> None:
    text, objects = torch.arange(6), torch.arange(10, 14)  # padded to 3 a sample; packed, 1 and 3
    order = layers.packed_order([np.array([0, 3]), np.array([6, 7])], [np.array([2, 3]), np.array([1, 3])])
    assert torch.cat([text, objects])[torch.from_numpy(order)].tolist() == [0, 1, 10, 3, 4, 5, 11, 12, 13]


def bert_layer(layer: layers.PostNormLayer, x: Tensor, mask: Tensor) -> Tensor:
    """The post-norm layer as the paper writes it."""
    a = layer.attention
    mixed = plain_attention(a.query(x), a.key(x), a.value(x), 3, mask)
    x = layer.attention_norm(x + a.out(mixed))
    return layer.mlp_norm(x + layer.mlp.down(F.gelu(layer.mlp.up(x))))


@pytest.mark.parametrize("kind", [layers.PostNormLayer, layers.PreNormLayer])
def test_padding_changes_nothing_and_packing_neither(kind: type[nn.Module]) -> None:
    encoder = Encoder(kind(CONFIG) for _ in range(2)).eval()
    spans, x = Spans.of(LENGTHS), torch.randn(3, 4, 12)
    packed = encoder(spans.pack(x), spans)
    torch.testing.assert_close(spans.pack(encoder(x, masked())), packed, rtol=0, atol=1e-6)
    for row, length in enumerate(LENGTHS):
        alone = encoder(x[row : row + 1, :length])
        torch.testing.assert_close(alone[0], spans.pad(packed)[row, :length], rtol=0, atol=1e-6)


def test_the_post_norm_layer_is_bert_s() -> None:
    layer, x = layers.PostNormLayer(CONFIG).eval(), torch.randn(3, 4, 12)
    torch.testing.assert_close(layer(x, masked()), bert_layer(layer, x, masked()), rtol=0, atol=1e-6)


def test_co_attention_reads_the_other_stream_by_its_padding() -> None:
    layer, x, y = layers.CoAttentionLayer(CONFIG).eval(), torch.randn(3, 5, 12), torch.randn(3, 4, 12)
    found = layer(x, y, None, masked())
    y_changed = torch.where(masked()[..., None], y, torch.randn(3, 4, 12))
    torch.testing.assert_close(layer(x, y_changed, None, masked()), found, rtol=0, atol=1e-6)
    c, before = layer.cross, layer.attention_norm(x + layer.attention(x))
    mixed = plain_attention(c.query(before), c.key(y), c.value(y), 3, masked())
    after = layer.cross_norm(before + c.out(mixed))
    torch.testing.assert_close(found, layer.mlp_norm(after + layer.mlp(after)), rtol=0, atol=1e-6)


def test_checkpointing_changes_no_gradient() -> None:
    encoder = Encoder(layers.PostNormLayer(LayerConfig(12, 3, 20, dropout=0, attention_dropout=0)) for _ in range(2))
    spans = Spans.of(LENGTHS)
    x = torch.randn(8, 12)
    gradients = []
    for encoder.checkpointing in (False, True):
        encoder.zero_grad()
        encoder(x, spans).square().sum().backward()
        gradients.append([each.grad.clone() for each in encoder.parameters() if each.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_layers_compile_without_breaks() -> None:
    spans = Spans.of(LENGTHS)
    for kind in (layers.PostNormLayer, layers.PreNormLayer):
        layer, x = kind(CONFIG).eval(), torch.randn(8, 12)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, spans), layer(x, spans))


def test_text_embedding_counts_from_the_first_position() -> None:
    embed = layers.TextEmbedding(10, 8, 2, CONFIG, first_position=2).eval()
    ids = torch.tensor([[4, 5, 6]])
    wanted = embed.norm(embed.word.weight[4:7] + embed.position.weight[2:5] + embed.segment.weight[1])
    torch.testing.assert_close(embed(ids, torch.ones_like(ids))[0], wanted)
    torch.testing.assert_close(embed(ids[0], torch.ones_like(ids[0]), torch.arange(3)), wanted)


def test_positions_keep_the_class_row_and_corners() -> None:
    table = torch.randn(17, 8)
    found = layers.resize_positions(table, 6)
    assert found.shape == (37, 8) and torch.equal(found[0], table[0])
    assert layers.resize_positions(table, 4) is not None and torch.equal(layers.resize_positions(table, 4), table)
    with pytest.raises(ValueError, match="of no square"):
        layers.resize_square(table, 6)
