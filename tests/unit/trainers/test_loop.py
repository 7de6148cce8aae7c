"""The training loop: what it learns, accumulates, tells and refuses."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from extractors import ConfigError
from storage.errors import TriptychError
from tests.unit.trainers.toy import Toy, told, toy_config, toy_model
from trainers.checkpoint import Checkpoints, load_weights
from trainers.config import Rule
from trainers.loop import DivergedError, prepare, resume, train
from trainers.models.layers import Encoder
from trainers.order import Order


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in told(out) if "loss" in line]


def test_a_run_learns_and_leaves_all_that_is_promised(tmp_path: Path) -> None:
    config = toy_config(tmp_path, steps=60, save_every=25, evaluate_every=30, log_every=20)
    summary = train(config, toy_model(), Toy(), Toy(10), about={"recipe": "toy"})
    lines = told(tmp_path)
    assert [line["step"] for line in lines] == [20, 30, 40, 60, 60]
    assert lines[0]["loss"] == pytest.approx(sum(lines[0]["losses"].values()))
    assert lines[3]["losses"]["pattern"] < 0.75 * lines[0]["losses"]["pattern"]
    assert summary.scores["accuracy"] >= 60.0  # chance is 25
    assert (summary.step, summary.total, summary.interrupted) == (60, 60, False)
    assert json.loads((tmp_path / "config.json").read_text())["recipe"] == "toy"
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 10
    scores = {line["step"]: line["scores"]["accuracy"] for line in lines if "scores" in line}
    assert summary.best_step == max(scores, key=lambda step: scores[step])
    assert Checkpoints(tmp_path).steps() == sorted({summary.best_step, 50, 60})
    fresh = toy_model()
    assert load_weights(fresh, tmp_path) == 60


def test_accumulated_parts_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    """Up to the order of additions: losses of uneven counts are weighed by them."""
    for name, most in (("whole", None), ("parts", 3)):
        train(toy_config(tmp_path / name, micro_batch=most), toy_model(dropout=0), Toy())
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-4)


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    class Stops(Toy):
        def counts(self, batches):  # type: ignore[no-untyped-def]
            if self.asked and len(self.asked) > 40:
                os.kill(os.getpid(), signal.SIGTERM)
                self.asked.clear()
            return super().counts(batches)

    train(toy_config(tmp_path / "whole", steps=15, log_every=2), toy_model(), Toy(), Toy(10))
    config = toy_config(tmp_path / "cut", steps=15, log_every=2)
    before = signal.getsignal(signal.SIGTERM)
    first = train(config, toy_model(), Stops(), Toy(10))
    assert first.interrupted
    assert 0 < first.step < 15
    assert signal.getsignal(signal.SIGTERM) is before
    second = resume(replace(config, workers=3), toy_model(), Toy(), Toy(10))
    assert (second.step, second.interrupted) == (15, False)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    again = resume(config, toy_model(), Toy(), Toy(10))
    assert again.losses == second.losses
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(toy_config(tmp_path, steps=2), toy_model(), Toy())
    with pytest.raises(TriptychError, match="has a run up to step 2; go on with it by --resume, or choose another"):
        train(toy_config(tmp_path, steps=2), toy_model(), Toy())


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    train(toy_config(tmp_path, steps=2), toy_model(), Toy())
    with pytest.raises(TriptychError, match=r"lr: 0.003 in the run so far, 0.1 in this command\). Repeat its settings"):
        resume(toy_config(tmp_path, steps=2, lr=0.1), toy_model(), Toy())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_examples(tmp_path: Path) -> None:
    task = Toy(bad=[17])
    step = next(step for step in range(5) if 17 in [number for _, number in Order(40, 8, 0).batch(step)])
    words = rf"step {step + 1} is not finite: .*pattern is nan.*; rank 0 had the examples number (\d+, )?17\b"
    with pytest.raises(DivergedError, match=words):
        train(toy_config(tmp_path, micro_batch=2, save_every=1), toy_model(), task)
    last = max((tmp_path / "checkpoints").glob("*.json")).name
    assert last == f"step-{step:08d}.json"
    assert all(bool(torch.isfinite(each).all()) for each in restored(tmp_path).state_dict().values())


def restored(out: Path) -> nn.Module:
    model = toy_model()
    load_weights(model, out)
    return model


def test_bfloat16_keeps_weights_in_float32_and_learns(tmp_path: Path) -> None:
    model = toy_model()
    train(toy_config(tmp_path, steps=40, dtype="bfloat16"), model, Toy())
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.2


def test_activations_computed_again_give_the_same_losses(tmp_path: Path) -> None:
    for name, again in (("kept", False), ("again", True)):
        train(toy_config(tmp_path / name, steps=4, checkpoint_activations=again), toy_model(), Toy())
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")
    model = toy_model()
    prepare(model, toy_config(tmp_path, checkpoint_activations=True))
    assert all(each.checkpointing for each in model.modules() if isinstance(each, Encoder))


def test_compiling_is_asked_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    prepare(model, toy_config(tmp_path, compile=True))
    assert model._compiled_call_impl is not None
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_clipping_bounds_the_gradient_and_tells_its_norm_before(tmp_path: Path) -> None:
    model = toy_model(dropout=0)
    before = [each.clone() for each in model.state_dict().values()]
    config = toy_config(tmp_path, steps=1, optimiser="sgd", lr=1.0, clip=1e-3, warmup=0, weight_decay=0.0)
    train(config, model, Toy())
    moved = math.sqrt(
        sum(float((a - b).square().sum()) for a, b in zip(model.state_dict().values(), before, strict=True))
    )
    assert moved == pytest.approx(1e-3, rel=1e-3)
    assert told(tmp_path)[0]["grad_norm"] > 0.1


def test_a_rule_that_matches_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no parameter's name has 'cross_modal' in it; the model's are text.word"):
        train(toy_config(tmp_path, rules=(Rule("cross_modal", lr=5.0),)), toy_model(), Toy())


def test_a_batch_that_names_other_losses_is_told(tmp_path: Path) -> None:
    class Forgets(Toy):
        def counts(self, batches):  # type: ignore[no-untyped-def]
            found = super().counts(batches)
            return {"pattern": found["pattern"]} if len(self.asked) > 20 else found

    with pytest.raises(ValueError, match="a batch has the losses .*, the first had .*; name all always"):
        train(toy_config(tmp_path), toy_model(), Forgets())


def test_the_best_checkpoint_stays_though_others_are_newer(tmp_path: Path) -> None:
    class Worsens(Toy):
        scored = 0

        def score(self, predictions):  # type: ignore[no-untyped-def]
            self.scored += 1
            return {"accuracy": 10.0 - self.scored}

    config = toy_config(tmp_path, steps=8, evaluate_every=2, save_every=3, keep=1)
    summary = train(config, toy_model(), Toy(), Worsens(10))
    assert (summary.best_step, summary.scores) == (2, {"accuracy": 6.0})
    assert Checkpoints(tmp_path).steps() == [2, 8]
