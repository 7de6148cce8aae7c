"""Which cells a comparison has, and what makes one another one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from extractors import ConfigError, GridConfig
from extractors.configs import SHIPPED, ConvConfig
from tests.compare_data import compare_data
from workflows.compare import Compare
from workflows.comparing.cells import Cell, Common, Matrix, Row, cells_of, in_order, of_recipes
from workflows.comparing.command import Comparison
from workflows.comparing.data import file_digest
from workflows.comparing.features import extractor_of, features_of
from workflows.comparing.named import NAMED, listed, named
from workflows.recipes import recipe_of
from workflows.train import Train

COMMON = Common(Train(tiny=True, device="cpu"), seeds=(0, 1, 2))


def cells(matrix: Matrix, common: Common = COMMON) -> list[Cell]:
    return [cell for row in matrix.rows for cell in cells_of(row, common, "+".join)]


def cell(name: str = "grid_vlp_vqa", common: Common = COMMON) -> Cell:
    return cells(of_recipes([name], ["store"]), common)[0]


def test_a_matrix_is_every_recipe_with_every_input_and_seed() -> None:
    found = cells(of_recipes(["vl_bert_vqa", "vilt_vqa", "pixel_bert_nlvr2"], ["store", "pixels"]))
    assert len(found) == len({each.id for each in found}) == 3 * 2 * 3
    labels = Counter(each.label for each in found)
    assert labels == dict.fromkeys(
        (
            "VL-BERT, cached regions",
            "VL-BERT, pixels",
            "ViLT, cached pixels",
            "ViLT, pixels",
            "PixelBERT, cached grid",
            "PixelBERT, pixels",
        ),
        3,
    )
    assert [each.recipe.train.seed for each in found[:4]] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "changed",
    [
        replace(COMMON, flags=replace(COMMON.flags, steps=21)),
        replace(COMMON, flags=replace(COMMON.flags, batch_size=9)),
        replace(COMMON, flags=replace(COMMON.flags, tiny=False)),
        replace(COMMON, flags=replace(COMMON.flags, device="cuda")),
        replace(COMMON, seeds=(3,)),
        replace(COMMON, starts={"grid_vlp_vqa": "weights.safetensors"}),
        replace(COMMON, networks={"grid_vlp_vqa": "random:1"}),
    ],
)
def test_what_changes_a_result_makes_another_cell(changed: Common) -> None:
    assert cell(common=changed).id != cell().id


def test_what_is_read_makes_another_cell(tmp_path: Path) -> None:
    [row] = of_recipes(["grid_vlp_vqa"], ["store"]).rows
    same, other = (cells_of(row, COMMON, lambda names, data=data: data)[0].id for data in ("a", "b"))  # type: ignore[misc]
    assert same != other
    before = replace(row, before=recipe_of("grid_vlp_pretrain"))
    assert cells_of(before, COMMON, lambda names: "a")[0].id != same
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    first = file_digest(str(weights))
    weights.write_bytes(b"22")
    assert file_digest(str(weights)) != first and file_digest("grid-r50") == "grid-r50"


def test_an_encoder_s_weights_are_known_by_their_bytes(tmp_path: Path) -> None:
    def found(file: str, content: bytes) -> tuple[str, str]:
        """The cell, and the store that it reads."""
        path = tmp_path / file
        path.write_bytes(content)
        asked = cell("meter_vqa")
        model = replace(asked.recipe.model, image=replace(asked.recipe.model.image, weights=str(path)))
        asked = replace(asked, recipe=replace(asked.recipe, model=model))
        features = features_of(asked.recipe)
        assert features is not None
        return asked.id, features.name

    first = found("a", b"1")
    assert found("b", b"1") == first, "wherever they lie"
    assert not set(found("a", b"22")) & set(first)


def test_what_changes_no_number_makes_no_other_cell() -> None:
    usual = cell()
    train = replace(usual.recipe.train, out="elsewhere", workers=7, save_every=3, log_every=9, device="cuda:1")
    assert isinstance(usual.recipe.extractor, ConvConfig)
    elsewhere = replace(usual.recipe.extractor, device="cuda")
    recipe = replace(usual.recipe, summary="renamed", expected="", train=train, extractor=elsewhere)
    assert replace(usual, label="renamed", recipe=recipe).id == usual.id
    assert replace(usual, recipe=replace(recipe, side=65)).id != usual.id
    assert cell(common=replace(COMMON, flags=replace(COMMON.flags, device="cpu"))).id == usual.id


def test_weights_of_networks_go_to_what_fills_the_store() -> None:
    common = Common(Train(device="cpu"), (0,), networks={"grid_vlp_vqa": "file"})
    found = cells(named("input_size"), common)[0]
    assert found.name == "grid_vlp_vqa" and found.network == "file" and found.before is not None
    for recipe in (found.recipe, found.before.recipe):
        assert isinstance(recipe.extractor, GridConfig)
        assert (recipe.extractor.weights, recipe.extractor.longer) == ("file", 448)
    with pytest.raises(ConfigError, match="sees by no convolutional network"):
        cell("vilt_vqa", replace(COMMON, networks={"vilt_vqa": "random:7"}))


def test_weights_of_a_network_that_no_store_is_filled_by_are_for_pixels() -> None:
    [row] = of_recipes(["vl_bert_vcr_answer"], ["pixels"]).rows
    for common in (COMMON, Common(Train(device="cpu"), (0,))):
        found = cells_of(row, replace(common, networks={row.name: SHIPPED}), "+".join)[0]
        assert found.network == SHIPPED and found.recipe.extractor is None


def test_a_recipe_without_a_score_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="has no score to be compared by"):
        of_recipes(["vilt_pretrain"], ["pixels"])
    with pytest.raises(ConfigError, match="there is no recipe 'vilt'"):
        of_recipes(["vilt"], ["pixels"])


def test_pre_training_that_rows_share_is_one_cell() -> None:
    found = cells(named("encoder_depth"))
    befores, own = in_order(found)
    assert (len(befores), len(own)) == (4, 4 * 2 * 3), "the first seed's for all"
    assert {each.before.id for each in own if each.before} == {each.id for each in befores}
    assert {each.recipe.train.seed for each in befores} == {0}
    assert [each.recipe.train.seed for each in own] == [0] * 8 + [1] * 8 + [2] * 8, "an early end leaves whole seeds"


def test_the_five_models_are_pre_trained_alike_and_seen_from_both() -> None:
    matrix = named("visual_inputs")
    assert Counter(row.label.partition(",")[0] for row in matrix.rows) == dict.fromkeys(
        ("VL-BERT", "Grid-VLP", "PixelBERT", "ViLT", "METER"), 2 * 3
    )
    assert {row.before.data for row in matrix.rows if row.before} == {("coco_captions", "visual_genome")}
    befores, own = in_order(cells(matrix))
    assert (len(befores), len(own)) == (2 * 5 - 3, 2 * 5 * 3 * 3), "three have one pre-training for both"
    for each in own[:6]:
        assert each.before and each.model == "VL-BERT" and features_of(each.recipe) is not None
        assert extractor_of(each.recipe) == extractor_of(each.before.recipe), "one store for both"
    assert "qa" not in str([(each.recipe.objectives, each.recipe.model.heads) for each in befores])


@pytest.mark.parametrize(("name", "network"), [("visual_inputs", SHIPPED), ("fusion", None)])
def test_tiny_twins_see_where_it_is_not_networks_that_are_compared(
    name: str, network: str | None, tmp_path: Path
) -> None:
    data = compare_data(tmp_path / "data", ("vqav2", "coco_captions"))
    asked = Compare(data=str(data), out=str(tmp_path / "out"), name=name, seeds=(0,), tiny=True, device="cpu")
    found = Comparison(asked).planned()[1]
    seeing = [each for each in found if each.model in ("VL-BERT", "Grid-VLP", "PixelBERT")]
    assert {each.network for each in found} == {network, None} and all(each.network == network for each in seeing)


def test_lines_are_left_out_or_pre_trained_on_less_where_data_is_missing() -> None:
    there = {"vqav2", "coco_captions", "visual_genome"}.__contains__
    told: list[str] = []
    fusion = named("fusion").at_hand(there, told.append)
    assert [row.before.data for row in fusion.rows if row.before] == [("coco_captions", "visual_genome")] * 3
    assert told == ["pre-training goes without conceptual_captions, sbu: not at hand"]
    told.clear()
    data = named("pre_training_data").at_hand(there, told.append)
    assert [row.label for row in data.rows] == ["coco_captions", "visual_genome"]
    assert "conceptual_captions is left out: conceptual_captions not at hand" in told and len(told) == 3
    with pytest.raises(ConfigError, match="no line of the comparison has its data"):
        named("fusion").at_hand({"coco_captions"}.__contains__, told.append)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_comparison_has_its_lines_also_tiny(name: str) -> None:
    matrix = named(name)
    assert (NAMED[name].__doc__ or "").startswith(matrix.source[:8])
    assert matrix.source.startswith(("Grid-VLP", "METER")) or (name, matrix.source) == ("visual_inputs", "")
    for flags in (Train(device="cpu"), COMMON.flags):
        found = cells(matrix, replace(COMMON, flags=flags, seeds=(0,)))
        assert len({each.id for each in found}) == len(matrix.rows), "two lines are the same run"
        assert len({(each.label, each.recipe.task) for each in found}) == len(matrix.rows)


def test_the_list_names_every_comparison_and_its_table() -> None:
    text = str(list(listed()))
    assert all(name in text for name in NAMED) and "METER table 7" in text and "merged attention" in text
    with pytest.raises(ConfigError, match="there is no comparison 'encoder_dept'; did you mean encoder_depth?"):
        named("encoder_dept")


def test_a_row_without_pre_training_reads_its_task_s_data_alone() -> None:
    recipe = recipe_of("vilt_vqa")
    assert Row("a", "vilt_vqa", recipe).data == ("vqav2",)
    assert Row("a", "vilt_vqa", recipe, recipe_of("vilt_pretrain")).data[:2] == ("vqav2", "coco_captions")


def test_no_cell_trains_on_what_it_is_scored_on() -> None:
    assert recipe_of("meter_vqa").split == "train+val"  # for the test server
    assert cell("meter_vqa").recipe.split == "train" and cell("vilt_vqa").recipe.split == "train"
    for name in NAMED:
        assert all(each.recipe.validation not in each.recipe.split.split("+") for each in cells(named(name)))
