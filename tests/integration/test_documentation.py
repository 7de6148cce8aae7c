"""Every command and every snippet of the documents does what it says, at tiny size.

Each page has a folder of its own with what its commands name: photographs, lists, stores, other projects' files.
Weights become small random ones. What cannot run here is in NOT_RUN, with the reason or the test that runs its kind;
its flags are still read by the real parser.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from extractors.weights import PUBLISHED, shipped_file
from storage import FeatureLayout, GridRecord, RegionRecord, Spec, StoreWriter
from tests import official_files
from tests.documents import PAGES, ROOT, Block, Command, commands, python_blocks
from tests.helpers import TINY, write_photos
from workflows.cli import main

KEYS = ("cat", "holiday/beach", "42")
COMMANDS, PYTHON = list(commands()), list(python_blocks())

NOT_RUN = {  # what matches, and why: the test that runs its kind, or the reason
    r"triptych (demo|.*--weights scenes-grid)": "tests/integration/test_commands.py::"
    "test_demo_makes_two_sound_stores_a_page_and_a_comparison",
    r".* --engine ray": "tests/integration/test_ray_engine.py::test_both_engines_make_the_same_store",
    r".*s3://": "tests/integration/test_object_store.py::test_the_commands_take_an_address",
    r"triptych extract patches": "tests/integration/test_patches_and_pixels.py::"
    "test_a_store_of_patches_holds_what_the_tower_gives",
    r".*detectron2:": "tests/unit/extractors/test_detectron2_adapter.py::"
    "test_a_record_holds_what_detectron2_keeps_and_the_features_it_computed_it_from",
    r"triptych view": "serves a page until Ctrl-C: tests/integration/test_view_commands.py::test_ctrl_c_ends_it_well",
    r"--with jupyterlab": "opens a browser: tests/integration/test_notebooks.py::"
    "test_a_folder_becomes_two_stores_and_a_picture",
    r"triptych retry": "tests/integration/test_job_commands.py::test_retry_redoes_exactly_what_is_asked_for",
    r"triptych data check": "tests/integration/test_scenes.py::test_every_data_set_is_complete_and_has_its_images",
    r"triptych scenes make": "tests/integration/test_scenes.py::"
    "test_the_same_seed_makes_the_same_bytes_and_a_run_goes_on",
    r"triptych train-detector": "tests/integration/test_train_detector.py::"
    "test_a_grid_network_trains_and_its_file_extracts_grids_and_regions",
    r"triptych train \w": "tests/integration/test_train_command.py::test_the_tiny_twin_of_every_recipe_trains",
    r"triptych evaluate": "tests/integration/test_train_command.py::test_a_run_is_evaluated_and_its_answers_written",
    r"triptych explain": "tests/integration/test_explain_command.py::test_every_model_shows_what_it_looks_at",
    r"triptych compare --data .*--name": "tests/integration/test_compare.py::test_a_named_comparison_comes_from_a_file",
    r"triptych compare --data": "tests/integration/test_compare.py::"
    "test_two_models_two_inputs_and_two_seeds_become_a_page",
    r"python examples/own_extractor": "tests/integration/test_own_extractor.py::"
    "test_it_fills_a_store_that_is_like_any_other",
    r"python examples/read_with": "tests/integration/test_examples.py::test_another_tool_reads_what_the_store_holds",
    r"python -m tests.golden": "tests/golden/test_command.py::test_a_folder_above_stands_for_those_below",
    r"ray (up|down|dashboard|submit)": "wants machines; tests/unit/pipeline/test_cluster_files.py::"
    "test_a_cluster_file_fits_rays_schema",
    r"ray (start|job)": "wants a cluster that outlives the test",
    r"uv (sync|pip)": "installs packages",
    r"(pytest|ruff|\.ci)": "runs these very tests",
}
PYTHON_NOT_RUN = {
    "docs/looking_inside.md": "wants a trained run, as tests/integration/test_explain_command.py has",
    "docs/sharing.md": "wants the export beside it, as tests/unit/interop/test_parquet.py has",
    "docs/object_stores.md": "wants an object store; tests/integration/test_object_store.py opens one",
}
SMALLER = {'weights="butd-r101"': 'weights="random:0", width_divisor=32, shorter=64, longer=100, device="cpu"'}


def reason(command: Command) -> str | None:
    """Why a command does not run here."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command.text)), None)


def arguments(command: Command) -> list[str] | None:
    """What `triptych` is given, by itself or by a script under workflows/; None: another program's command."""
    script = re.search(r"workflows/extract_(\w+)\.py (?:-- )?(.*)", command.text)
    if script:
        return ["extract", script[1], "--engine", "ray", *shlex.split(script[2])]
    return words(command.text)[1:] if command.text.startswith("triptych ") else None


def words(text: str) -> list[str]:
    """The words of a command line, up to where it is piped, or goes on with another command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&>")
    lexer.whitespace_split = True
    return list(takewhile(lambda word: word[0] not in "|&>", lexer))


@pytest.mark.parametrize("command", [each for each in COMMANDS if arguments(each)], ids=str)
def test_the_flags_and_weights_of_every_command_are_known(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given, parse = arguments(command) or [], tyro.cli

    def parsed_only(*args: Any, **settings: Any) -> Any:
        found = parse(*args, **settings)
        monkeypatch.setattr(type(found), "run", lambda _: 0, raising=False)
        return found

    monkeypatch.setattr(tyro, "cli", parsed_only)
    assert main(given) == 0
    weights = given[given.index("--weights") + 1] if "--weights" in given else "random:0"
    assert weights in PUBLISHED or shipped_file(weights) or weights.startswith("random:") or Path(weights).suffix


def test_commands_within_sentences_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    spans = {
        each for page in PAGES for each in re.findall(r"`triptych ([a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    }
    assert len(spans) > 15
    for name in sorted(spans):
        try:
            status = main([name, "--help"])
        except SystemExit as end:
            status = int(end.code or 0)
        assert status == 0, f"`triptych {name}` is no command"


@pytest.mark.parametrize("page", [page for page in PAGES if any(each.block.page == page for each in COMMANDS)], ids=str)
def test_every_other_command_runs(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for number, command in enumerate(each for each in COMMANDS if each.block.page == page and not reason(each)):
        given = arguments(command)
        assert given is not None, f"{command} is no command of triptych; run it, or say in NOT_RUN why not"
        status = main(tiny(given, number) if given[0] in ("extract", "plan") else prepared(given))
        assert status == 0 or (given[0] == "diff" and status == 1), f"{command}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=str)
def test_the_python_of_a_page_runs(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in (each for each in PYTHON if each.page == page):
        code = compile(smaller(block), str(block), "exec")
        if page.relative_to(ROOT).as_posix() not in PYTHON_NOT_RUN:
            exec(code, names)


def test_tests_that_documents_and_reasons_name_are_there() -> None:
    named = [*NOT_RUN.values(), *PYTHON_NOT_RUN.values(), *(page.read_text(encoding="utf-8") for page in PAGES)]
    found = [each for text in named for each in re.findall(r"(tests/[\w/]+\.py)(?:::(test_\w+))?", text)]
    pains = (ROOT / "docs" / "pains.md").read_text(encoding="utf-8")  # it names tests in words
    in_words = re.findall(r"\((?:\.\./)(tests/[\w/]+\.py)\): ([a-z0-9 ]+)", pains)
    found += [(file, f"test_{words.strip().replace(' ', '_')}") for file, words in in_words]
    assert len(found) > 60 and len(in_words) > 20
    missing = [
        each for each in found if f"def {each[1] or 'test_'}" not in (ROOT / each[0]).read_text(encoding="utf-8")
    ]
    assert missing == []
    used = [pattern for pattern in NOT_RUN if any(re.match(pattern, each.text) for each in COMMANDS)]
    assert used == list(NOT_RUN)  # a reason for nothing is a mistake


def tiny(given: Sequence[str], number: int) -> list[str]:
    """An extraction with a small random network, or a small image, into a store of its own."""
    size = TINY if given[1] != "pixels" else TINY[4:8]
    flags = ("--weights", "--out", *size[::2])
    kept = [each for at, each in enumerate(given) if each not in flags and given[at - 1] not in flags]
    return [*kept, *size, "--out", f"new/{number}"]


def prepared(given: list[str]) -> list[str]:
    """The same command; the stores and files that it reads are there now."""
    exports = given[0] == "export"
    for each in given[1 : given.index("--out")] if "--out" in given else given[1:]:
        if each.startswith("features/") and not Path(each).exists():
            shutil.copytree("features/grid" if "grid" in each or "x152" in each else "features/regions", each)
    if given[0] == "import" and not Path(given[3]).exists():
        base = "features/grid" if "grid" in given[2] else "features/regions"
        Path(given[3]).parent.mkdir(exist_ok=True)
        assert main(["export", base, "--to", given[2], "--out", given[3]]) == 0
    if exports:  # where an import of the same page reads what is exported, it is the one that is here
        shutil.rmtree(given[-1], ignore_errors=True)
    return given


def smaller(block: Block) -> str:
    """A snippet with small random weights for published ones."""
    text = block.text
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    return text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents' commands name, small."""
    root = tmp_path_factory.mktemp("world")
    first, second = write_photos(root / "drawn", 2)
    for source, names in (
        (first, ["photos/cat", "photos/42", "cat", "coco/COCO_val2014_000000000042"]),
        (second, ["photos/holiday/beach"]),
    ):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "drawn" / f"{source}.jpg", root / f"{name}.jpg")
    official_files.write_vqa(root)
    write_lists(root)
    write_stores(root / "features")
    return root


def write_lists(root: Path) -> None:
    """Sources beside the folder of photographs, boxes, and files that name images."""
    (root / "list.tsv").write_text("one\tcat.jpg\ntwo\tholiday/beach.jpg\n")
    (root / "wanted.txt").write_text("cat\n")
    (root / "shards").mkdir()
    for shard, key in enumerate(("cat", "holiday/beach")):
        with tarfile.open(root / "shards" / f"{shard:03}.tar", "w") as tar:
            tar.add(root / "photos" / f"{key}.jpg", f"{shard}.jpg")
    pq.write_table(pa.table({"key": ["cat"], "image": [(root / "cat.jpg").read_bytes()]}), root / "train.parquet")
    sizes = [{"id": key, "file_name": f"{key}.jpg", "width": 64, "height": 48} for key in KEYS]
    (root / "instances_val2014.json").write_text(json.dumps({"images": sizes}))
    boxes = [{"image_id": number, "bbox": [1, 2, 10, 12]} for number in (1, 2)]
    images = [dict(each, id=number) for number, each in enumerate(sizes[:2], 1)]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    (root / "coco_boxes.json").write_text(json.dumps({each["image_id"]: [each["bbox"]] for each in boxes}))
    (root / "boxes.json").write_text(json.dumps({"cat": [[5, 5, 60, 50]], "holiday/beach": [[1, 2, 11, 22]]}))
    (root / "annotations" / "captions.json").write_text(json.dumps({"annotations": [{"image_id": 42}]}))


def write_stores(root: Path) -> None:
    """Regions and a grid of the widths that other projects' files have."""
    rng = np.random.default_rng(0)
    regions, grid = (Spec(view, FeatureLayout(2048)) for view in ("regions", "grid"))
    with StoreWriter(root / "regions", regions, {"classes": [str(each) for each in range(1600)]}).unit(KEYS) as unit:
        for key in KEYS:
            unit.append(region_record(key, rng))
        unit.commit({})
    with StoreWriter(root / "grid", grid).unit(KEYS) as unit:
        for key in KEYS:
            unit.append(GridRecord(key, (48, 64), rng.random((2, 3, 2048)).astype(np.float16)))
        unit.commit({})


def region_record(key: str, rng: np.random.Generator) -> RegionRecord:
    boxes = np.array([[0, 0, 32, 24], [8, 8, 64, 48]], np.float32)
    features, whole = rng.random((2, 2048)).astype(np.float16), rng.random(2048).astype(np.float16)
    ids, scores = np.arange(2, dtype=np.int32), np.array([0.9, 0.4], np.float32)
    return RegionRecord(key, (48, 64), boxes, features, whole, ids, scores, ids, scores)
