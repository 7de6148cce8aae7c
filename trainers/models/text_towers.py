"""Text encoders by name, built by transformers: what METER reads its texts with.

Shapes in this file: B texts, T positions, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trainers.batch import Text
from trainers.models.borrowed import RANDOM, Kind, build

BERT = "google-bert/bert-base-uncased"
TEXT_TOWERS = {
    "bert": Kind("BertConfig", "BertModel", BERT),
    "roberta": Kind(
        "RobertaConfig",
        "RobertaModel",
        "FacebookAI/roberta-base",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "electra": Kind(
        "ElectraConfig",
        "ElectraModel",
        "google/electra-base-discriminator",
        {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        argument={},
    ),
    "albert": Kind(
        "AlbertConfig",
        "AlbertModel",
        "albert/albert-xlarge-v2",
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    ),
    "deberta": Kind(
        "DebertaConfig",
        "DebertaModel",
        "microsoft/deberta-base",
        {
            "vocab_size": 50265,
            "type_vocab_size": 0,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
        },
        argument={},
        flat=True,
    ),
    "clip": Kind("CLIPTextConfig", "CLIPTextModel", "openai/clip-vit-base-patch32", argument={}, flat=True),
    "embeddings": Kind("BertConfig", "BertModel", BERT, always={"num_hidden_layers": 0}),
}


@dataclass(frozen=True)
class TextTowerConfig:
    """One text encoder.

    name      out of TEXT_TOWERS; "embeddings" is BERT's embeddings alone
    weights   a folder or a name on the hub, or random:SEED; None: the published base model's, of ALBERT xlarge's
    settings  of transformers' configuration, for random weights, where they differ from the published model's
    """

    name: str = "roberta"
    weights: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in TEXT_TOWERS:
            raise ValueError(f"no text encoder is called {self.name!r}; choose out of {', '.join(TEXT_TOWERS)}")
        if self.settings and not str(self.weights).startswith(RANDOM):
            raise ValueError("settings would contradict the weights; leave them out, or take the weights random:0")


class TextTower(nn.Module):
    """Texts to the states of an encoder's layers.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.kind = TEXT_TOWERS[config.name]
        model: Any = build(self.kind, config.weights, config.settings)
        self.model, self.dim = model, int(model.config.hidden_size)

    def forward(self, text: Text) -> Tensor:
        """(B, T, D): the last layer."""
        last: Tensor = self._run(text).last_hidden_state
        return last

    def states(self, text: Text) -> tuple[Tensor, ...]:
        """The embeddings and every layer, (B, T, D) each, the last one as of `forward`."""
        found = self._run(text, output_hidden_states=True)
        return (*found.hidden_states[:-1], found.last_hidden_state)

    def _run(self, text: Text, **settings: Any) -> Any:
        mask = text.mask
        if mask is not None and not self.kind.flat:
            mask = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        return self.model(input_ids=text.ids, attention_mask=mask, **settings)
