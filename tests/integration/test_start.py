"""What a run may start from: for each model a published checkpoint, what its paper starts from, and runs of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from extractors import ConfigError
from extractors.weights import WeightsError
from storage.errors import StoreError
from tests.official_checkpoints import VILT, meter_state, official, vl_bert_state
from tests.recipe_data import Data
from trainers.checkpoint import Checkpoints
from trainers.config import TrainConfig
from trainers.data import AnswerVocabulary
from trainers.models.image_towers import ImageTower
from trainers.models.layers import resize_positions
from trainers.models.text_towers import TextTower
from trainers.optim import Optimisers
from trainers.tasks.families import build_model
from trainers.tasks.probes import ImageProbe, TextProbe
from workflows.cli import main
from workflows.recipes import recipe_of
from workflows.recipes.building import keep_answers
from workflows.recipes.starting import start, start_network, told
from workflows.recipes.tiny import DIM, HEADS, HIDDEN, LAYERS, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BERT = {
    "vocab_size": 30522,
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
}


def model_of(name: str, seed: int = 0, **changes: Any) -> Any:
    """The model of a recipe's tiny twin, every number at random."""
    recipe = tiny(recipe_of(name))
    config = replace(recipe.model, **changes)
    torch.manual_seed(seed)
    if recipe.task == "image-classes":
        return ImageProbe(ImageTower(config.image), recipe.classes)
    if recipe.task == "text-classes":
        return TextProbe(TextTower(config.text), recipe.classes)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def of_lightning(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    return path


def run_of(path: Path, model: nn.Module) -> Path:
    """A run that has saved this model, as its folder."""
    config = TrainConfig(out=str(path), steps=1)
    Checkpoints(path).save(7, model, Optimisers(model, config), config, {})
    return path


def bert(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """BERT's own file, in its old names."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(5)
    tensors = BertForPreTraining(BertConfig(**BERT)).state_dict()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    named = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(new, before)
        named[name] = tensor
    torch.save(named, path / "pytorch_model.bin")
    return path / "pytorch_model.bin", tensors


@dataclass(frozen=True)
class Case:
    """One start.

    recipe   what is started
    source   the recipe of the model that it starts from
    write    that model to a folder, as a file or a run
    new      what is new, by the first parts of its names
    changes  of the started model's config, and of the source's
    """

    recipe: str
    source: str
    write: Callable[[Path, Any], Path]
    new: tuple[str, ...] = ()
    changes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})


def vl_bert_file(path: Path, model: Any) -> Path:
    return of_lightning(path / "vl-bert-base.model", vl_bert_state(model))


def vilt_file(path: Path, model: Any) -> Path:
    return of_lightning(path / "vilt_200k_mlm_itm.ckpt", official(model, VILT))


def meter_file(path: Path, model: Any) -> Path:
    return of_lightning(path / "meter_clip16_288_roberta_pretrain.ckpt", meter_state(model))


def run(path: Path, model: Any) -> Path:
    return run_of(path / "run", model)


def run_file(path: Path, model: Any) -> Path:
    return run_of(path / "run", model) / "checkpoints/step-00000007/model.safetensors"


CACHED = {"image": None, "image_dim": 12, "text": tiny(recipe_of("meter_pretrain_patches")).model.text}
CASES = (
    Case("vl_bert_vqa", "vl_bert_pretrain", vl_bert_file, ("heads.vqa",)),
    Case("vl_bert_vcr_answer", "vl_bert_pretrain_e2e", vl_bert_file, ("pooler", "heads.vcr", "heads.vcr_objects")),
    Case("vl_bert_refcoco", "vl_bert_pretrain", run, ("heads.refcoco",)),
    Case("vl_bert_vqa", "vl_bert_pretrain", run_file, ("heads.vqa",)),
    Case("vl_bert_vcr_rationale", "vl_bert_vcr_answer", run),
    Case("vl_bert_pretrain", "vl_bert_pretrain", run),
    Case("grid_vlp_vqa", "grid_vlp_pretrain", run, ("heads.vqa",)),
    Case("grid_vlp_nlvr2", "grid_vlp_vqa", run_file, ("heads.nlvr2",)),
    Case("pixel_bert_vqa", "pixel_bert_pretrain", run, ("heads.vqa",)),
    Case("vilt_vqa", "vilt_pretrain", vilt_file, ("heads.vqa",)),
    Case("vilt_retrieval_f30k", "vilt_pretrain", vilt_file),
    Case("vilt_nlvr2", "vilt_pretrain", run, ("heads.nlvr2",)),
    Case("vilt_pretrain", "vilt_vqa", run_file, ("heads.mlm", "heads.itm")),
    Case("meter_vqa", "meter_pretrain", meter_file, ("heads.vqa",)),
    Case("meter_pretrain_patches", "meter_pretrain_ablation", meter_file),
    Case("meter_nlvr2", "meter_pretrain", run, ("heads.nlvr2",)),
    Case("meter_snli_ve", "meter_pretrain_patches", run_file, ("heads.snli",), (CACHED, CACHED)),
)
# What a start may make of a tensor: these have rows of their own, or come from another one.
DERIVED = ("segment.weight", "modality.weight", "heads.vqa.transform", "heads.refcoco.0", "heads.vcr_objects.0")


@pytest.mark.parametrize("case", CASES, ids=lambda each: f"{each.recipe}-{each.source}-{each.write.__name__}")
def test_a_run_starts_with_the_numbers_of_its_source(case: Case, tmp_path: Path) -> None:
    theirs = model_of(case.source, 1, **case.changes[1])
    model = model_of(case.recipe, 2, **case.changes[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = start(model, str(case.write(tmp_path, theirs)))
    wanted, arrived = theirs.state_dict(), 0
    for name, tensor in model.state_dict().items():
        if name in report.missing:
            assert name.startswith(case.new) and torch.equal(tensor, before[name])
        elif not name.startswith(("heads.rank", *DERIVED)):
            given = wanted[name]
            if name.endswith("image.tower.model.pos_embed") and given.shape != tensor.shape:
                given = resize_positions(given[0], model.image.size // 16)[None]  # METER sees larger images than before
            assert torch.equal(tensor, given), name
            arrived += 1
    assert arrived > 20 and report.loaded + len(report.missing) == len(before)
    assert {name.rpartition(".")[0] for name in report.missing} or not case.new
    line = told(report)
    assert line.startswith(f"starts from {tmp_path}") and "\n" not in line
    assert all(f"{each}" in line for each in case.new)


@pytest.mark.parametrize("write", (run, run_file))
@pytest.mark.parametrize("name", ("vl_bert_vqa", "grid_vlp_vqa", "vilt_vqa", "meter_vqa"))
def test_each_answer_has_the_weights_that_its_name_had(name: str, write: Any, tmp_path: Path) -> None:
    """Answers are ordered by how many there are, so that two data sets with the same ones have other orders."""
    count = "vqa_answers" if name == "grid_vlp_vqa" else "answers"
    theirs, model = model_of(name, 1, **{count: 3}), model_of(name, 2, **{count: 4})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    source = str(write(tmp_path, theirs))
    keep_answers(str(tmp_path / "run"), AnswerVocabulary(("no", "red", "yes")))
    report = start(model, source, ("yes", "blue", "no", "red"))
    last = [key for key in before if key.startswith("heads.vqa.")][-2:]
    for key in last:
        given, found = theirs.state_dict()[key], model.state_dict()[key]
        assert torch.equal(found[[2, 3, 0]], given) and torch.equal(found[1], before[key][1])
    assert not report.missing and "heads.vqa has 3 of its 4 answers from there, by their names" in told(report)
    same = start(model_of(name, 2, **{count: 3}), source, ("no", "red", "yes"))
    assert not same.changed


@pytest.mark.parametrize(
    "source", ("~/run", "run", "~/run/checkpoints/step-00000007/model.safetensors", "model.safetensors")
)
def test_a_run_s_answers_are_known_however_it_is_named(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path, model_of("vilt_vqa", 1, answers=2))
    keep_answers(str(folder), AnswerVocabulary(("no", "yes")))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder / "checkpoints/step-00000007" if source == "model.safetensors" else tmp_path)
    assert start(model_of("vilt_vqa", 2, answers=2), source, ("yes", "no")).changed


def test_a_head_that_is_new_has_no_answers_from_there(tmp_path: Path) -> None:
    source = str(run(tmp_path, model_of("grid_vlp_vqa", 1, vqa_answers=2)))
    keep_answers(source, AnswerVocabulary(("no", "yes")))
    report = start(model_of("grid_vlp_pretrain", 2, heads=("mlm", "qa")), source, ("yes", "no", "red"))
    assert any(name.startswith("heads.qa.") for name in report.missing) and not report.changed


def test_what_is_derived_begins_where_the_official_code_begins_it(tmp_path: Path) -> None:
    pretrained = model_of("vl_bert_pretrain_e2e", 1)
    for write in (vl_bert_file, run):
        answers = model_of("vl_bert_vcr_answer", 2)
        vqa = model_of("vl_bert_vqa", 2, feature_dim=answers.config.feature_dim)
        source = str(write(tmp_path, pretrained))
        start(answers, source)
        report = start(vqa, source)
        assert torch.equal(answers.segment.weight[1], pretrained.segment.weight[0])
        assert torch.equal(answers.heads["vcr_objects"][0].weight, pretrained.heads["mvrc"][0].weight)
        assert torch.equal(vqa.heads["vqa"].transform.dense.weight, pretrained.heads["mlm"].transform.dense.weight)
        assert any("network" in name or "backbone" in name for name in report.unexpected), "it reads a cache"
    rationales = model_of("vl_bert_vcr_rationale", 3)
    with torch.no_grad():
        answers.segment.weight[1] += 1
    start(rationales, str(run(tmp_path / "answers", answers)))
    assert torch.equal(rationales.segment.weight[1], answers.segment.weight[1]), "it has learnt what a second text is"


@pytest.mark.parametrize("name", ("vl_bert_pretrain", "vl_bert_vqa", "grid_vlp_pretrain", "grid_vlp_vqa"))
def test_bert_is_told_from_a_checkpoint_of_the_model(name: str, tmp_path: Path) -> None:
    path, theirs = bert(tmp_path)
    model = model_of(name)
    report = start(model, str(path))
    word = model.word.weight if "vl_bert" in name else model.text.word.weight
    assert torch.equal(word, theirs["bert.embeddings.word_embeddings.weight"])
    query = model.encoder[1].attention.query.weight
    assert torch.equal(query, theirs["bert.encoder.layer.1.attention.self.query.weight"])
    assert all(name.startswith("cls") or "pooler" in name for name in report.unexpected)


def test_a_vit_of_timm_is_told_from_a_vilt(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": 64, "patch_size": 32, "embed_dim": DIM, "depth": LAYERS, "num_heads": HEADS, "mlp_ratio": 2}
    theirs = VisionTransformer(num_classes=4, **shape)  # type: ignore[arg-type]
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    model = model_of("vilt_pretrain")
    report = start(model, str(tmp_path / "vit.pth"))
    assert torch.equal(model.encoder[1].mlp.up.weight, theirs.state_dict()["blocks.1.mlp.fc1.weight"])
    assert {name.partition(".")[0] for name in report.missing} == {"text", "modality", "pooler", "heads"}


@pytest.mark.parametrize("write", (meter_file, run))
def test_probes_take_an_encoder_out_of_a_meter(write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    pretrained = model_of("meter_pretrain", 1)
    path = str(write(tmp_path, pretrained))
    image = tiny(recipe_of("meter_probe_images")).model.image
    images = model_of("meter_probe_images", 2, image=replace(image, size=96))  # pre-training and probe differ in size
    texts = model_of("meter_probe_texts", 2)
    report = start(images, path)
    theirs = pretrained.state_dict()
    for name, tensor in images.tower.state_dict().items():
        wanted = theirs[f"image.{name}"]
        if name.endswith("pos_embed"):
            wanted = resize_positions(wanted[0], 6)[None]
        assert torch.equal(tensor, wanted), name
    assert "pos_embed interpolated from 4 x 4 to 6 x 6" in told(report)
    start(texts, path)
    assert all(torch.equal(tensor, theirs[f"text.{name}"]) for name, tensor in texts.tower.state_dict().items())


def test_a_run_is_one_on_an_object_store_too(tmp_path: Path) -> None:
    theirs, model = model_of("vilt_pretrain", 1), model_of("vilt_vqa", 2)
    run(tmp_path, theirs)
    start(model, f"file://{tmp_path}/run")
    assert torch.equal(model.position, theirs.position)


def test_a_damaged_run_is_refused(tmp_path: Path) -> None:
    path = run_file(tmp_path, model_of("vilt_pretrain"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="is damaged"):
        start(model_of("vilt_vqa"), str(tmp_path / "run"))


# The network that sees pixels.


def in_torchvision_s_names(network: nn.Module) -> dict[str, Tensor]:
    """As VL-BERT's own file of the bottom-up detector, with the classifier that nobody needs."""
    found = {"fc.weight": torch.ones(3, 3)}
    for name, tensor in network.state_dict().items():
        name = name.replace("backbone.stem.conv1.norm", "bn1").replace("backbone.stem.", "").replace("backbone.", "")
        for stage in (2, 3, 4, 5):
            name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
        for layer in (1, 2, 3):
            name = name.replace(f".conv{layer}.norm.", f".bn{layer}.")
        found[name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")] = tensor
    return found


def in_detectron2_s_names(network: nn.Module) -> dict[str, Tensor]:
    heads = {"roi_heads.box_predictor.cls_score.weight": torch.ones(3, 3)}
    state = network.state_dict()
    return heads | {f"roi_heads.{name}" if name.startswith("res5") else name: each for name, each in state.items()}


def as_a_grid_network(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    return {f"backbone.{name}" if name.startswith("res5") else name: each for name, each in state.items()}


@pytest.mark.parametrize(
    ("recipe", "named"),
    (
        ("vl_bert_pretrain_e2e", in_torchvision_s_names),
        ("vl_bert_vcr_answer", in_detectron2_s_names),
        ("vl_bert_vcr_answer", as_a_grid_network),
        ("pixel_bert_pretrain", in_detectron2_s_names),
    ),
)
def test_a_network_has_weights_of_its_own(recipe: str, named: Any, tmp_path: Path) -> None:
    theirs, model = model_of(recipe, 1), model_of(recipe, 2)
    word = model.encoder[0].mlp.up.weight.clone()
    torch.save({"model": named(theirs.network)}, tmp_path / "network.pth")
    assert len(start_network(model, str(tmp_path / "network.pth"))) == 64
    wanted = theirs.network.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.network.state_dict().items())
    assert torch.equal(model.encoder[0].mlp.up.weight, word)
    digest = start_network(model, "random:0")
    assert digest == start_network(theirs, "random:0")


def test_a_network_that_is_not_there_or_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no convolutional network for pixels"):
        start_network(model_of("vilt_vqa"), "grid-r50")
    grid, boxes = model_of("pixel_bert_vqa"), model_of("vl_bert_vcr_answer")
    torch.save({"model": in_detectron2_s_names(grid.network)}, tmp_path / "grid.pth")
    with pytest.raises(
        WeightsError,
        match=r"--start-network: .*grid.pth does not fit VL-BERT's network: 255 of 520 tensors are missing",
    ):
        start_network(boxes, str(tmp_path / "grid.pth"))
    with pytest.raises(WeightsError, match="'butd-r101' are of another network; this one takes grid-r50"):
        start_network(grid, "butd-r101")


# Through the command.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


def tensors_of(run: Path) -> dict[str, Tensor]:
    [path] = run.glob("checkpoints/*/model.safetensors")
    return load_file(path)


def test_train_starts_from_a_run_and_a_network(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tiny", "--steps", "1"]
    assert main(["train", *data.arguments("pixel_bert_pretrain", tmp_path / "a"), *flags]) == 0
    assert "its network starts from random weights (--start-network)" in capsys.readouterr().out
    source = tmp_path / "a/run"
    before = tensors_of(source)
    network = {name.removeprefix("network."): each + 0.01 for name, each in before.items() if "network" in name}
    torch.save({"model": network}, tmp_path / "R-50.pth")
    begun = ["--start", str(source), "--start-network", str(tmp_path / "R-50.pth"), "--lr", "1e-12"]
    assert main(["train", *data.arguments("pixel_bert_vqa", tmp_path / "b"), *flags, *begun]) == 0
    said = capsys.readouterr().out
    assert f"starts from {source}: " in said and "; new: heads.vqa; left out: heads.itm, heads.mlm" in said
    assert f"its network starts from {tmp_path / 'R-50.pth'}, SHA-256 " in said
    after = tensors_of(tmp_path / "b/run")
    for name, tensor in after.items():
        if not name.startswith("heads"):
            wanted = network[name.removeprefix("network.")] if "network" in name else before[name]
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "b/run/config.json").read_text())
    assert config["start"] == str(source) and config["start_network"] == str(tmp_path / "R-50.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    (
        ("nothing.ckpt", "is no file and has no checkpoints; name a checkpoint or a run of ours"),
        ("other.safetensors", "none of the 1 tensors is of this model: they begin with 'strange'"),
        ("empty.safetensors", "none of the 0 tensors is of this model: they begin with nothing"),
        ("vilt.ckpt", "this checkpoint does not fit the model"),
        ("broken.ckpt", "is not a checkpoint of plain tensors, or is damaged"),
    ),
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    source: str, message: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    save_file({"strange": torch.ones(2)}, tmp_path / "other.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    of_lightning(tmp_path / "vilt.ckpt", official(model_of("vilt_pretrain", layers=3), VILT))
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    args = data.arguments("vilt_vqa", tmp_path / "a")
    assert main(["train", *args, "--tiny", "--start", str(tmp_path / source)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and len(said) < 1500
    assert not (tmp_path / "a/run").exists()
