"""The doctor: what it finds, and what it makes of machines that are set up badly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pipeline.doctor as doctor
from extractors import GridConfig
from pipeline.probe import Probe
from workflows.cli import main
from workflows.doctor import MODELS

NARROW = GridConfig(model="r50", weights="random:0", width_divisor=32, shorter=64, longer=100, device="cpu")


def test_the_command_prints_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(MODELS, "grid r50", NARROW)
    monkeypatch.setattr(doctor, "WRITTEN", 2 << 20)
    assert main(["doctor", "--out", str(tmp_path / "not" / "there"), "--models", "grid r50"]) in (0, 1)
    told = capsys.readouterr().out
    for line in ("processor", "memory", "GPU", "number types", "decoder", "torch", "Ray", "disk"):
        assert f"\n{line} " in f"\n{told}"
    assert f"written to {tmp_path}" in told and "grid r50" in told.splitlines()[-1] and "bound by" in told
    assert list(tmp_path.iterdir()) == []


def test_unknown_networks_and_addresses_are_one_line(capsys: Any) -> None:
    assert main(["doctor", "--models", "grid r51"]) == 2
    assert "'grid r51' is not known; choose from grid r50" in capsys.readouterr().err
    assert main(["doctor", "--models", "", "--out", "s3://bucket/x"]) == 2
    assert "tries the disks of this machine" in capsys.readouterr().err


def test_a_disk_that_cannot_be_written_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(folder: Path) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "write_rate", full)
    assert main(["doctor", "--models", ""]) == 1
    assert "cannot be written (No space left on device): choose another --out" in capsys.readouterr().out


def test_number_types_are_tried_and_wrong_ones_refused_before_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(MODELS, "grid r50", NARROW)
    monkeypatch.setattr(doctor, "WRITTEN", 2 << 20)
    assert main(["doctor", "--models", "grid r50", "--dtype", "float8"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "--dtype 'float8' is not known" in told.err
    assert main(["doctor", "--models", "grid r50", "--dtype", "float16"]) in (0, 1)
    assert "(600/1000, float16, random weights)" in capsys.readouterr().out


def test_a_probe_runs_as_many_images_as_asked(tmp_path: Path) -> None:
    photos = Path(__file__).parents[3] / "workflows" / "photos"
    probe = doctor.try_model(NARROW, photos, 9)
    assert probe.images == 7 and probe.bytes > 0 and not probe.reasons and probe.stages["model"] > 0


def test_what_bounds_a_network() -> None:
    def probe(**stages: float) -> Probe:
        return Probe(10, 1.0, 1000, stages=stages)

    assert doctor.bound(probe(decode=0.5), disk=1e9) == "the network"
    assert doctor.bound(probe(read=0.9, decode=0.9), disk=1e9).startswith("decoding: raise --decode-workers above 2")
    assert doctor.bound(probe(decode=0.5), disk=1100).startswith("the disk")


def test_what_is_set_up_badly_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor.features, "check", lambda name: False)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 256))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.amx, "missing", lambda: "there is no C++ compiler: install g++")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    told = list(doctor.troubles())
    parts = (
        "NVIDIA GPU",
        "OMP_NUM_THREADS is 1; unset",
        "install g++",
        "oneDNN",
        "libjpeg-turbo",
        "ulimit -n",
        "TMPDIR",
    )
    assert len(told) == len(parts) and all(part in line for part, line in zip(parts, told, strict=True))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert any("would use 64 threads, and this container may use 4 cores" in line for line in doctor.troubles())


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_without_a_compiler_is_told(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_taken_gpus", lambda: iter(()))
    monkeypatch.setattr(doctor, "has_triton", lambda: there)
    assert any("install gcc" in line for line in doctor.troubles()) is not there


def test_gpus_that_others_use_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((20 if number else 80) << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "utilization", lambda number: 97 * number)
    first, second = list(doctor._taken_gpus())
    assert first.startswith("of GPU 1 others hold 60 of 80 GiB: ") and second.startswith(
        "GPU 1 is 97 % busy with other"
    )
    assert {first, second} <= set(doctor.troubles())

    def missing(number: int) -> int:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert list(doctor._taken_gpus()) == [first]
