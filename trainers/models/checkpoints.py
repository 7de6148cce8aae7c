"""Checkpoints of others in, our own out: rename tables, what did not fit, and safetensors.

A loader never drops or makes up a tensor in silence. `LoadReport` tells, in the names of the file or of the model:
what the model has and the file lacks, what the file has and the model has no use for, shapes that differ, and what was
interpolated or derived; whatever the caller did not expect of it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from extractors.weights import Tensors, WeightsError, read_checkpoint
from storage.atomic import partial_path, publish

Renames = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors.

    source      where they came from
    loaded      how many of the model's tensors were filled from it
    missing     the model's, which the file lacks: they keep their start
    unexpected  the file's, which the model has no use for
    reshaped    the model's name, the file's shape, the model's: not loaded
    changed     one line each for what was interpolated, copied or cut on the way
    other       the file's, which are for features of another network: they can be fitted to the model's, not loaded
    """

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    changed: tuple[str, ...] = ()
    other: Mapping[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = [f"{name} {list(found)} for {list(wanted)}" for name, found, wanted in self.reshaped]
        parts = {"missing": self.missing, "unexpected": self.unexpected, "reshaped": shapes, "changed": self.changed}
        told = [f"{len(names)} {what} ({listed(names)})" for what, names in parts.items() if names]
        return f"{self.source}: {self.loaded} tensors loaded" + "".join(f"; {each}" for each in told)


@dataclass(frozen=True)
class Rules:
    """How a family of checkpoints becomes one of our models.

    renames   patterns and replacements (re.sub), each applied once to every name, in order
    ignored   patterns of names that hold nothing to keep: counters, position ids
    copies    (from, to), in our names: where the file has no `to` and the model wants it, it gets a copy of `from`
    """

    renames: Renames
    ignored: Sequence[str] = ()
    copies: Sequence[tuple[str, str]] = ()

    def apply(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """The tensors in our names."""
        kept = {name: tensor for name, tensor in tensors.items() if not _matches(name, self.ignored)}
        return {self.rename(name): tensor for name, tensor in kept.items()}

    def rename(self, name: str) -> str:
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


Adjust = Callable[[Tensors, Mapping[str, Tensor]], list[str]]


def fill(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    rules: Rules,
    new: Sequence[str] = (),
    unused: Sequence[str] = (),
    adjust: Sequence[Adjust] = (),
) -> LoadReport:
    """Put a checkpoint into a model.

    Args:
        source: a file (as of `extractors.weights.read_checkpoint`), or its tensors.
        new: patterns of the model's names that the file may lack; they stay as they are.
        unused: patterns of the file's names that the model may have no use for.
        adjust: each is given the renamed tensors, to change in place, and the model's; it returns what it did.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape beyond what `new` and `unused` allow; the
            message is the report.
    """
    name, tensors = ("tensors", source) if isinstance(source, Mapping) else (str(source), _read(Path(source)))
    kept = {each: tensor for each, tensor in tensors.items() if not _matches(each, rules.ignored)}
    official = {rules.rename(each): each for each in kept}
    found = rules.apply(kept)
    wanted = model.state_dict()
    changed = [
        _copy(found, *pair) for pair in rules.copies if pair[1] in wanted and pair[1] not in found and pair[0] in found
    ]
    for change in adjust:
        changed += change(found, wanted)
    shapes = [
        (each, tuple(found[each].shape), tuple(wanted[each].shape))
        for each in sorted(found.keys() & wanted.keys())
        if found[each].shape != wanted[each].shape
    ]
    fitting = {each: found[each] for each in found.keys() & wanted.keys() - {each for each, *_ in shapes}}
    report = LoadReport(
        name,
        len(fitting),
        tuple(sorted(wanted.keys() - found.keys())),
        tuple(sorted(official.get(each, each) for each in found.keys() - wanted.keys())),
        tuple(shapes),
        tuple(changed),
    )
    if not fitting and wanted:
        first, ours = (f"{min(names)!r}" if names else "nothing" for names in (kept, wanted))
        raise WeightsError(
            f"none of the {len(kept)} tensors is of this model: they begin with {first}, the model's with {ours}; "
            "choose a checkpoint of it"
        )
    if (
        shapes
        or not all(_matches(each, new) for each in report.missing)
        or not all(_matches(each, unused) for each in report.unexpected)
    ):
        raise WeightsError(
            f"this checkpoint does not fit the model; choose the configuration it was made for: {report}"
        )
    model.load_state_dict({**wanted, **fitting})
    return report


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model's tensors, in our names, as safetensors; `fill` with OURS reads them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = partial_path(Path(path))
    save_file(tensors, partial)
    publish(partial, Path(path))


def drop_twins(found: Tensors, _: Mapping[str, Tensor]) -> list[str]:
    """Take off second copies, renamed to `twin.` and the name of the first.

    Raises:
        WeightsError: a copy is not equal: the file is of another model.
    """
    for name in [each for each in found if each.startswith(TWIN)]:
        first = found.get(name.removeprefix(TWIN))
        if first is None or not torch.equal(found.pop(name), first):
            raise WeightsError(
                f"{name.removeprefix(TWIN)} differs from its second copy in the file; is it of this model?"
            )
    return []


OURS = Rules(())
TWIN = "twin."
NAMED = 6  # tensors that a line names

# BERT's names, in every model that has its layers.
BERT_LAYERS: Renames = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"encoder\.layer\.(\d+)\.", r"encoder.\1."),
    (r"\.attention\.self\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.crossattention\.self\.", ".cross."),
    (r"\.crossattention\.output\.dense\.", ".cross.out."),
    (r"\.crossattention\.output\.LayerNorm\.", ".cross_norm."),
    (r"(\.\d+)\.intermediate\.dense\.", r"\1.mlp.up."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.down."),
    (r"(\.\d+)\.output\.LayerNorm\.", r"\1.mlp_norm."),
)
# The head of masked words, whatever it is called.
WORD_HEAD: Renames = ((r"\.transform\.LayerNorm\.", ".transform.norm."),)
# Embeddings of text.
TEXT: Renames = (
    (r"embeddings\.word_embeddings\.", "embeddings.word."),
    (r"embeddings\.position_embeddings\.", "embeddings.position."),
    (r"embeddings\.token_type_embeddings\.", "embeddings.segment."),
    (r"embeddings\.LayerNorm\.", "embeddings.norm."),
)
# torchvision's ResNet to the bodies of extractors/resnet.py.
RESNET: Renames = (
    (r"backbone\.conv1\.", "backbone.stem.conv1."),
    (r"backbone\.bn1\.", "backbone.stem.conv1.norm."),
    (r"backbone\.layer1\.", "backbone.res2."),
    (r"backbone\.layer2\.", "backbone.res3."),
    (r"backbone\.layer3\.", "backbone.res4."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def listed(names: Iterable[str]) -> str:
    """Names with commas between; of many the first ones."""
    names = list(names)
    return ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])


def _copy(found: Tensors, source: str, target: str) -> str:
    found[target] = found[source].clone()
    return f"{target} copied from {source}"


def _read(path: Path) -> Tensors:
    tensors = read_checkpoint(path).tensors
    assert tensors is not None
    return tensors


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
