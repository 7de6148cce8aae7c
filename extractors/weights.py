"""Where a network's weights come from: published names, files, `random:SEED`, and the containers they lie in.

Every container ends as one flat mapping of detectron2's tensor names to float32 tensors. Nothing is unpickled that
could run code, and nothing that is missing is made up.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from extractors.torch_files import load_plain, load_tensors
from storage.errors import TriptychError, did_you_mean
from storage.interop.unpickling import PlainUnpickler, first_line

Tensors = dict[str, Tensor]
NORM_EPS = 1e-5  # of every norm: a variance that is not above what it makes up for has no root


class WeightsError(TriptychError):
    """Weights that are missing, unreadable, or of another network."""


@dataclass(frozen=True)
class Published:
    """A checkpoint somebody published: its file, where to download it, and the page that links it."""

    file: str
    url: str | None
    page: str


_GRID = "https://dl.fbaipublicfiles.com/grid-feats-vqa"
_GRID_PAGE = "github.com/facebookresearch/grid-feats-vqa"
_BUA_PAGE = "github.com/MILVLG/bottom-up-attention.pytorch (its README links a file share)"
_PY_PAGE = "github.com/airsplay/py-bottom-up-attention"
PUBLISHED = {
    "grid-r50": Published("R-50.pth", f"{_GRID}/R-50/R-50.pth", _GRID_PAGE),
    "grid-x101": Published("X-101.pth", f"{_GRID}/X-101/X-101.pth", _GRID_PAGE),
    "grid-x152": Published("X-152.pth", f"{_GRID}/X-152/X-152.pth", _GRID_PAGE),
    "grid-x152pp": Published("X-152pp.pth", f"{_GRID}/X-152pp/X-152pp.pth", _GRID_PAGE),
    "butd-r101": Published("bua-caffe-frcn-r101-k10-100.pth", None, _BUA_PAGE),
    "butd-r101-k36": Published("bua-caffe-frcn-r101-k36.pth", None, _BUA_PAGE),
    "butd-r101-py": Published(
        "faster_rcnn_from_caffe_attr.pkl", "http://nlp.cs.unc.edu/models/faster_rcnn_from_caffe_attr.pkl", _PY_PAGE
    ),
    "butd-r101-py-10-100": Published(
        "faster_rcnn_from_caffe_attr_original.pkl",
        "http://nlp.cs.unc.edu/models/faster_rcnn_from_caffe_attr_original.pkl",
        _PY_PAGE,
    ),
}

VOCABULARY_KEY = "vocabulary"  # in a safetensors file's metadata: {"classes": [...], "attributes": [...]} as JSON
SAFETENSORS = ".safetensors"
SHIPPED_FOLDER = Path(__file__).parent / "shipped"  # small detectors that come with the package, known by their names

# MILVLG/bottom-up-attention.pytorch names three layers otherwise than airsplay/py-bottom-up-attention.
_RENAMES = {
    "roi_heads.box_predictor.cls_embed.": "roi_heads.box_predictor.cls_embedding.",
    "roi_heads.box_predictor.attr_linear1.": "roi_heads.box_predictor.fc_attr.",
    "roi_heads.box_predictor.attr_linear2.": "roi_heads.box_predictor.attr_score.",
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights as found. `tensors` is None for random ones, which are made when the network is known.

    origin       "checkpoint" or "random:SEED"; part of the spec, so that random features are never taken for real ones
    description  where they came from, for people
    is_reference True for a folder of tiny official weights, whose widths differ from the published network's
    upstream     name of the official config they were made with, where a reference folder says it
    by_suffix    True where the file leaves names to detectron2's matching by suffix
    vocabulary   "classes" and "attributes" by id, where the file names them: those that `triptych train-detector` wrote
    """

    origin: str
    description: str
    tensors: Tensors | None
    is_reference: bool = False
    upstream: str = ""
    by_suffix: bool = False
    vocabulary: dict[str, list[str]] | None = None

    @property
    def has_own_widths(self) -> bool:
        """Whether the network's widths are read off the file, and not those of the published one."""
        return self.tensors is not None and (self.is_reference or self.vocabulary is not None)


def find_weights(weights: str, fitting: Sequence[str] = tuple(PUBLISHED)) -> Checkpoint:
    """Read what `--weights` names.

    Args:
        weights: a file, a published name, `reference:FOLDER`, or `random:SEED`.
        fitting: published names of the network at hand.

    Raises:
        WeightsError: with what was found and where to put the file.
    """
    kind, _, rest = weights.partition(":")
    if kind == "random":
        return Checkpoint(f"random:{_seed(rest)}", f"random numbers, seed {rest}: for trying things out", None)
    if kind == "reference":
        path = Path(rest) / "weights.safetensors"
        if not path.is_file():
            raise WeightsError(f"reference:{rest} needs the file {path}; give a folder that holds weights.safetensors.")
        tensors = _named(_read_safetensors(path))
        return Checkpoint("checkpoint", str(path), tensors, is_reference=True, upstream=_upstream(path.parent))
    if weights in PUBLISHED and weights not in fitting:
        raise WeightsError(f"the weights {weights!r} are of another network; this one takes {' or '.join(fitting)}.")
    path = _file_of(weights)
    if not path.is_file():
        names = sorted([*PUBLISHED, *(file.stem for file in SHIPPED_FOLDER.glob(f"*{SAFETENSORS}"))])
        raise WeightsError(
            f"--weights {weights}: no such file, and not a published name ({', '.join(names)}); give a file, one of "
            f"those names, or random:SEED for trying things out{did_you_mean(weights, [*names, 'random:0'])}"
        )
    return read_checkpoint(path)


def shipped_file(weights: str) -> Path | None:
    """Where weights lie that come with the package; None where these are none."""
    path = SHIPPED_FOLDER / f"{weights}{SAFETENSORS}"
    return path if "/" not in weights and path.is_file() else None


def _file_of(weights: str) -> Path:
    shipped = shipped_file(weights)
    if shipped is not None:
        return shipped
    return _published_file(weights) if weights in PUBLISHED else Path(weights).expanduser()


def _upstream(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Path(config["upstream"]["config"]).stem
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.safetensors`, `.pth`/`.pt`/`.bin` (torch.save) or `.pkl` (detectron2, Caffe2 style) file.

    Of `.ckpt` (Lightning) and `.model` (VL-BERT) files, also torch.save's, the model's tensors are taken alone.

    Raises:
        WeightsError: the file is of another kind, damaged, or holds objects that only code could rebuild.
    """
    by_suffix, vocabulary = False, None
    if path.suffix == SAFETENSORS:
        tensors, vocabulary = _read_safetensors(path), read_vocabulary(path)
    elif path.suffix in (".pth", ".pt", ".bin"):
        tensors = _read_torch(path, load_plain)
    elif path.suffix in (".ckpt", ".model"):
        tensors = _read_torch(path, load_tensors)
    elif path.suffix == ".pkl":
        tensors, by_suffix = _read_pickle(path)
    else:
        raise WeightsError(f"{path}: weights of kind {path.suffix!r} are not read; give .pth, .pkl or .safetensors.")
    return Checkpoint("checkpoint", str(path), _named(tensors), by_suffix=by_suffix, vocabulary=vocabulary)


def read_vocabulary(path: Path) -> dict[str, list[str]] | None:
    """The names of classes and attributes in the metadata of a safetensors file; None where it has none.

    Raises:
        WeightsError: they are there, and are no lists of names.
    """
    with safe_open(path, "pt") as file:
        content = (file.metadata() or {}).get(VOCABULARY_KEY)
    if content is None:
        return None
    try:
        found = json.loads(content)
        names = {kind: [str(each) for each in found[kind]] for kind in ("classes", "attributes")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: its metadata name no classes and attributes; get the file anew.") from error
    return names


def weights_folder() -> Path:
    """Where downloaded weights are kept: $TRIPTYCH_WEIGHTS, or ~/.cache/triptych/weights."""
    return Path(os.environ.get("TRIPTYCH_WEIGHTS", "~/.cache/triptych/weights")).expanduser()


def fill(module: nn.Module, checkpoint: Checkpoint, what: str) -> str:
    """Put a checkpoint's tensors into a network, strictly: all that it needs, in its shapes.

    Args:
        what: the network's name, for messages.

    Returns:
        SHA-256 of the tensors the network now holds: equal for equal weights, whatever container they came in.

    Raises:
        WeightsError: a tensor is missing, of another shape, or holds what no such tensor can.
    """
    if checkpoint.tensors is None:
        randomise(module, _seed(checkpoint.origin.partition(":")[2]))
        return tensors_sha256(module)
    found = dict(checkpoint.tensors)
    wanted = module.state_dict()
    if checkpoint.by_suffix:
        found = match_suffixes(found, wanted)
    # Anchors are a rule, not a weight: an export without them means the variant's own, which the network has. Counters
    # of training batches, which `_named` drops, have no use here.
    optional = {name for name in wanted if "cell_anchors" in name or name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - found.keys() - optional)
    if missing:
        raise WeightsError(
            f"{checkpoint.description} does not fit {what}: {len(missing)} of {len(wanted)} tensors are missing, "
            f"the first is {missing[0]}; choose the --model these weights were made for."
        )
    parts = {name.partition(".")[0] for name in wanted}
    surplus = sorted(name for name in found if name not in wanted and name.partition(".")[0] in parts)
    if surplus:
        raise WeightsError(
            f"{checkpoint.description} does not fit {what}: {len(surplus)} tensors have no place in it, the first is "
            f"{surplus[0]}; choose the --model these weights were made for."
        )
    for name in wanted.keys() & found.keys():
        if found[name].shape != wanted[name].shape:
            raise WeightsError(
                f"{checkpoint.description} does not fit {what}: {name} is {list(found[name].shape)}, "
                f"{list(wanted[name].shape)} was wanted; choose the --model (and --width-divisor) it was made for."
            )
        if not bool(found[name].isfinite().all()):
            raise WeightsError(f"{checkpoint.description}: {name} holds values that are no numbers; get the file anew.")
        if name.endswith("running_var") and bool((found[name] + NORM_EPS <= 0).any()):
            raise WeightsError(
                f"{checkpoint.description}: {name} holds variances below zero, {float(found[name].min()):g} the least; "
                "get the file anew."
            )
    module.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})
    return tensors_sha256(module)


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Fill a network with seeded numbers whose activations stay within float16's range at any depth.

    Convolutions and linear layers get He's scale; the last normalisation of each residual branch is damped, since
    without it 50 blocks would multiply the activations by 2 ** 25. The stem brings pixels of +-128 to about one.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            torch.nn.init.normal_(layer.weight, 0.0, _he(layer), generator=generator)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            torch.nn.init.normal_(layer.weight, 0.0, 1.0, generator=generator)
        elif weight is not None and name.endswith("conv3.norm"):
            weight.fill_(0.2)
        elif weight is not None and name.endswith("stem.conv1.norm"):
            weight.fill_(1 / 64)


def tensors_sha256(module: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _he(layer: nn.Conv2d | nn.Linear) -> float:
    return math.sqrt(2 / layer.weight[0].numel())


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:  # torch takes 63 bits
        found = text if len(text) < 30 else f"{len(text)} characters"
        raise WeightsError(
            f"random weights need a seed, a number from 0 up of at most 18 digits; found {found!r}; write random:0."
        )
    return int(text)


def _published_file(name: str) -> Path:
    published = PUBLISHED[name]
    path = weights_folder() / published.file
    if path.is_file():
        return path
    how = f"Get it from {published.page} and put it at {path}, or pass --weights FILE (in training: --start-network)."
    if published.url is None:
        raise WeightsError(f"the weights {name!r} are not on this machine and have no direct download. {how}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path))
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"the weights {name!r} could not be downloaded from {published.url} ({reason}). {how}"
        ) from error
    return path


def _read_safetensors(path: Path) -> Tensors:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}).") from error


def _read_torch(path: Path, load: Callable[[Path], Any]) -> Tensors:
    try:
        _check_unpacked(path)
        content = load(path)
    except Exception as error:  # damaged pickles raise nearly any type, from KeyError to struct.error
        raise WeightsError(
            f"{path} is not a checkpoint of plain tensors, or is damaged; nothing else is unpickled."
        ) from error
    state = _state_of(content, path)
    versions = getattr(state, "_metadata", None) or {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        _check_whole(path, name, tensor)
    return _undo_old_frozen_norms(tensors, versions)


def _check_unpacked(path: Path) -> None:
    """torch.save compresses nothing: a file whose parts are larger than itself was made to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"its parts unpack to {unpacked:,} bytes")


def _check_whole(path: Path, name: str, tensor: Tensor) -> None:
    """A tensor may say that one stored number stands for a thousand million; to convert it would make them all."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{path}: {name!r:.80} is no dense tensor that the file holds whole; save it again as one.")


def _undo_old_frozen_norms(tensors: Tensors, versions: Mapping[str, Any]) -> Tensors:
    """detectron2 `layers/batch_norm.py`: FrozenBatchNorm2d before version 3 stored running_var with eps added."""
    for name in tensors:
        layer, _, last = name.rpartition(".")
        version = (versions.get(layer) or {}).get("version")
        frozen = f"{layer}.num_batches_tracked" not in tensors
        if last == "running_var" and frozen and version is not None and version < 3:
            tensors[name] = tensors[name] - 1e-5
    return tensors


def _read_pickle(path: Path) -> tuple[Tensors, bool]:
    try:
        content = PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        state = _state_of(content, path)
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        tensors = {name: torch.from_numpy(np.asarray(value, order="C")) for name, value in arrays.items()}
    except WeightsError:
        raise
    except Exception as error:  # as above
        raise WeightsError(
            f"{path} is not a pickle of plain arrays ({first_line(error)}); nothing else is unpickled."
        ) from error
    return tensors, isinstance(content, dict) and bool(content.get("matching_heuristics"))


def _state_of(content: Any, path: Path) -> Mapping[str, Any]:
    state = content.get("model", content.get("state_dict", content)) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise WeightsError(f"{path} holds {type(content).__name__}, not a mapping of names to tensors.")
    return state


def _named(tensors: Tensors) -> Tensors:
    """Names as the networks here use them; floats as float32; training's counters dropped."""
    named = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        for old, new in _RENAMES.items():
            name = name.replace(old, new)
        if not name.endswith("num_batches_tracked"):
            named[name] = tensor.float() if tensor.is_floating_point() else tensor
    return named


def match_suffixes(found: Tensors, wanted: Mapping[str, Tensor]) -> Tensors:
    """detectron2's `matching_heuristics`: a name fits the wanted name that ends with it, the longest wins."""
    matched = {}
    for name in wanted:
        fits = [other for other in found if name == other or name.endswith(f".{other}")]
        if fits:
            matched[name] = found[max(fits, key=len)]
    return matched
