"""Two processes that train together are as one: losses, evaluation, and stopping."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Command
from tests.unit.trainers.toy import Toy, told, toy_config, toy_model, toy_run
from trainers.evaluate import evaluate, in_turn


def start_two(out: Path, **settings: Any) -> list[Command]:
    """Two ranks, as torchrun would start them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    told = json.dumps({"out": str(out), **settings})
    return [
        Command(
            "tests.unit.trainers.toy",
            [told],
            out.with_name(f"{out.name}-said-{rank}"),
            shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]


def ended(commands: list[Command]) -> list[dict[str, Any]]:
    """The summaries of both."""
    for command in commands:
        assert command.wait() == 0, command.err
    return [json.loads(command.out.splitlines()[-1]) for command in commands]


def test_two_ranks_have_the_losses_of_one_at_the_same_global_batch(tmp_path: Path) -> None:
    """Equal to 2e-4, not to the last bit: the sums of two halves are rounded once more than those of the whole.

    The batch of 7 is cut into 3 and 4, in parts of 2; words are counted unevenly; one head gets no gradients; no
    dropout, which each rank draws for itself.
    """
    settings = {"dropout": 0.0, "batch_size": 7, "steps": 12, "evaluate_every": 6}
    toy_run({"out": str(tmp_path / "one"), **settings})
    first, second = ended(start_two(tmp_path / "two", micro_batch=2, **settings))
    one, two = told(tmp_path / "one"), told(tmp_path / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for mine, theirs in zip(two, one, strict=True):
        if "losses" in theirs:
            assert mine["losses"] == pytest.approx(theirs["losses"], rel=2e-4)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-3)
        else:
            assert mine["scores"] == theirs["scores"]
    assert first["losses"] == second["losses"] and first["scores"] == second["scores"]
    predictions = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "two")]
    assert predictions[0] == predictions[1]
    assert len(predictions[0]) == 10


def test_a_signal_to_one_rank_stops_both_at_the_same_step(tmp_path: Path) -> None:
    settings = {"steps": 400, "slow": 0.02, "save_every": 500}
    processes = start_two(tmp_path, **settings)
    while not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").read_text().count("\n") < 2:
        time.sleep(0.01)
        assert processes[0].poll() is None
    processes[1].send_signal(signal.SIGTERM)
    first, second = ended(processes)
    assert first["interrupted"] and second["interrupted"]
    assert 2 <= first["step"] == second["step"] < 400
    assert (tmp_path / "checkpoints" / f"step-{first['step']:08d}.json").exists()


def test_the_shares_of_ranks_make_up_a_split() -> None:
    for world in (1, 2, 3, 4):
        assert in_turn([list(range(rank, 10, world)) for rank in range(world)]) == list(range(10))
    assert in_turn([[], []]) == []


def test_evaluation_leaves_the_model_as_it_was_and_writes_predictions(tmp_path: Path) -> None:
    model = toy_model().train()
    found = evaluate(model, Toy(11), toy_config(tmp_path, micro_batch=4))
    assert model.training
    assert len(found.predictions) == 11
    assert found.predictions == json.loads((tmp_path / "predictions.json").read_text())
    assert found.scores == Toy().score(found.predictions)


def test_a_task_that_forgets_a_prediction_is_told(tmp_path: Path) -> None:
    class Forgets(Toy):
        def predict(self, model, batches):  # type: ignore[no-untyped-def]
            return super().predict(model, batches)[1:]

    with pytest.raises(ValueError, match="3 predictions for 4 examples; a task's predict gives one for each"):
        evaluate(toy_model(), Forgets(4), toy_config(tmp_path))
