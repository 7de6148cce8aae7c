"""What all commands have in common: their list, help, examples, completion, wrong options, --json and --quiet."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from storage import open_store
from storage.interop.transfer import export_store
from tests.helpers import json_lines, write_photos
from tests.unit.storage.samples import REGIONS, make_store, with_layout
from workflows.cli import COMMANDS, main, parse
from workflows.output import Command

ROOT = Path(__file__).parents[2]
CLASSES: dict[str, type[Any]] = {name: resolve_name(f"workflows.{place}") for name, (place, _) in COMMANDS.items()}
HEAVY = ("torch", "torchvision", "transformers", "timm", "ray", "matplotlib", "torchmetrics")


def examples(name: str) -> list[str]:
    """The command lines in the docstring of a command."""
    return [line.strip() for line in str(CLASSES[name].__doc__).splitlines() if line.strip().startswith("triptych ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_as_its_class_describes_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert issubclass(CLASSES[name], Command)
    summary = COMMANDS[name][1]
    assert summary.endswith(".") and " ".join(str(CLASSES[name].__doc__).split()).startswith(summary[:-1])
    assert main(["--help"]) == 0
    assert re.search(rf"^  {name} +{re.escape(summary)}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_are_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert any(line.startswith(f"triptych {name}") for line in examples(name))
    for line in examples(name):
        assert line in told
        command = parse(shlex.split(line.partition(" > ")[0])[1:])
        assert isinstance(command, Command)


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    told = capsys.readouterr().out
    assert "data check" in told and "data list" in told and "extract" not in told.partition("cache, compare.")[2]
    assert main(["extract"]) == 2 and main([]) == 2


def test_no_help_imports_what_takes_seconds() -> None:
    code = (
        "import sys; from workflows.cli import COMMANDS, main\n"
        "assert not any(main([*name.split(), '--help']) for name in COMMANDS)\n"
        f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_extraction_does_not_import_pandas(tmp_path: Path) -> None:
    """As pyarrow would, for `pa.array` and `to_numpy`: every process of a job would take a second, and 60 MB, more."""
    line = "extract grid --images workflows/photos --model r50 --weights random:0 --shorter 64 --longer 64 --device cpu"
    code = (
        "import sys; from workflows.cli import main\n"
        f"assert not main([*{line.split()}, '--out', {str(tmp_path / 'out')!r}])\n"
        "sys.exit('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ifno x", "there is no command 'ifno'; did you mean info? `triptych --help` lists all."),
        ("--verison", "there is no command '--verison'. `triptych --help` lists all."),
        ("frobnicate", "there is no command 'frobnicate'. `triptych --help` lists all."),
        ("extract gird", "extract needs one of regions, grid, patches, pixels, and not 'gird'; did you mean grid?"),
        ("extract grid --weigths c", "no option --weigths; did you mean --weights? `triptych extract grid --help`"),
        ("info s --jsn", "there is no option --jsn; did you mean --json? `triptych info --help` shows all."),
        ("doctor --bogus", "there is no option --bogus. `triptych doctor --help` shows all."),
        ("extract grid --images a --out b --model x102", "--model 'x102' is not known; choose one of butd-r101, r50,"),
        ("extract regions --images a --out b --model grid-x10", "detectron2:CONFIG.yaml; did you mean grid-x101?"),
        ("extract regions --images a --out b --views gird,regions", "'gird' is not known"),
        ("import . --from lxmert-tvs --out s", "did you mean lxmert-tsv?"),
        ("train vilt_vqua --out r", "there is no recipe 'vilt_vqua'; did you mean vilt_vqa?"),
        ("train vilt_vqa --out r --visual pixel", "choose one of store, pixels, cache-through; did you mean pixels?"),
        ("data check vqa2 --root r", "; did you mean vqav2?"),
        ("doctor --models grid-r50", "choose from grid r50, grid x101, grid x152, grid x152pp, regions butd-r101; did"),
        ("diff s", "missing from triptych diff: STR Another one of the same view. (required)"),
        ("compact s --shard-mb x", "error parsing --shard-mb: invalid literal for int()"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_nearest(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("triptych: ") and told.err.count("\n") == 1
    assert words in told.err


def test_the_version_comes_with_what_a_report_of_a_bug_needs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["--version"]) == 0
    first, *facts = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"triptych \d+\.\d+\.\d+", first)
    torch_line = f"torch {torch.__version__.partition('+')[0]}"
    assert torch_line in facts and f"CUDA of torch {torch.version.cuda or 'none'}" in facts
    assert any(line.startswith("commit ") for line in facts)


@pytest.mark.parametrize("line", ["--version", "--help", "extract --help", "data list", "completion fish"])
def test_who_stops_reading_ends_the_command_without_a_word(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `| head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(line.split()) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_all_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        assert all(word in script for word in name.split()), name
    assert "--decode-workers" in script


def test_bash_completes_what_was_begun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the program in the script, as its shell function calls it."""
    assert main(["completion", "bash"]) == 0
    program = capsys.readouterr().out.split("PYTHON_EOF")[1].partition("\n")[2]
    for line, wanted in {
        "ex": ["explain", "export", "extract"],
        "extract grid --de": ["--decode-on", "--decode-workers", "--device"],
        "extract grid --model x152": ["x152", "x152pp"],
        "train --start-": ["--start-network"],
    }.items():
        words = line.split()
        monkeypatch.setattr(sys, "argv", ["-", "triptych", *words, str(len(words))])
        exec(program, {"__name__": "__main__"})
        found = [each.partition("\t")[0] for each in capsys.readouterr().out.splitlines()]
        assert sorted(found) == wanted, line


# Every command with little to do: `{s}` is a store with an error row, `{t}` another one, `{o}` a new folder.
CHEAP = {
    "extract pixels": "--images {photos} --out {o} --shorter 16 --longer 24",
    "plan pixels": "--images {photos} --out {o} --shorter 16 --longer 24 --probe 2",
    "retry": "{s}",
    "info": "{s}",
    "errors": "{s}",
    "verify": "{s}",
    "repair": "{s}",
    "compact": "{s}",
    "diff": "{s} {t}",
    "card": "{s}",
    "report": "{s} --out {o} --number 2",
    "convert": "{s} --to hdf5 --out {o}",
    "export": "{s} --to webdataset --out {o}",
    "import": "{tsv} --from lxmert-tsv --out {o}",
    "doctor": "--models= --out {o}",
    "data check": "vqav2 --root {photos}",
    "data list": "",
    "train": "--list",
    "compare": "--list",
    "completion": "fish",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photographs with a broken one, two stores of their pixels, and a feature file."""
    folder = tmp_path_factory.mktemp("stores")
    write_photos(folder / "photos", 3)
    (folder / "photos" / "broken.jpg").write_bytes(b"no image")
    flags = ["--images", str(folder / "photos"), "--shorter", "16", "--longer", "24", "--quiet"]
    assert main(["extract", "pixels", *flags, "--out", str(folder / "s")]) == 0
    assert main(["extract", "pixels", *flags, "--out", str(folder / "t"), "--limit", "3"]) == 0
    regions = make_store(folder / "regions", [["1", "22"]], with_layout(REGIONS, dtype="float32", dim=2048))
    export_store(regions, folder / "x.tsv", "lxmert-tsv")
    return {name: folder / name for name in ("photos", "s", "t")} | {"tsv": folder / "x.tsv"}


def command_line(name: str, places: dict[str, Path], out: Path) -> list[str]:
    return [*name.split(), *CHEAP[name].format(**places, o=out).split()]


@pytest.fixture
def small_disk_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.doctor

    monkeypatch.setattr(pipeline.doctor, "WRITTEN", 1 << 20)


@pytest.mark.usefixtures("small_disk_trial")
@pytest.mark.parametrize("name", CHEAP)
def test_json_prints_json_lines_and_quiet_nothing(
    name: str, places: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = main(command_line(name, places, tmp_path / "plain"))
    plain = capfd.readouterr()
    assert plain.out.strip() and not re.search("[\r\x1b]", plain.out + plain.err), "a pipe takes plain lines only"
    assert main([*command_line(name, places, tmp_path / "json"), "--json"]) == status
    assert json_lines(capfd.readouterr().out)
    assert main([*command_line(name, places, tmp_path / "quiet"), "--quiet"]) == status
    assert capfd.readouterr() == ("", "")


def test_quiet_leaves_errors_and_what_json_prints(
    places: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tmp_path / "none"), "--quiet"]) == 2
    told = capfd.readouterr()
    assert told.out == "" and told.err.startswith("triptych: ") and told.err.count("\n") == 1
    line = command_line("extract pixels", places, tmp_path / "s")
    assert main([*line, "--quiet", "--json"]) == 0
    told = capfd.readouterr()
    assert told.err == "" and json_lines(told.out)[-1]["event"] == "end"
    assert len(open_store(tmp_path / "s")) == 3


def test_without_ray_a_line_says_how_to_get_it(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pipeline.cluster", raising=False)
    assert main([*command_line("extract pixels", places, tmp_path / "s"), "--engine", "ray"]) == 2
    told = capsys.readouterr().err
    assert told == "triptych: Ray is not installed; `pip install 'triptych[ray]'`, or use --engine local.\n"
    assert not (tmp_path / "s").exists()
