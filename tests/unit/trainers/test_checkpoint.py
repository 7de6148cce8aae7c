"""Checkpoints: what survives kills and damage, which are kept, and object stores."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from storage.errors import StoreError, TriptychError
from storage.places import open_place
from tests.forked import Command
from tests.unit.trainers.toy import Toy, told, toy_config, toy_model
from trainers.checkpoint import Checkpoints, load_weights
from trainers.loop import resume, train
from trainers.progress import Metrics

STEPS = 40


def start(out: Path, **settings: Any) -> Command:
    told = json.dumps({"out": str(out), "steps": STEPS, "save_every": 3, "log_every": 2, **settings})
    return Command("tests.unit.trainers.toy", [told], out.with_name(f"{out.name}-said"))


def test_kill_9_at_a_random_step_leaves_no_trace_in_the_losses(tmp_path: Path) -> None:
    """Dropout, a seam of epochs and an evaluation included; bit for bit, by JSON's shortest exact decimals."""
    whole = start(tmp_path / "whole", evaluate_every=7)
    killed = start(tmp_path / "killed", evaluate_every=7, slow=0.05)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    wanted = random.randrange(5, 16)  # lines; more of them come until the kill
    while not metrics.exists() or metrics.read_text().count("\n") < wanted:
        assert killed.poll() is None, killed.err
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached, saved = told(tmp_path / "killed")[-1]["step"], Checkpoints(tmp_path / "killed").steps()[-1]
    assert saved <= reached < STEPS
    again = start(tmp_path / "killed", evaluate_every=7, resume=True)
    assert again.wait() == 0, again.err
    assert whole.wait() == 0, whole.err
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    for file in ("model", "optimiser"):
        path = Path("checkpoints") / f"step-{STEPS:08d}" / f"{file}.safetensors"
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    assert not list((tmp_path / "killed").rglob(".*.partial"))


def test_lines_behind_the_checkpoint_and_torn_ones_go(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    metrics = Metrics(open_place(tmp_path), 4)
    metrics.add({"step": 5})
    metrics.close()
    assert [line["step"] for line in told(tmp_path)] == [2, 4, 5]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    resume(toy_config(tmp_path, steps=2), toy_model(), Toy())
    assert [line["step"] for line in told(tmp_path)] == [1, 2]


@pytest.mark.parametrize("file", ["step-00000012.json", "step-00000012/model.safetensors"])
def test_a_damaged_newest_one_is_told_and_the_one_before_it_taken(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(toy_config(tmp_path, keep=3), toy_model(), Toy())
    lines = told(tmp_path)
    path = tmp_path / "checkpoints" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = resume(toy_config(tmp_path, keep=3), toy_model(), Toy())
    assert "the checkpoint of step 12 is passed over: " in capsys.readouterr().err
    assert again.losses == whole.losses
    assert told(tmp_path) == lines


def test_where_all_are_damaged_nothing_is_trained(tmp_path: Path) -> None:
    train(toy_config(tmp_path, steps=2), toy_model(), Toy())
    (tmp_path / "checkpoints" / "step-00000002" / "optimiser.safetensors").unlink()
    with pytest.raises(TriptychError, match="all checkpoints of .* are damaged; start the run again in another --out"):
        resume(toy_config(tmp_path, steps=2), toy_model(), Toy())


def test_the_newest_are_kept_and_the_folders_of_the_others_go(tmp_path: Path) -> None:
    train(toy_config(tmp_path, save_every=1, steps=5, keep=2), toy_model(), Toy())
    assert Checkpoints(tmp_path).steps() == [4, 5]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_a_run_on_an_object_store_is_the_same_and_goes_on(tmp_path: Path) -> None:
    train(toy_config(tmp_path), toy_model(), Toy(), Toy(10))
    address = "memory://toy-run"
    first = train(toy_config(address), toy_model(), Toy(), Toy(10))
    files = fsspec.filesystem("memory")
    lines = [json.loads(line) for line in files.cat_file("/toy-run/metrics.jsonl").decode().splitlines()]
    assert [line.get("losses") for line in lines] == [line.get("losses") for line in told(tmp_path)]
    assert files.exists("/toy-run/predictions.json") and files.exists("/toy-run/config.json")
    Checkpoints(address).remove(12)
    assert resume(toy_config(address), toy_model(), Toy(), Toy(10)).losses == first.losses


def test_weights_of_another_model_or_of_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no checkpoint yet; train first"):
        load_weights(toy_model(), tmp_path)
    train(toy_config(tmp_path, steps=2), toy_model(), Toy())
    with pytest.raises(StoreError, match=r"no checkpoint of step 7, only of \[2\]"):
        load_weights(toy_model(), tmp_path, 7)
    with pytest.raises(StoreError, match="step-00000002 is of another model"):
        load_weights(toy_model().heads, tmp_path)
