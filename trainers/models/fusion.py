"""How METER brings its two streams together: co-attention, merged attention, a decoder behind them, gated layers.

Source: METER (Dou et al., CVPR 2022) sections 3.1, 4.2, 4.3 and appendix D. Only co-attention has official code
(zdou0830/METER `meter/modules/meter_module.py`, `bert_model.py`); what the text leaves open is in docs/models.md.
Shapes in this file: B texts, T text positions, L image tokens, S decoder positions, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.models.layers import Attention, CoAttentionLayer, Encoder, FeedForward, LayerConfig, PostNormLayer, attend

Streams = tuple[Tensor, Tensor]


class Fusion(nn.Module):
    """Two streams in, two streams out.

    checkpointing  as of `Encoder`
    """

    checkpointing = False

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None, image_mask: Tensor | None = None
    ) -> Streams:
        """(B, T, D) and (B, L, D) with masks (B, T) and (B, L), True where a token is real; None where all are."""
        raise NotImplementedError


class CoAttention(Fusion):
    """A stack of layers for each stream; a layer of either reads what the layers before it made of both."""

    def __init__(self, config: LayerConfig, layers: int) -> None:
        super().__init__()
        self.text_layers, self.image_layers = (
            nn.ModuleList(CoAttentionLayer(config) for _ in range(layers)) for _ in range(2)
        )

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None, image_mask: Tensor | None = None
    ) -> Streams:
        for of_text, of_image in zip(self.text_layers, self.image_layers, strict=True):
            run = _run(self)
            text, image = (
                run(of_text, text, image, text_mask, image_mask),
                run(of_image, image, text, image_mask, text_mask),
            )
        return text, image


class MergedAttention(Fusion):
    """One stack of layers over both streams, one behind the other."""

    def __init__(self, config: LayerConfig, layers: int) -> None:
        super().__init__()
        self.layers = Encoder(PostNormLayer(config) for _ in range(layers))

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None, image_mask: Tensor | None = None
    ) -> Streams:
        self.layers.checkpointing = self.checkpointing
        mask = None
        if text_mask is not None or image_mask is not None:
            mask = torch.cat([_full(text, text_mask), _full(image, image_mask)], dim=1)
        merged = self.layers(torch.cat([text, image], dim=1), mask)
        return merged[:, : text.shape[1]], merged[:, text.shape[1] :]


FUSIONS: dict[str, Callable[[LayerConfig, int], Fusion]] = {"co-attention": CoAttention, "merged": MergedAttention}


class DecoderLayer(nn.Module):
    """Attention to the tokens so far, to the image, to the text, then feed-forward, each as in BERT."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attention, self.image_cross, self.text_cross = (Attention(config) for _ in range(3))
        self.attention_norm, self.image_norm, self.text_norm, self.mlp_norm = (
            nn.LayerNorm(config.dim, config.eps) for _ in range(4)
        )
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, text: Tensor, image: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """(B, S, D); `masks` are the text's and the image's."""
        text_mask, image_mask = masks
        x = self.attention_norm(x + self.dropout(self._to_the_past(x)))
        x = self.image_norm(x + self.dropout(self.image_cross(x, image, image_mask)))
        x = self.text_norm(x + self.dropout(self.text_cross(x, text, text_mask)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))

    def _to_the_past(self, x: Tensor) -> Tensor:
        own = self.attention
        dropout = own.dropout if self.training else 0.0
        return own.out(attend(own.query(x), own.key(x), own.value(x), own.heads, dropout=dropout, causal=True))


class Decoder(nn.Module):
    """Words, or one class token, from what the encoder made of text and image.

    Padding stands behind a sequence, where no real word looks; it needs no mask.
    """

    def __init__(self, config: LayerConfig, layers: int, words: int, positions: int) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(words, config.dim), nn.Embedding(positions, config.dim)
        self.class_token = nn.Embedding(1, config.dim)
        self.norm, self.dropout = nn.LayerNorm(config.dim, config.eps), nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(layers))
        self.checkpointing = False

    def words(self, ids: Tensor, streams: Streams, masks: Sequence[Tensor | None]) -> Tensor:
        """(B, S) ids so far, from the start token on, to the states (B, S, D) that tell each next one."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return self._run(self.word(ids) + self.position(places), streams, masks)

    def classify(self, streams: Streams, masks: Sequence[Tensor | None]) -> Tensor:
        """(B, D): the state of the class token, which stands where a text would start."""
        x = (self.class_token.weight + self.position.weight[:1]).expand(len(streams[0]), 1, -1)
        return self._run(x, streams, masks)[:, 0]

    def _run(self, x: Tensor, streams: Streams, masks: Sequence[Tensor | None]) -> Tensor:
        x, run = self.dropout(self.norm(x)), _run(self)
        for layer in self.layers:
            x = run(layer, x, *streams, masks)
        return x


class GatedLayers(nn.Module):
    """The last layer's states plus every other layer's, each token's weighed by a gate of its own.

    One linear gate for all layers, which starts closed. States of another width are projected first.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Identity() if width == dim else nn.Linear(width, dim, bias=False) for width in widths
        )
        self.gate = nn.Linear(dim, 1)

    def close(self) -> None:
        """The start: nothing is added."""
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """(..., width) of the embeddings and every layer to (..., D)."""
        *others, fused = states
        for state, projection in zip(others, self.projections, strict=True):
            state = projection(state)
            fused = fused + self.gate(state) * state
        return fused


def to_sentinels(ids: Sequence[int], hidden: Sequence[bool], sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """A text with every run of hidden tokens replaced by a sentinel, and what a decoder is to say: T5's objective.

    The second list is each sentinel with what it stands for, and one more sentinel as the end.

    Raises:
        ValueError: there are more runs than sentinels for them.
    """
    shown: list[int] = []
    told: list[int] = []
    free, before = iter(sentinels), False
    try:
        for token, hide in zip(ids, hidden, strict=True):
            if hide and not before:
                sentinel = next(free)
                shown.append(sentinel)
                told.append(sentinel)
            (told if hide else shown).append(token)
            before = hide
        return shown, [*told, next(free)]
    except StopIteration:
        raise ValueError(f"{len(sentinels)} sentinels are too few for the hidden runs and the end; hide less") from None


def _full(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask


def _run(module: Fusion | Decoder) -> Callable[..., Tensor]:
    """How to call a layer: plainly, or computing it again going back."""
    if not (module.checkpointing and module.training):
        return lambda layer, *given: layer(*given)
    return lambda layer, *given: checkpoint(layer, *given, use_reentrant=False)
