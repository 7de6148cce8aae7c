"""Imports point down only, and what must run without Ray or torch does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["storage", "extractors", "trainers", "pipeline", "workflows"]  # each may import those before it

# Packages that only some folders may import.
KEPT_IN = {"ray": {"pipeline"}, "tyro": {"workflows"}, "argparse": {"workflows"}}


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands, the module it names, and whether it runs as its file is imported."""

    place: str
    module: str
    at_module_level: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(folder: str) -> Iterator[Import]:
    """Every import in a folder's files, whatever block it stands in; not those for type checkers."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield from _imports(path, ast.parse(path.read_text()), at_module_level=True)


def _imports(path: Path, node: ast.AST, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        place = f"{path.relative_to(ROOT)}:{getattr(child, 'lineno', 0)}"
        if isinstance(child, ast.Import):
            yield from (Import(place, each.name, at_module_level) for each in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{place} imports by dots; name the module"
            yield Import(place, child.module or "", at_module_level)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(path, child, at_module_level and not inside)


def modules_of(*folders: str) -> list[str]:
    """The importable names of all files in some folders."""
    found = [path.relative_to(ROOT).with_suffix("") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in found)


def run_python(code: str) -> None:
    """Run a program in a fresh process; it must end well."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_point_down(folder: str) -> None:
    allowed = set(LAYERS[: LAYERS.index(folder) + 1])
    wrong = [each for each in imports_of(folder) if each.package in {*LAYERS, "tests"} - allowed]
    assert not wrong, f"{folder}/ may import {sorted(allowed)}"


@pytest.mark.parametrize("package", KEPT_IN)
def test_some_packages_are_kept_in_their_folder(package: str) -> None:
    folders = set(LAYERS) - KEPT_IN[package]
    wrong = [each for folder in folders for each in imports_of(folder) if each.package == package]
    assert not wrong, f"{package} belongs to {sorted(KEPT_IN[package])}"


FOR_TORCH = "storage.torch_data"  # torch data sets: whoever imports it has torch; nothing in storage/ does


def test_storage_does_not_name_torch_at_module_level() -> None:
    found = [each for each in imports_of("storage") if each.package == "torch" and each.at_module_level]
    assert {each.place.partition(":")[0] for each in found} == {"storage/torch_data.py"}
    assert not [each for each in imports_of("storage") if each.module == FOR_TORCH]


def test_the_storage_layer_loads_without_torch() -> None:
    modules = ", ".join(module for module in modules_of("storage") if module != FOR_TORCH)
    run_python(f"import {modules}, sys; assert 'torch' not in sys.modules, 'torch was imported'")


def test_the_lower_layers_load_without_ray() -> None:
    modules = ", ".join(modules_of("storage", "extractors", "trainers"))
    run_python(f"import sys; sys.modules['ray'] = None; import {modules}; assert sys.modules['ray'] is None")


SLOW = ("ray", "timm", "torch._dynamo", "torchvision", "transformers")  # seconds each, of every process that starts


def test_a_command_starts_without_what_takes_seconds_to_import() -> None:
    commands = "from workflows.cli import main; import pipeline.unit, workflows.train; assert main(['train']) == 0"
    run_python(f"{commands}; import sys; assert not [each for each in {SLOW} if each in sys.modules], 'slow'")


def test_no_module_of_ours_hides_one_of_pythons() -> None:
    assert not set(LAYERS) & set(sys.stdlib_module_names)


def test_the_check_itself_finds_imports_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "x.py").write_text(
        "import a.b as c, d\n"
        "from e.f import g\n"
        "if d:\n    import h\n"
        "class I:\n    import j\n    def k(self):\n        import l\n        return lambda: __import__('m')\n"
        "if TYPE_CHECKING:\n    import n\n"
    )
    found = {each.module: each.at_module_level for each in imports_of("storage")}
    assert found == {"a.b": True, "d": True, "e.f": True, "h": True, "j": True, "l": False}
