"""What a Grid-VLP or PixelBERT starts from: BERT, and a published grid network. No checkpoint of either is public."""

from __future__ import annotations

from extractors.configs import GRID_PREFIX
from extractors.weights import PUBLISHED, find_weights
from extractors.weights import fill as fill_network
from trainers.models.checkpoints import BERT_LAYERS, OURS, TEXT, TWIN, WORD_HEAD, LoadReport, Rules, drop_twins, fill
from trainers.models.grid_vlp import GridNetwork, GridVLP
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


def start_grid_vlp(model: GridVLP, source: Source) -> LoadReport:
    """A Grid-VLP or PixelBERT of ours as the start of another task: heads are new; the network for pixels may be new,
    or left out. Errors as of `fill`."""
    other = (r"^heads\.", r"^network\.")
    return fill(model, source, OURS, other, other)


def load_grid_network(network: GridNetwork, weights: str) -> str:
    """Put a grid network's weights into the model's, as `extract grid --weights WEIGHTS` would.

    Args:
        weights: a file in detectron2's names, one of the published names (`grid-r50`, ...), or random:SEED.

    Returns:
        the SHA-256 of its tensors, which a store of the same network tells, too.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    checkpoint = find_weights(weights, fitting=[name for name in PUBLISHED if name.startswith(GRID_PREFIX)])
    return fill_network(network, checkpoint, "the grid network")
