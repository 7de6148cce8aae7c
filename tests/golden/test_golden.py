"""The golden checks themselves: that official folders pass, and that nothing wrong does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.__main__ import CHECKERS, main
from tests.golden.compare import EXACT, FEATURES, MATCHED, Comparison, Folder, Report
from tests.golden.detector import check_boxes
from tests.golden.tiny import MAKERS, change, moved

LINE = re.compile(
    r"(OK  |FAIL) (?P<name>\S.*?) +largest difference (\d\S*|inf|nan) +tolerance (0|0\.01|0\.0001|1e-06)(  \(.+\))?"
)
ENDS = ("network_input", "stem", "res2", "res3", "res4", "grid")


def checked(folder: Folder) -> Report:
    report = Report()
    with torch.inference_mode():
        CHECKERS[folder.setting("upstream", "repo")](folder, report)
    report.fail_unhandled(folder)
    return report


# What official code made.


@pytest.mark.parametrize(
    "name",
    [
        "grid_feats/r50",
        "grid_feats/x101",
        "grid_feats/x152pp",
        "vl_bert",
        "vilt",
        "meter_coattn",
        "meter_coattn/interpolation",
        "meter_coattn_swin",
        "preprocess",
        pytest.param("butd_regions", marks=pytest.mark.slow),
        pytest.param("bua_selection", marks=pytest.mark.slow),
    ],
)
def test_official_folder(shared: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shared / "reference" / name)]) == 0, capsys.readouterr().out


# What we made ourselves: the checks without the official data.


def test_own_folder_passes_with_a_line_for_every_tensor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    *lines, summary, total = capsys.readouterr().out.splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found)
    names = [match["name"] for match in found if match]
    inputs = {name for name in load_file(folder / "inputs.safetensors") if name.startswith(("resized", "network"))}
    assert set(names) >= inputs | set(load_file(folder / "outputs.safetensors"))
    assert len(names) == len(set(names))
    assert {"repeatable 0", "repeatable beside another size 0", "repeatable beside its own size 0"} < set(names)
    assert summary == f"{folder}: {len(lines)} comparisons, 0 past the tolerance"
    assert total == "1 folders: 1 passed, 0 failed, 0 not checked"


def test_own_folders_are_no_trivial_case(originals: Path) -> None:
    butd, bua = (load_file(originals / name / "outputs.safetensors") for name in ("butd", "bua"))
    assert len(butd["sel_ids_0_k6"]) == len(butd["maxnms_ids_g0_img0_k6"]) == 6
    assert len(bua["sel_ids_0_min2_max5_t0.2"]) == 5
    assert len(butd["sel_classes_0_k6"].unique()) > 1


def test_a_changed_tensor_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = sorted(load_file(folder / "outputs.safetensors"))[-1]
    change(folder, lambda tensors: tensors.update({name: moved(tensors[name])}))
    assert main([str(folder)]) == 1
    assert re.search(rf"^FAIL {re.escape(name)} ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_any_changed_tensor_fails(originals: Path, name: str) -> None:
    for tensor in load_file(originals / name / "outputs.safetensors"):
        folder = Folder.read(originals / name)
        folder.outputs[tensor] = moved(folder.outputs[tensor])
        assert tensor in {each.name for each in checked(folder).failures}


def test_a_changed_image_fails_everywhere_behind_it(grid: Path) -> None:
    folder = Folder.read(grid)
    folder.inputs["image_rgb_0"] = folder.inputs["image_rgb_0"].flip(0)
    failed = {each.name for each in checked(folder).failures}
    assert failed == {"resized_bgr_0", *(f"end_to_end {each}_0" for each in ENDS)}


def test_changed_weights_fail(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(grid / "weights.safetensors")
    weights["backbone.res3.1.conv2.weight"] *= 1.01
    save_file(weights, grid / "weights.safetensors")
    assert main([str(grid)]) == 1
    failed = re.findall(r"^FAIL (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert "res3_0" in failed and not {"stem_0", "res2_0", "res4_0", "grid_0"} & set(failed)  # fed stage by stage


def test_a_tensor_nobody_knows_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, lambda tensors: tensors.update({"mystery_0": torch.zeros(2)}))
    assert main([str(folder)]) == 1
    assert "(no check knows this tensor)" in capsys.readouterr().out


def test_nan_and_other_shapes_fail() -> None:
    report = Report()
    report.compare("nan", torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), FEATURES)
    report.compare("shape", torch.zeros(2), torch.zeros(3), FEATURES)
    report.compare("empty", torch.zeros(0, 4), torch.zeros(0, 4), EXACT)
    assert [each.name for each in report.failures] == ["nan", "shape"]
    assert all(LINE.fullmatch(str(each)) for each in report.comparisons)


def test_line_format() -> None:
    assert " ".join(str(Comparison("grid_0", 1.5e-5, 1e-4)).split()) == (
        "OK grid_0 largest difference 1.5e-05 tolerance 0.0001"
    )
    assert str(Comparison("sel_ids_0_k36", 2.0, 0.0)).startswith("FAIL sel_ids_0_k36 ")


# Boxes as sets.


def boxes_report(found: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> list[str]:
    report = Report()
    check_boxes(report, found, {"boxes": ("boxes", boxes), "class_ids": ("classes", classes)})
    return [each.name for each in report.failures]


BOXES = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 30, 40]])
CLASSES = torch.tensor([1, 2, 1])


def test_boxes_match_in_any_order_and_by_class() -> None:
    order = torch.tensor([2, 1, 0])
    assert not boxes_report({"boxes": BOXES[order] + 0.009, "class_ids": CLASSES[order]}, BOXES, CLASSES)
    assert boxes_report({"boxes": BOXES, "class_ids": torch.tensor([1, 3, 1])}, BOXES, CLASSES)
    assert boxes_report({"boxes": BOXES + 2 * MATCHED, "class_ids": CLASSES}, BOXES, CLASSES) == ["boxes"]


def test_one_of_our_boxes_cannot_stand_for_two() -> None:
    wanted = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9.001], [5, 5, 30, 40]])
    found = torch.tensor([[0.0, 0, 9, 9], [70, 70, 90, 90], [5, 5, 30, 40]])
    same = torch.tensor([1, 1, 1])
    assert boxes_report({"boxes": found, "class_ids": same}, wanted, same) == ["boxes"]
    assert boxes_report({"boxes": found[:2], "class_ids": same[:2]}, wanted, same) == ["boxes"]


def test_no_boxes_match_no_boxes() -> None:
    none = {"boxes": torch.zeros(0, 4), "class_ids": torch.zeros(0, dtype=torch.int32)}
    assert not boxes_report(none, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert boxes_report(none, BOXES, CLASSES) == ["boxes"]
