"""Every container of the same weights gives the same network; no file runs anything, and nothing is made up."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from extractors.weights import (
    PUBLISHED,
    WeightsError,
    fill,
    find_weights,
    randomise,
    read_checkpoint,
    tensors_sha256,
    weights_folder,
)
from storage import TriptychError


class Network(nn.Module):
    """A convolution, a frozen norm and a plain one, named as in detectron2's files."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.backbone.stem.conv1.norm = FrozenBatchNorm2d(4)
        self.roi_heads = nn.Module()
        self.roi_heads.cls_score = nn.Linear(4, 2)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights of `Network`, none of them zero or one."""
    network, generator = Network(), torch.Generator().manual_seed(seed)
    return {name: torch.rand(each.shape, generator=generator) + 0.1 for name, each in network.state_dict().items()}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors(seed).items()}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def pickled(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def as_safetensors(folder: Path) -> Path:
    save_file(tensors(), folder / "w.safetensors")
    return folder / "w.safetensors"


def as_python_2_pickle(folder: Path) -> Path:
    """As Python 2 wrote arrays: numpy's old module, and the bytes as a text of latin-1."""
    data = pickle.dumps({"model": arrays(), "__author__": "x"}, protocol=2)
    for module in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(b"c" + module + b"\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n_reconstruct" in data and b"c_codecs\nencode" in data
    (folder / "w.pkl").write_bytes(data)
    return folder / "w.pkl"


def as_zero_based_text(folder: Path) -> Path:
    """A protocol 0 file spells everything as text."""
    return pickled(folder / "w.pkl", {"model": arrays()}, protocol=0)


CONTAINERS: dict[str, Callable[[Path], Path]] = {
    "safetensors": as_safetensors,
    "pth with a model": lambda to: saved(to / "w.pth", {"model": tensors(), "optimizer": {"lr": 0.1}, "iteration": 9}),
    "bare pth": lambda to: saved(to / "w.pth", tensors()),
    "pt": lambda to: saved(to / "w.pt", OrderedDict(tensors())),
    "legacy bin": lambda to: saved(to / "w.bin", tensors(), _use_new_zipfile_serialization=False),
    "pth of a wrapped network": lambda to: saved(to / "w.pth", {f"module.{k}": v for k, v in tensors().items()}),
    "pth in double": lambda to: saved(to / "w.pth", {k: v.double() for k, v in tensors().items()}),
    "pth with strided tensors": lambda to: saved(
        to / "w.pth", {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in tensors().items()}
    ),
    "pth with counters": lambda to: saved(to / "w.pth", tensors() | {"a.num_batches_tracked": torch.tensor(7)}),
    "pkl": lambda to: pickled(to / "w.pkl", {"model": arrays(), "__author__": "somebody"}),
    "bare pkl": lambda to: pickled(to / "w.pkl", arrays()),
    "pkl of protocol 5": lambda to: pickled(to / "w.pkl", {"model": arrays()}, protocol=5),
    "pkl of protocol 0": as_zero_based_text,
    "pkl of Python 2": as_python_2_pickle,
    "pkl in column order": lambda to: pickled(to / "w.pkl", {k: np.asfortranarray(v) for k, v in arrays().items()}),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_equal_weights_give_equal_networks_whatever_container_they_come_in(
    container: Callable[[Path], Path], tmp_path: Path
) -> None:
    reference = Network()
    reference.load_state_dict(tensors())
    network = Network()
    checkpoint = find_weights(str(container(tmp_path)))
    digest = fill(network, checkpoint, "network")
    assert digest == tensors_sha256(reference)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors()[name]), name
    assert checkpoint.origin == "checkpoint" and checkpoint.description.startswith(str(tmp_path))


def test_a_scalar_keeps_its_shape(tmp_path: Path) -> None:
    path = pickled(tmp_path / "w.pkl", {"scale": np.array(1.5, np.float32)})
    assert read_checkpoint(path).tensors["scale"].shape == ()


def test_the_digest_tells_weights_apart() -> None:
    network = Network()
    network.load_state_dict(tensors())
    before = tensors_sha256(network)
    with torch.no_grad():
        network.roi_heads.cls_score.bias[1] += 1e-6
    assert tensors_sha256(network) != before


# Old frozen norms stored running_var with eps added; the version in the file's metadata tells.


def with_versions(state: dict[str, Tensor], versions: dict[str, int]) -> OrderedDict[str, Tensor]:
    ordered = OrderedDict(state)
    ordered._metadata = OrderedDict({name: {"version": version} for name, version in versions.items()})  # type: ignore[attr-defined]
    return ordered


NORM = "backbone.stem.conv1.norm"


@pytest.mark.parametrize(("version", "undone"), [(1, True), (2, True), (3, False), (None, False)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_frozen_norms_lose_the_eps_that_was_added(
    tmp_path: Path, version: int | None, undone: bool, prefix: str
) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in tensors().items()}
    versions = {} if version is None else {f"{prefix}{NORM}": version}
    path = saved(tmp_path / "w.pth", {"model": with_versions(state, versions)})
    found = read_checkpoint(path).tensors[f"{NORM}.running_var"]
    torch.testing.assert_close(found, tensors()[f"{NORM}.running_var"] - (1e-5 if undone else 0), rtol=0, atol=1e-9)


def test_plain_norms_keep_theirs(tmp_path: Path) -> None:
    state = tensors() | {f"{NORM}.num_batches_tracked": torch.tensor(3)}
    path = saved(tmp_path / "w.pth", with_versions(state, {NORM: 2}))
    assert torch.equal(read_checkpoint(path).tensors[f"{NORM}.running_var"], tensors()[f"{NORM}.running_var"])


# Names.


def test_names_are_matched_by_suffix_where_the_file_asks_for_it(tmp_path: Path) -> None:
    short = {"stem.conv1.weight": "backbone.stem.conv1.weight", "cls_score.weight": "roi_heads.cls_score.weight"}
    content = {name: arrays()[long] for name, long in short.items()}
    content |= {name: array for name, array in arrays().items() if name not in short.values()}
    plain = pickled(tmp_path / "plain.pkl", {"model": content})
    heuristic = pickled(tmp_path / "heuristic.pkl", {"model": content, "matching_heuristics": True})
    with pytest.raises(WeightsError, match=r"2 of 7 tensors are missing, the first is backbone\.stem\.conv1\.weight"):
        fill(Network(), read_checkpoint(plain), "network")
    network = Network()
    fill(network, read_checkpoint(heuristic), "network")
    assert all(torch.equal(tensor, tensors()[name]) for name, tensor in network.state_dict().items())


def test_of_several_matching_suffixes_the_longest_wins_and_half_words_do_not_match(tmp_path: Path) -> None:
    content = arrays()
    right = content.pop("roi_heads.cls_score.bias")
    content |= {"bias": right + 1, "cls_score.bias": right, "score.bias": right + 2}
    network = Network()
    fill(network, read_checkpoint(pickled(tmp_path / "w.pkl", {"model": content, "matching_heuristics": True})), "it")
    assert np.array_equal(network.roi_heads.cls_score.bias.detach(), right)


def test_the_layers_that_milvlg_names_otherwise_get_our_names(tmp_path: Path) -> None:
    theirs = ["cls_embed.weight", "attr_linear1.weight", "attr_linear1.bias", "attr_linear2.weight", "cls_score.bias"]
    ours = ["cls_embedding.weight", "fc_attr.weight", "fc_attr.bias", "attr_score.weight", "cls_score.bias"]
    prefix = "roi_heads.box_predictor."
    path = saved(tmp_path / "w.pth", {"model": {f"module.{prefix}{name}": torch.ones(1) for name in theirs}})
    assert list(read_checkpoint(path).tensors) == [f"{prefix}{name}" for name in ours]


# What does not fit.


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    content = tensors()
    del content["roi_heads.cls_score.bias"], content[f"{NORM}.bias"]
    path = saved(tmp_path / "w.pth", content)
    with pytest.raises(WeightsError) as caught:
        fill(Network(), read_checkpoint(path), "detector x")
    assert str(caught.value) == (
        f"{path} does not fit detector x: 2 of 7 tensors are missing, the first is {NORM}.bias; "
        "choose the --model these weights were made for."
    )


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", tensors() | {"roi_heads.cls_score.weight": torch.ones(3, 4)})
    with pytest.raises(WeightsError, match=r"roi_heads\.cls_score\.weight is \[3, 4\], \[2, 4\] was wanted; choose"):
        fill(Network(), read_checkpoint(path), "detector x")


def test_variances_below_zero_are_refused(tmp_path: Path) -> None:
    """Folded they are no numbers; a little below is what old checkpoints have of none."""
    norm = nn.Module()
    norm.register_buffer("running_var", torch.ones(2))
    fill(norm, read_checkpoint(saved(tmp_path / "old.pth", {"running_var": torch.tensor([1.0, -0.9e-5])})), "norm")
    for least in (-1.0, -1e-5):
        path = saved(tmp_path / "w.pth", {"running_var": torch.tensor([1.0, least])})
        with pytest.raises(WeightsError, match=f"running_var holds variances below zero, {least:g} the least; get the"):
            fill(norm, read_checkpoint(path), "norm")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """A fused ReLU makes 0 of them, so that nothing would show later."""
    name, tensor = next(iter(tensors().items()))
    path = saved(tmp_path / "w.pth", tensors() | {name: torch.full_like(tensor, torch.nan)})
    with pytest.raises(WeightsError, match=f"{name} holds values that are no numbers"):
        fill(Network(), read_checkpoint(path), "network")


def test_a_misfit_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = Network()
    before = tensors_sha256(network)
    with pytest.raises(WeightsError):
        path = saved(tmp_path / "w.pth", tensors() | {"roi_heads.cls_score.weight": torch.ones(3, 4)})
        fill(network, read_checkpoint(path), "x")
    assert tensors_sha256(network) == before


def test_more_tensors_than_are_needed_do_no_harm(tmp_path: Path) -> None:
    network = Network()
    fill(network, read_checkpoint(saved(tmp_path / "w.pth", tensors() | {"mask_head.weight": torch.ones(2)})), "x")


def test_anchors_may_be_missing_but_where_given_they_win(tmp_path: Path) -> None:
    class WithAnchors(Network):
        def __init__(self) -> None:
            super().__init__()
            self.cell_anchors = nn.Module()
            self.cell_anchors.register_buffer("0", torch.zeros(12, 4))

    for given in ({}, {"cell_anchors.0": torch.ones(12, 4)}):
        network = WithAnchors()
        fill(network, read_checkpoint(saved(tmp_path / "w.pth", tensors() | given)), "x")
        assert float(network.cell_anchors.get_buffer("0").sum()) == (48 if given else 0)


# Files that are damaged, of another kind, or hostile.


def test_a_pickle_that_would_run_a_program_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    for path in (
        pickled(tmp_path / "w.pkl", {"model": {"a": Attack()}}),
        pickled(tmp_path / "v.pkl", {"model": {"a": Attack()}}, protocol=4),
        saved(tmp_path / "w.pth", {"model": {"a": Attack()}}),
        saved(tmp_path / "w.bin", {"model": {"a": Attack()}}, _use_new_zipfile_serialization=False),
    ):
        with pytest.raises(WeightsError, match=r"is not a (pickle|checkpoint) of plain .*; nothing else is unpickled"):
            read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


GLOBALS = [
    "builtins eval", "builtins getattr", "posix system", "subprocess Popen", "numpy load", "numpy fromfile",
    "numpy.testing._private.utils runstring", "torch load", "collections defaultdict", "numpy.core.multiarray fromfile",
    "_codecs decode", "importlib import_module",
]  # fmt: skip


@pytest.mark.parametrize("name", GLOBALS)
def test_only_what_arrays_are_made_of_is_looked_up(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    (tmp_path / "w.pkl").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(WeightsError, match=f"it asks for {module}.{attribute}"):
        read_checkpoint(tmp_path / "w.pkl")


def test_a_dotted_name_reaches_nothing_behind_an_allowed_one(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(WeightsError, match="it asks for"):
        read_checkpoint(tmp_path / "w.pkl")


DAMAGEABLE = ["safetensors", "bare pth", "legacy bin", "pkl", "pkl of protocol 5", "pkl of Python 2"]


@pytest.mark.parametrize("container", DAMAGEABLE)
def test_a_file_cut_short_is_refused_in_one_line(tmp_path: Path, container: str) -> None:
    path = CONTAINERS[container](tmp_path)
    data = path.read_bytes()
    for length in [0, 1, 2, 8, 9, *range(16, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=str(path)) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value), length


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("container", DAMAGEABLE)
def test_a_damaged_file_raises_nothing_but_a_weights_error(tmp_path: Path, container: str) -> None:
    """Damaged pickles fail in nearly any way; a flipped bit of a number itself cannot be noticed here."""
    path = CONTAINERS[container](tmp_path)
    data, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.randrange(min(len(data), 600))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


@pytest.mark.parametrize("content", [np.array(["text"]), np.array([{}], dtype=object)], ids=["text", "objects"])
def test_arrays_of_other_than_numbers_are_refused(tmp_path: Path, content: np.ndarray) -> None:
    with pytest.raises(WeightsError, match="is not a pickle of plain arrays"):
        read_checkpoint(pickled(tmp_path / "w.pkl", {"model": {"a": content}}))


@pytest.mark.parametrize("content", [[1, 2], 5, {1: torch.ones(1)}, {"model": [torch.ones(1)]}, None])
def test_a_file_that_holds_no_mapping_of_names_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(WeightsError, match="not a mapping of names to tensors"):
        read_checkpoint(saved(tmp_path / "w.pth", content))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"weights of kind '\.onnx' are not read; give \.pth, \.pkl or"):
        find_weights(str(tmp_path / "model.onnx"))


# Where weights come from.


def test_a_file_that_is_not_there_lists_the_published_names(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file, and not a published name \(butd-r101, .*random:SEED"):
        find_weights(str(tmp_path / "absent.pth"))


def test_a_reference_folder_needs_its_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"needs the file .*weights\.safetensors"):
        find_weights(f"reference:{tmp_path}")
    save_file(tensors(), tmp_path / "weights.safetensors")
    assert find_weights(f"reference:{tmp_path}").is_reference


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for published weights."""
    monkeypatch.setenv("TRIPTYCH_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.mark.parametrize("error", [URLError("no route to host"), OSError(28, "No space left on device")])
def test_published_weights_that_cannot_be_fetched_name_the_file_and_its_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    asked = []

    def download(url: str, to: str, **_: Any) -> None:
        asked.append((url, to))
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(WeightsError) as caught:
        find_weights("grid-x101")
    url, path = "https://dl.fbaipublicfiles.com/grid-feats-vqa/X-101/X-101.pth", folder / "X-101.pth"
    assert asked == [(url, str(path))]
    message = str(caught.value)
    assert f"could not be downloaded from {url} (" in message and "\n" not in message
    assert f"put it at {path}, or pass --weights FILE (in training: --start-network)" in message
    assert not path.exists()


def test_published_weights_without_a_download_say_where_they_are_linked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("nothing to download"))
    with pytest.raises(WeightsError, match=r"have no direct download\. Get it from github\.com/MILVLG.*put it at"):
        find_weights("butd-r101")


def test_published_weights_that_lie_there_are_read_without_a_download(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("it is there already"))
    saved(folder / PUBLISHED["grid-r50"].file, tensors())
    assert set(find_weights("grid-r50").tensors) == set(tensors())


def test_downloaded_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, to, **_: saved(Path(to), tensors()))
    assert set(find_weights("grid-r50").tensors) == set(tensors())


def test_weights_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIPTYCH_WEIGHTS", raising=False)
    assert weights_folder() == Path.home() / ".cache" / "triptych" / "weights"


def test_every_default_of_a_model_is_a_published_name() -> None:
    from extractors.configs import DETECTORS
    from extractors.networks import GRID_MODELS

    assert {f"grid-{model}" for model in GRID_MODELS} | set(DETECTORS) <= set(PUBLISHED)


# Random weights.


def filled(weights: str) -> str:
    return fill(Network(), find_weights(weights), "network")


def test_a_seed_makes_the_same_weights_again_and_another_seed_makes_others() -> None:
    assert filled("random:0") == filled("random:0") == filled("random:00")
    assert len({filled(f"random:{seed}") for seed in range(4)}) == 4


def test_random_weights_do_not_touch_torchs_own_generator() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    network = Network()
    torch.manual_seed(5)
    randomise(network, 0)
    assert torch.equal(torch.rand(3), wanted)


def test_random_weights_say_that_they_are_random() -> None:
    found = find_weights("random:7")
    assert (found.origin, found.tensors) == ("random:7", None)
    assert "seed 7" in found.description


@pytest.mark.parametrize("seed", ["", "-1", "x", "1.5", " 1", "²", "9" * 19, "9" * 5000])
def test_a_seed_that_is_no_number_is_refused(seed: str) -> None:
    with pytest.raises(WeightsError, match="random weights need a seed.*write random:0"):
        fill(Network(), find_weights(f"random:{seed}"), "x")


def test_the_largest_seed_works() -> None:
    assert filled("random:" + "9" * 18) != filled("random:0")


def test_a_weights_error_stops_a_job() -> None:
    assert issubclass(WeightsError, TriptychError)
