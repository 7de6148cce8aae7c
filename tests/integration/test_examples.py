"""Every example, as its docstring starts it, on stores that the command made: what it prints is what they hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import open_store
from storage.codecs import cast, decode, encode
from storage.compact import fold
from tests.helpers import TINY, write_photos
from tests.notebooks import run_cells
from workflows.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FOLDED = {("regions", "arrow"), ("grid", "hdf5")}
Stores = dict[tuple[str, str], Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """By view and format: five images in three shards; two of the stores are folded, and one has a later unit as well.

    Each has a shard that a killed job left beside the committed ones.
    """
    folder = tmp_path_factory.mktemp("stores")
    write_photos(folder / "photos", 5)
    whole = (folder / "photos" / "a" / "photo_000.jpg").read_bytes()
    (folder / "photos" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    found = {
        (view, format): folder / f"{view}-{format}" for view in ("regions", "grid") for format in ("arrow", "hdf5")
    }
    for (view, format), out in found.items():
        if (view, format) in FOLDED:
            assert extract(view, format, folder / "photos", out, "--limit", "4") == 0
            assert fold(out) > 0
        assert extract(view, format, folder / "photos", out) == 0
        shard = next((out / "shards").iterdir())
        (out / "shards" / f"{'0' * 32}{shard.suffix}").write_bytes(shard.read_bytes())
    return found


def extract(view: str, format: str, photos: Path, out: Path, *more: str) -> int:
    flags = ["--images", str(photos), "--out", str(out), "--format", format, "--images-per-shard", "2"]
    return main(["extract", view, *flags, *(["--model", "r50"] if view == "grid" else []), *TINY, *more])


def run(example: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """An example as a user starts it, from another folder than the repository's."""
    command: list[str | Path] = [sys.executable, EXAMPLES / f"{example}.py", *arguments]
    return subprocess.run(command, cwd=arguments[0].parent, capture_output=True, text=True, check=False)


def printed(example: str, store: Path) -> list[list[str]]:
    done = run(example, store)
    assert done.returncode == 0, done.stderr
    return sorted(line.split("\t") for line in done.stdout.splitlines())


def wanted(path: Path, flat: bool = False) -> list[list[str]]:
    """A line an image: key, shape, dtype and checksum of its features; `flat` has the cells of a grid in one row."""
    lines = []
    for key, record in open_store(path).items():
        features = record.features.reshape(-1, record.features.shape[-1]) if flat else record.features
        lines.append([key, str(features.shape), str(features.dtype), f"{zlib.crc32(features.tobytes()):08x}"])
    assert len({line[-1] for line in lines}) == len(lines) == 5
    return sorted(lines)


@pytest.mark.parametrize("view", ["regions", "grid"])
@pytest.mark.parametrize(
    ("example", "format"),
    [
        ("read_with_h5py", "hdf5"),
        ("read_with_pyarrow", "arrow"),
        ("read_with_datasets", "arrow"),
        ("read_with_webdataset", "arrow"),
        ("read_with_webdataset", "hdf5"),
    ],
)
def test_another_tool_reads_what_the_store_holds(example: str, format: str, view: str, stores: Stores) -> None:
    assert printed(example, stores[view, format]) == wanted(stores[view, format])


@pytest.mark.ray
def test_ray_data_reads_what_the_store_holds(stores: Stores) -> None:
    assert printed("read_with_ray_data", stores["regions", "arrow"]) == wanted(stores["regions", "arrow"])


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_notebook_reads_with_ray_data_what_the_store_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_cells("read_with_ray_data")
    assert sorted(names["means"]) == sorted(names["store"]) == ["astronaut", "chelsea", "coffee", "rocket"]
    assert len(names["shards"]) == 2


@pytest.mark.parametrize(("view", "format"), [("regions", "arrow"), ("grid", "hdf5")])
def test_torch_gets_every_image_once_in_each_way(view: str, format: str, stores: Stores) -> None:
    store = stores[view, format]
    lines = printed("read_with_torch", store)
    for way in ("by index", "stream", "packed"):
        assert [line[1:] for line in lines if line[0] == way] == wanted(store, flat=way == "packed")
    assert len(lines) == 15


def test_the_stores_here_are_folded_unfolded_and_both(stores: Stores) -> None:
    for each, store in stores.items():
        assert (store / "index.json").exists() == (each in FOLDED)
        assert list((store / "manifest").glob("*.json"))
        assert len(list((store / "shards").iterdir())) == 1 + sum(
            unit.shard is not None for unit in open_store(store).units
        )


def test_a_store_of_the_other_format_is_one_line(stores: Stores) -> None:
    for example, format, suffix in (("read_with_h5py", "arrow", ".h5"), ("read_with_pyarrow", "hdf5", ".arrow")):
        done = run(example, stores["grid", format])
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == f"{stores['grid', format]} has no committed {suffix} shard\n"


def test_datasets_shows_the_features_that_the_page_names(stores: Stores) -> None:
    done = run("read_with_datasets", stores["regions", "arrow"])
    page = (ROOT / "docs" / "reading_elsewhere.md").read_text()
    assert "'features': List(List(Value('float16'), length=64))" in done.stderr
    assert "List(List(Value('float16'), length=D))" in page


def test_examples_are_short_documented_and_on_the_page() -> None:
    page = (ROOT / "docs" / "reading_elsewhere.md").read_text()
    for path in (*EXAMPLES.glob("read_*.py"), EXAMPLES / "committed.py"):
        text = path.read_text()
        assert len(text.splitlines()) < 40, path
        assert path.name in page
        if path.name != "committed.py":
            assert f"uv run python examples/{path.name} STORE" in (ast.get_docstring(ast.parse(text)) or "")


def test_the_page_decodes_other_number_types_as_the_store_does() -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reading_elsewhere.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(snippet, found)
    rows = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    rows[:3] = np.abs(rows[:3])
    rows[0] = 0
    codes, scales = encode(rows)
    assert (scales < 0).any() and (scales > 0).any()
    np.testing.assert_allclose(found["from_uint8"](codes, scales), decode(codes, scales, "float32"), rtol=1e-6)
    half = cast(rows, "bfloat16")
    np.testing.assert_array_equal(found["from_bfloat16"](half.view(np.uint16)), cast(half, "float32"))


@pytest.mark.parametrize("name", ["h5py", "pyarrow", "datasets", "ray_data"])
def test_examples_of_other_tools_need_nothing_of_this_repository(name: str) -> None:
    found = [
        each.name for path in (EXAMPLES / f"read_with_{name}.py", EXAMPLES / "committed.py") for each in imported(path)
    ]
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert "storage" in ours and not ours & {each.split(".")[0] for each in found}


def imported(path: Path) -> list[ast.alias]:
    """What a script imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += node.names
        elif isinstance(node, ast.ImportFrom):
            found.append(ast.alias(node.module or ""))
    return found
