"""Models of transformers, by name and with weights from where they are said to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from extractors.towers import HUB, seeded
from extractors.weights import WeightsError, find_weights
from storage.interop.unpickling import first_line

RANDOM = "random:"


@dataclass(frozen=True)
class Kind:
    """A model's classes in transformers, and its published weights.

    settings  of its configuration that differ from the class's defaults, as published
    always    settings that hold with any weights
    argument  what its constructor takes, so that no unused pooler is built
    flat      True where it makes the mask that attention takes by itself; the others get it made, which asks nothing of
              the device
    """

    config: str
    model: str
    published: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    argument: Mapping[str, Any] = field(default_factory=lambda: {"add_pooling_layer": False})
    flat: bool = False


def build(kind: Kind, weights: str | None, settings: Mapping[str, Any]) -> nn.Module:
    """A model of transformers: with random weights (random:SEED), those of a folder or hub name, or the published ones.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """
    import transformers

    if weights is None or not weights.startswith(RANDOM):
        return _loaded(kind, weights or kind.published)
    with seeded(int(find_weights(weights).origin.removeprefix(RANDOM))):
        shape = getattr(transformers, kind.config)(**{**kind.settings, **settings, **kind.always})
        model: nn.Module = getattr(transformers, kind.model)(shape, **kind.argument)
    return model


def _loaded(kind: Kind, source: str) -> nn.Module:
    import transformers

    local = Path(source).expanduser().is_dir()
    try:
        shape = transformers.AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        shape = getattr(shape, "text_config", shape)
        wanted = getattr(transformers, kind.config).model_type
        if shape.model_type != wanted:
            raise WeightsError(f"{source} is a {shape.model_type}, not a {wanted}; choose the model that it is of")
        for name, value in kind.always.items():
            setattr(shape, name, value)
        model, report = getattr(transformers, kind.model).from_pretrained(
            source,
            config=shape,
            use_safetensors=True,
            local_files_only=local,
            output_loading_info=True,
            **kind.argument,
        )
    except WeightsError:
        raise
    except Exception as error:  # hubs and damaged files raise nearly any type
        where = "the folder" if local else HUB
        raise WeightsError(
            f"{kind.model} {source} cannot be loaded from {where} ({first_line(error)}); give a folder with "
            "config.json and model.safetensors, or the weights random:0 for trying things out."
        ) from error
    missing = sorted({*report["missing_keys"], *(each[0] for each in report["mismatched_keys"])})
    if missing:
        raise WeightsError(
            f"{source}: {len(missing)} tensors of {kind.model} are missing, or of another shape, the first is "
            f"{missing[0]}; give the weights of this model."
        )
    built: nn.Module = model.float()
    return built
