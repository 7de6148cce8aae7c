"""METER (Dou et al., CVPR 2022): a text encoder and an image encoder, both pre-trained, and new layers that fuse them.

What makes it different: no modality is read by the other one's encoder. Each is taken by name, and so is the fusion:
co-attention with weights of its own for each stream (the published models), or merged attention; with a decoder or
without. Two learning rates follow: one for the encoders, five times as much for what is new.

    text   -> text encoder  -> linear + modality 0 -> \\
                                                       fusion -> first text token, image's class token or mean -> heads
    image  -> image encoder -> linear + modality 1 -> /

Source: zdou0830/METER `meter/modules/meter_module.py`, `objectives.py`; the paper alone for all but co-attention.
Shapes in this file: B texts, V images, T text positions, L image tokens (a class token, where the encoder has one, and
P patches), D model width, E width of what is pooled: 2 D, with a decoder D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from extractors.configs import PatchConfig
from trainers.batch import Batch, Cells, Part, Pixels, Text, VisualInput
from trainers.models.fusion import FUSIONS, Decoder, GatedLayers
from trainers.models.heads import Classifier, WordHead
from trainers.models.image_towers import ImageTower
from trainers.models.layers import LayerConfig, Pooler, init_bert
from trainers.models.text_towers import TextTower, TextTowerConfig

TEXT, IMAGE, SECOND_IMAGE = 0, 1, 2  # rows of the modality table; the last is NLVR2's
DECODED = 64  # positions of the decoder
ROBERTA, BASE = TextTowerConfig(), LayerConfig()


@dataclass(frozen=True)
class MeterConfig:
    """One METER; the defaults are the published models', with RoBERTa.

    text            the text encoder
    image           the image encoder, out of IMAGE_TOWERS or any of `extract patches`; None: patches come from a cache
    image_dim       width of cached patches, where there is no image encoder
    layer           one layer of the fusion
    fusion          "co-attention" or "merged"
    layers          of each stream's stack, or of the merged one: 6 or 12; 3 with a decoder
    decoder_layers  0: encoder only
    gated           whether the encoders' layers are fused, too (appendix D); not with cached patches
    heads           what it answers, out of HEADS
    answers         of the VQA head
    codes           of the head for masked patches as discrete codes: DALL-E's
    """

    text: TextTowerConfig = ROBERTA
    image: PatchConfig | None = None
    image_dim: int = 768
    layer: LayerConfig = BASE
    fusion: str = "co-attention"
    layers: int = 6
    decoder_layers: int = 0
    gated: bool = False
    heads: tuple[str, ...] = ("mlm", "itm")
    answers: int = 3129
    codes: int = 8192

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise ValueError(f"no fusion is called {self.fusion!r}; choose out of {', '.join(FUSIONS)}")
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ValueError(f"METER has no head {unknown[0]!r}; choose out of {', '.join(HEADS)}")
        if self.gated and self.image is None:
            raise ValueError("a cache holds one layer of the image encoder; give the encoder, or leave out gated")

    @property
    def pooled_dim(self) -> int:
        """E."""
        return self.layer.dim if self.decoder_layers else 2 * self.layer.dim


@dataclass(frozen=True, eq=False)
class Seen(Part):
    """Images as the fusion takes them.

    tokens     (V, L, D)
    mask       (V, L) bool, None where all are real
    has_class  whether the first one is a class token
    """

    tokens: Tensor
    mask: Tensor | None
    has_class: bool


@dataclass(frozen=True, eq=False)
class MeterStates:
    """What the fusion made of a batch.

    text, image            (B, T, D), (B, L, D)
    text_mask, image_mask  (B, T), (B, L) bool, None where all are real
    has_class              whether the first image token is a class token
    """

    text: Tensor
    image: Tensor
    text_mask: Tensor | None
    image_mask: Tensor | None
    has_class: bool

    @property
    def patches(self) -> Tensor:
        """(B, P, D): the image tokens but the class token."""
        return self.image[:, int(self.has_class) :]

    @property
    def masks(self) -> tuple[Tensor | None, Tensor | None]:
        return self.text_mask, self.image_mask


class PatchChoice(nn.Module):
    """Masked patches told from all patches of the batch: by the product with each, without weights."""

    def forward(self, states: Tensor, patches: Tensor) -> Tensor:
        """(M, D) states of masked patches and the batch's (K, D) as `Meter.originals` has them, to (M, K) logits."""
        return states @ patches.T


class Meter(nn.Module):
    """Batches of text and images to states; `pooled` and `heads` turn states into logits.

    Raises:
        ConfigError, WeightsError: an encoder cannot be built, or its weights not be had.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config, layer, dim = config, config.layer, config.layer.dim
        self.text = TextTower(config.text)
        self.image = None if config.image is None else ImageTower(config.image)
        width = config.image_dim if self.image is None else self.image.dim
        self.text_projection, self.image_projection = nn.Linear(self.text.dim, dim), nn.Linear(width, dim)
        self.modality = nn.Embedding(3 if "nlvr2" in config.heads else 2, dim)
        self.fusion = FUSIONS[config.fusion](layer, config.layers)
        words = int(self.text.model.config.vocab_size)
        self.decoder = Decoder(layer, config.decoder_layers, words, DECODED) if config.decoder_layers else None
        self.text_pooler, self.image_pooler = (None if self.decoder else Pooler(dim) for _ in range(2))
        masks = {"patches", "codes"} & set(config.heads) and self.image is None
        self.hidden_patch = nn.Embedding(1, width) if masks else None
        self.text_gates = self.image_gates = None
        if config.gated and self.image is not None:
            self.image.watch()
            depth = int(self.text.model.config.num_hidden_layers)
            self.text_gates = GatedLayers([self.text.dim] * depth, self.text.dim)
            self.image_gates = GatedLayers(self.image.widths, self.image.dim)
        self.heads = nn.ModuleDict({name: HEADS[name](config, words) for name in config.heads})
        self._init()

    def _init(self) -> None:
        """BERT's start for what is new; the encoders bring their own."""
        for name, module in self.named_children():
            if name not in ("text", "image"):
                module.apply(partial(init_bert, std=self.config.layer.std))
        for gates in (self.text_gates, self.image_gates):
            if gates is not None:
                gates.close()

    def checkpoint(self) -> None:
        """While training keep no activations inside layers, of encoders, fusion and decoder: compute them again."""
        self.text.model.gradient_checkpointing_enable()
        if self.image is not None:
            self.image.checkpoint()
        self.fusion.checkpointing = True
        if self.decoder is not None:
            self.decoder.checkpointing = True

    def layout(self, batch: Batch) -> Tensor | None:
        """Which image each text goes with, (B,) int64, where that is not its own; for `Batch.layout`."""
        return None if batch.image_of is None else torch.tensor(batch.image_of)

    def forward(self, batch: Batch, image_type: int = IMAGE, hidden: Tensor | None = None) -> MeterStates:
        """The last layer's states of both streams.

        Args:
            image_type: SECOND_IMAGE for the second image of NLVR2.
            hidden: (V, P) bool: patches that the model must not see (masked patch classification).

        Raises:
            ValueError: the batch has no images, or such as this METER does not read.
        """
        if batch.visual is None:
            raise ValueError("METER needs an image for every text; give it patches or pixels")
        rows = batch.layout if batch.layout is not None else self.layout(batch)
        return self.fuse(batch.text, self.see(batch.visual, image_type, hidden), rows)

    def see(self, visual: VisualInput, image_type: int = IMAGE, hidden: Tensor | None = None) -> Seen:
        """Images through their encoder, or from the cache, and projected."""
        tokens, mask, has_class = self._image_tokens(visual, hidden)
        return Seen(self.image_projection(tokens) + self.modality.weight[image_type], mask, has_class)

    def fuse(self, text: Text, seen: Seen, image_of: Tensor | None = None) -> MeterStates:
        """Texts through their encoder, and both through the fusion; `image_of` as `layout` gives it."""
        image, image_mask = seen.tokens, seen.mask
        if image_of is not None:
            rows = image_of.to(image.device)
            image, image_mask = image[rows], None if image_mask is None else image_mask[rows]
        words = self.text(text) if self.text_gates is None else self.text_gates(self.text.states(text))
        words = self.text_projection(words) + self.modality.weight[TEXT]
        words, image = self.fusion(words, image, text.mask, image_mask)
        return MeterStates(words, image, text.mask, image_mask, seen.has_class)

    def pooled(self, states: MeterStates) -> Tensor:
        """(B, E): the first text token and the image's class token, or mean; with a decoder its class token."""
        if self.decoder is not None:
            return self.decoder.classify((states.text, states.image), states.masks)
        assert self.text_pooler is not None and self.image_pooler is not None
        image = states.image[:, 0] if states.has_class else _mean(states.image, states.image_mask)
        return torch.cat([self.text_pooler(states.text[:, 0]), self.image_pooler(image)], dim=-1)

    def words(self, ids: Tensor, states: MeterStates) -> Tensor:
        """(B, S, D): the decoder's states behind each of the ids (B, S) so far; the MLM head tells the next one."""
        assert self.decoder is not None, "this METER has no decoder; build it with decoder_layers"
        return self.decoder.words(ids, (states.text, states.image), states.masks)

    def originals(self, visual: VisualInput) -> Tensor:
        """(V P, D): every patch as the fusion would get it without modality and masking; no gradient passes."""
        with torch.no_grad():
            tokens, mask, has_class = self._image_tokens(visual, None)
            patches = self.image_projection(tokens[:, int(has_class) :])
            return patches.flatten(0, 1) if mask is None else patches[mask[:, int(has_class) :]]

    def _image_tokens(self, visual: VisualInput, hidden: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """(V, L, width) before the projection, their mask, and whether the first one is a class token."""
        if isinstance(visual, Pixels) and self.image is not None:
            pixels = visual if hidden is None else self._hide(visual, hidden)
            gates = self.image_gates
            return (
                (self.image(pixels) if gates is None else gates(self.image.states(pixels))),
                None,
                self.image.has_class,
            )
        if isinstance(visual, Cells) and self.image_gates is None:
            return self._cached(visual, hidden)
        if isinstance(visual, Pixels):
            raise ValueError("this METER has no image encoder; build it with one, or give cached patches")
        raise ValueError(f"METER reads patches or pixels, not {type(visual).__name__}; use a store of patches")

    def _cached(self, cells: Cells, hidden: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        dtype, mask = self.image_projection.weight.dtype, cells.mask
        tokens = cells.features.to(dtype)
        if hidden is not None:
            assert self.hidden_patch is not None, "only a METER with a head for masked patches can hide some"
            tokens = torch.where(hidden[..., None], self.hidden_patch.weight.to(dtype), tokens)
        if cells.whole_image is None:
            return tokens, mask, False
        mask = None if mask is None else torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        return torch.cat([cells.whole_image[:, None].to(dtype), tokens], dim=1), mask, True

    def _hide(self, pixels: Pixels, hidden: Tensor) -> Pixels:
        """Images with hidden patches of the mean colour."""
        assert self.image is not None
        images, side = self.image.ready(pixels), round(hidden.shape[1] ** 0.5)
        step = self.image.size // side
        covered = hidden.view(-1, side, side).repeat_interleave(step, 1).repeat_interleave(step, 2)
        return Pixels(images.masked_fill(covered[:, None], 0))


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return tokens.mean(1)
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


HEADS: dict[str, Callable[[MeterConfig, int], nn.Module]] = {
    "mlm": lambda c, words: WordHead(c.layer.dim, words, tied=False),  # of text states, or the decoder's
    "itm": lambda c, _: nn.Linear(c.pooled_dim, 2),  # of the pooled state; 1 is a match
    "vqa": lambda c, _: Classifier(c.pooled_dim, 2 * c.layer.dim, c.answers),  # of the pooled state
    "nlvr2": lambda c, _: Classifier(2 * c.pooled_dim, 2 * c.layer.dim, 2),  # of both images' pooled, side by side
    "snli": lambda c, _: Classifier(c.pooled_dim, 2 * c.layer.dim, 3),  # contradiction, neutral, entailment
    "rank": lambda c, _: nn.Linear(c.pooled_dim, 1),  # of the pooled state: how well text and image go together
    "patches": lambda _, __: PatchChoice(),  # of the states of hidden patches
    "codes": lambda c, _: nn.Linear(c.layer.dim, c.codes),  # of the same
}
