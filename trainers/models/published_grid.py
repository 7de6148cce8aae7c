"""What a Grid-VLP or PixelBERT starts from: BERT, and a published grid network. No checkpoint of either is public."""

from __future__ import annotations

from extractors.networks import GRID_PREFIX
from extractors.weights import fill as fill_network
from extractors.weights import find_weights
from trainers.models.checkpoints import BERT_LAYERS, TEXT, TWIN, WORD_HEAD, LoadReport, Rules, drop_twins, fill
from trainers.models.grid_vlp import GridVLP
from trainers.models.published import COUNTERS, Source

_BERT = (
    (r"^bert\.", ""),
    (r"^embeddings\.", "text.embeddings."),
    *TEXT,
    (r"^text\.embeddings\.", "text."),
    *BERT_LAYERS,
    *WORD_HEAD,
    (r"^cls\.predictions\.decoder\.weight$", f"{TWIN}text.word.weight"),
    (r"^cls\.predictions\.decoder\.bias$", f"{TWIN}heads.mlm.bias"),
    (r"^cls\.predictions\.", "heads.mlm."),
)


def start_grid_vlp_from_bert(model: GridVLP, source: Source) -> LoadReport:
    """BERT (old or new names) as the start of a Grid-VLP: its second segment becomes the images' modality; what else
    has to do with images stays new. Errors as of `fill`."""
    new = (r"^heads\.", r"^network\.", r"^(cell|row|column|visual_norm)\.")
    return fill(model, source, Rules(_BERT, COUNTERS), new, (r"^cls\.",), [drop_twins])


def load_grid_network(model: GridVLP, name: str, weights: str | None = None) -> str:
    """Put a grid network's weights into the model's, as `extract grid --model NAME --weights WEIGHTS` would.

    Returns:
        the SHA-256 of its tensors, which a store of the same network tells, too.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    assert model.network is not None, "this Grid-VLP has no network; build it with a body"
    published = f"{GRID_PREFIX}{name}"
    checkpoint = find_weights(weights or published, fitting=(published,))
    return fill_network(model.network, checkpoint, f"grid network {name}")
