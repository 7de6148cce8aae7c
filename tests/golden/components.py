"""Checks folders of parts without weights, which name no project: what they hold tells whose parts they are."""

from __future__ import annotations

from tests.golden import meter, vl_bert
from tests.golden.compare import CannotCheckError, Folder, Report


def check(folder: Folder, report: Report) -> None:
    """VL-BERT's geometry and RoIAlign, or METER's resized positions."""
    kinds = {"boxes6": vl_bert.check_components, "clip_pos_embed_4x4": meter.check_components}
    known = [kind for name, kind in kinds.items() if name in folder.inputs]
    if len(known) != 1:
        raise CannotCheckError(f"{folder.inputs.path} holds none of {', '.join(kinds)}, or several.")
    known[0](folder, report)
