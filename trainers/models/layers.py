"""The blocks that the models share: attention, transformer layers, embeddings of text, positions and their resizing.

Shapes in this file: B sequences, L positions (Lq asking, Lk asked), D model width, N tokens of all sequences together.

Padding. Attention takes its tokens in one of three forms, told apart by `padding`:

    None            (B, L, D), and nothing is padded: the flash kernel needs no mask
    a bool tensor   (B, L, D); `padding` (B, Lk) is True where a key is real
    `Spans`         (N, D): real tokens only, sequence after sequence; all layers then work on nothing else

Everything but attention works on (..., D), and so does not know. Padded queries get numbers, which nobody may read.

Names of attributes are ours, the same in all models; the rename tables of `checkpoints.py` lead from official ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainers.batch import Cells, Part, Pixels, Regions, Text

SMALL = 2**13  # numbers of a sequence; at 24 tokens of 128 padding takes half the time, at 30 of 768 a quarter more


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu, "relu": F.relu}


@dataclass(frozen=True)
class LayerConfig:
    """One transformer layer.

    dim                width D
    heads              attention heads; D is a multiple
    hidden             width of the feed-forward layer
    eps                of the layer normalisations
    dropout            of what attention and feed-forward give
    attention_dropout  of attention's weights
    activation         of the feed-forward layer: "gelu" (by erf), "quick_gelu" or "relu"
    std                of the weights that a model begins with, of its embeddings, too: BERT's, which is for 768
    """

    dim: int = 768
    heads: int = 12
    hidden: int = 3072
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    std: float = 0.02


@dataclass(frozen=True, eq=False)
class Spans(Part):
    """Where the sequences of packed tokens lie.

    offsets  (B + 1,) int64   sequence i has the tokens from offsets[i] to offsets[i + 1]
    rows     (N,) int64       the place of each token in (B * longest,), sequences padded; None: nothing is padded
    lengths  B ints           on the host
    """

    offsets: Tensor
    rows: Tensor | None
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Spans:
        """The spans of sequences of these lengths, on the CPU."""
        counts = np.asarray(lengths, np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = None
        if (counts != counts.max()).any():
            rows = torch.from_numpy(
                np.arange(offsets[-1]) + np.repeat(np.arange(len(counts)) * counts.max() - offsets[:-1], counts)
            )
        return cls(torch.from_numpy(offsets), rows, tuple(counts.tolist()))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def pad(self, x: Tensor) -> Tensor:
        """Packed (N, ...) to (B, longest, ...), zeros behind each sequence."""
        if self.rows is None:
            return x.view(len(self.lengths), self.longest, *x.shape[1:])
        padded = x.new_zeros(len(self.lengths) * self.longest, *x.shape[1:]).index_copy(0, self.rows, x)
        return padded.view(len(self.lengths), self.longest, *x.shape[1:])

    def pack(self, x: Tensor) -> Tensor:
        """Padded (B, longest, ...) to (N, ...)."""
        # index_select, here and elsewhere: going back it adds rows many times faster than indexing by brackets does.
        return x.flatten(0, 1) if self.rows is None else x.flatten(0, 1).index_select(0, self.rows)

    def mask(self) -> Tensor | None:
        """(B, longest) bool, True where a token is; None where nothing is padded."""
        if self.rows is None:
            return None
        return torch.arange(self.longest, device=self.offsets.device) < self.offsets.diff()[:, None]


Padding = Tensor | Spans | None


@dataclass(frozen=True, eq=False)
class States:
    """What a single-stream model makes of a batch: each sequence is a text, then visual tokens.

    tokens        (N, D)       of all sequences, packed
    spans         Spans        where they lie
    text_lengths  (B,) int64   tokens of each text
    text_width    int          T of the batch
    visual_width  int          most visual tokens of a sequence, what comes behind them not counted
    visual_lengths  (B,) int64 visual tokens of each sequence, likewise
    """

    tokens: Tensor
    spans: Spans
    text_lengths: Tensor
    visual_lengths: Tensor
    text_width: int
    visual_width: int

    @property
    def first(self) -> Tensor:
        """(B, D): each sequence's first token."""
        return self.tokens.index_select(0, self.spans.offsets[:-1])

    @property
    def text(self) -> Tensor:
        """(B, T, D), zero in the padding."""
        return self._slots(self.spans.offsets[:-1], self.text_lengths, self.text_width)

    @property
    def visual(self) -> Tensor:
        """(B, visual_width, D), zero in the padding."""
        start = self.spans.offsets[:-1] + self.text_lengths
        return self._slots(start, self.visual_lengths, self.visual_width)

    def _slots(self, start: Tensor, lengths: Tensor, width: int) -> Tensor:
        slot = torch.arange(width, device=start.device)
        rows = (start[:, None] + slot).clamp(max=len(self.tokens) - 1)
        states = self.tokens.index_select(0, rows.flatten()).view(*rows.shape, self.tokens.shape[1])
        return states * (slot < lengths[:, None])[..., None]


def host_lengths(part: Text | Regions | Cells) -> tuple[int, ...]:
    """The real rows of each text or image; waits for the device where only that knows."""
    if part.lengths is not None:
        return part.lengths
    assert part.mask is not None
    return tuple(part.mask.sum(1).tolist())


def host_shapes(pixels: Pixels) -> tuple[tuple[int, int], ...]:
    """Height and width of each image; waits for the device where only that knows."""
    if pixels.shapes is not None:
        return pixels.shapes
    assert pixels.sizes is not None
    return tuple((height, width) for height, width in pixels.sizes.tolist())


def drawn(count: int, most: int | None) -> np.ndarray:
    """Numbers below `count` in order: `most` of them at random, by torch's generator; all, where there are no more."""
    if most is None or count <= most:
        return np.arange(count)
    return torch.randperm(count)[:most].sort().values.numpy()


def packed_order(starts: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of concatenated parts that make sequences: for each sample its rows of the first part, of the second, ...

    Args:
        starts: of each part, (B,): where the part of each sample begins in the concatenation.
        lengths: of each part, (B,): its rows.
    """
    start, length = (np.stack(each, axis=1).ravel() for each in (starts, lengths))
    ends = np.cumsum(length)
    order: np.ndarray = np.arange(ends[-1]) + np.repeat(start - (ends - length), length)
    return order


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    padding: Padding = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Multi-head attention between projected tokens; the result has the query's shape.

    Args:
        query: (B, Lq, D), or packed (N, D).
        key, value: (B, Lk, D), or packed like the query.
        padding: of the keys; `Spans` where all three are packed.
        dropout: of the attention weights.
        causal: True where a query sees the keys up to its own place only; without padding.
    """
    if isinstance(padding, Spans):
        return _packed_form(query, padding)(query, key, value, heads, padding, dropout)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))
    mask = None if padding is None else padding[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).transpose(-3, -2).flatten(-2)


def _packed_form(query: Tensor, spans: Spans) -> Callable[..., Tensor]:
    """What is fastest: on a CPU sequences by themselves are up to four times as fast as with a mask, unless they are so
    small that most of the time goes into calling. On a GPU torch's tensors of sequences take ten milliseconds to call,
    whatever their size (`benchmarks/attention.py`)."""
    # Compiled code would be made anew for every combination of lengths of sequences by themselves.
    if spans.rows is None or query.is_cuda or torch.compiler.is_compiling():
        return attend_padded
    return attend_padded if spans.longest * query.shape[-1] < SMALL else attend_each


def attend_each(query: Tensor, key: Tensor, value: Tensor, heads: int, spans: Spans, dropout: float) -> Tensor:
    """`attend` for packed tokens, sequence by sequence."""
    parts = (x.split(list(spans.lengths)) for x in (query, key, value))
    each = [attend(q[None], k[None], v[None], heads, None, dropout)[0] for q, k, v in zip(*parts, strict=True)]
    return torch.cat(each)


def attend_padded(query: Tensor, key: Tensor, value: Tensor, heads: int, spans: Spans, dropout: float) -> Tensor:
    """`attend` for packed tokens, which are padded for the attention alone."""
    q, k, v = (spans.pad(x) for x in (query, key, value))
    return spans.pack(attend(q, k, v, heads, spans.mask(), dropout))


class Attention(nn.Module):
    """Attention with a projection each for query, key and value, as in BERT: of a sequence to itself or to another.

    attend  the function of that name; `trainers.explain` puts one that keeps the weights in its place for a while
    """

    attend: Callable[..., Tensor] = staticmethod(attend)

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query, self.key, self.value, self.out = (nn.Linear(config.dim, config.dim) for _ in range(4))

    def forward(self, x: Tensor, other: Tensor | None = None, padding: Padding = None) -> Tensor:
        """Tokens `x` attend to `other` (default: themselves), whose padding is given."""
        y = x if other is None else other
        dropout = self.dropout if self.training else 0.0
        return self.out(self.attend(self.query(x), self.key(y), self.value(y), self.heads, padding, dropout))


class FusedAttention(nn.Module):
    """Attention of a sequence to itself with one projection for query, key and value, as in ViT; `attend` as above."""

    attend: Callable[..., Tensor] = staticmethod(attend)

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, padding: Padding = None) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.out(self.attend(query, key, value, self.heads, padding, self.dropout if self.training else 0.0))


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.hidden)
        self.down = nn.Linear(config.hidden, config.dim)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class PostNormLayer(nn.Module):
    """BERT's layer: attention, then feed-forward, each added to its input and the sum normalised."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, config.eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, padding: Padding = None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, padding=padding)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class CoAttentionLayer(nn.Module):
    """One stream's layer of METER: attention to itself, to the other stream, then feed-forward, each as in BERT."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, config.eps)
        self.cross = Attention(config)
        self.cross_norm = nn.LayerNorm(config.dim, config.eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, other: Tensor, padding: Padding = None, other_padding: Padding = None) -> Tensor:
        """(B, Lq, D) of this stream and (B, Lk, D) of the other one; `padding` tensors or None."""
        x = self.attention_norm(x + self.dropout(self.attention(x, padding=padding)))
        x = self.cross_norm(x + self.dropout(self.cross(x, other, other_padding)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class PreNormLayer(nn.Module):
    """ViT's layer: attention, then feed-forward, each of its normalised input and added to it."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim, config.eps)
        self.attention = FusedAttention(config)
        self.mlp_norm = nn.LayerNorm(config.dim, config.eps)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_dropout = nn.Dropout(config.dropout)  # behind the activation, too, as in timm

    def forward(self, x: Tensor, padding: Padding = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), padding))
        hidden = self.mlp.activation(self.mlp.up(self.mlp_norm(x)))
        return x + self.dropout(self.mlp.down(self.mlp_dropout(hidden)))


class Encoder(nn.ModuleList):
    """Layers of one kind, one after the other.

    checkpointing  set it to keep no activations inside layers while training, and compute them again going back
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self.checkpointing = False

    def forward(self, x: Tensor, padding: Padding = None) -> Tensor:
        for layer in self:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, padding, use_reentrant=False)
            else:
                x = layer(x, padding)
        return x


class TextEmbedding(nn.Module):
    """BERT's and RoBERTa's: token, position and segment embeddings, their sum normalised.

    first_position  of a text's first token: 0 in BERT; in RoBERTa 2, behind the padding's
    """

    def __init__(
        self, vocabulary: int, positions: int, segments: int, config: LayerConfig, first_position: int = 0
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, config.dim)
        self.position = nn.Embedding(positions, config.dim)
        self.segment = nn.Embedding(segments, config.dim)
        self.norm = nn.LayerNorm(config.dim, config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.first_position = first_position

    def forward(self, ids: Tensor, segments: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """(..., T) ids to (..., T, D).

        Args:
            segments: of the same shape; default: 0.
            positions: of the same shape, counted from 0; default: in order along the last axis.
        """
        if positions is None:
            positions = torch.arange(ids.shape[-1], device=ids.device)
        segment = self.segment.weight[0] if segments is None else self.segment(segments)
        x = self.word(ids) + self.position(positions + self.first_position) + segment
        return self.dropout(self.norm(x))


class Pooler(nn.Module):
    """Linear and tanh, of one token's state."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


def resize_square(table: Tensor, side: int, mode: str = "bicubic") -> Tensor:
    """A table (S * S, D) of a square, row by row, resized to (side * side, D); align_corners False, float32 inside.

    For learnt positions (CLIP, ViT) and for Swin's tables of relative positions, where S = 2 * window - 1.
    Source: zdou0830/METER `meter/modules/clip_model.py` (adapt_position_encoding), `swin_helpers.py`.
    """
    old = round(len(table) ** 0.5)
    if old * old != len(table):
        raise ValueError(f"a table of {len(table)} rows is of no square; take rows of class tokens off first")
    if old == side:
        return table
    square = table.float().T.reshape(1, -1, old, old)
    resized = F.interpolate(square, (side, side), mode=mode, align_corners=False)
    return resized.flatten(2)[0].T.to(table.dtype)


def resize_positions(positions: Tensor, side: int, mode: str = "bicubic") -> Tensor:
    """Positions (1 + S * S, D), the class token's first, for a grid of another side; that row is kept."""
    return torch.cat([positions[:1], resize_square(positions[1:], side, mode)])


@torch.no_grad()
def init_bert(module: nn.Module, std: float = LayerConfig.std) -> None:
    """BERT's start, for `module.apply`: weights from N(0, std), biases 0, normalisations 1 and 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
