"""Schedules, parameter groups, and that the optimisers' numbers go and come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from extractors import ConfigError
from trainers.config import Rule, TrainConfig
from trainers.optim import Optimisers, factor, kinds

NO_DECAY = Rule(r"bias$|norm", weight_decay=0.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.body, self.norm, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(self.cnn(x)))).square().mean()


def config(**changes: object) -> TrainConfig:
    return TrainConfig("unused", **({"steps": 100, "lr": 0.01} | changes))  # type: ignore[arg-type]


def rates(**changes: object) -> list[float]:
    return [round(factor(config(**changes), step, 10), 6) for step in range(10)]


def test_the_rate_grows_evenly_and_falls_in_a_line_and_no_update_is_wasted() -> None:
    assert rates(warmup=0.2) == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rates(warmup=2) == rates(warmup=0.2)


def test_other_schedules() -> None:
    assert rates(warmup=2, schedule="constant") == [0.5] + [1] * 9
    assert rates(warmup=0, schedule="milestones", milestones=(0.5, 0.8)) == [1] * 5 + [0.1] * 3 + [0.01] * 2
    cosine = rates(warmup=0, schedule="cosine")
    assert cosine[0] == 1 and cosine[5] == 0.5 and 0 < cosine[9] < 0.03
    assert cosine == sorted(cosine, reverse=True)


def test_linear_is_the_published_schedule_but_for_the_shift_of_the_warm_up() -> None:
    """transformers' is 0 at the first update, ours one step ahead while warming up, and the same from there on."""
    from transformers import get_linear_schedule_with_warmup

    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimiser, 3, 10)
    found = []
    for _ in range(10):
        found.append(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    ours = [factor(config(warmup=3), step, 10) for step in range(10)]
    assert ours[3:] == pytest.approx(found[3:])
    assert ours[:2] == pytest.approx(found[1:3])


def test_all_rules_that_match_apply_and_later_ones_win() -> None:
    rules = (NO_DECAY, Rule("head", lr=50.0), Rule("cnn", lr=10.0, weight_decay=5e-4, optimiser="sgd"))
    found = kinds(Net(), config(rules=rules))
    assert found["body.weight"] == ("adamw", 0.01, 0.01)
    assert found["body.bias"] == ("adamw", 0.01, 0.0)
    assert found["norm.weight"] == ("adamw", 0.01, 0.0)
    assert found["head.weight"] == ("adamw", 0.5, 0.01)
    assert found["head.bias"] == ("adamw", 0.5, 0.0)
    assert found["cnn.bias"] == ("sgd", 0.1, 5e-4)


def test_a_rule_for_nothing_is_refused_unless_the_model_may_lack_its_parameters() -> None:
    with pytest.raises(ConfigError, match="no parameter's name has 'network' in it; the model's are cnn.weight"):
        kinds(Net(), config(rules=(Rule("network", lr=2.0),)))
    assert kinds(Net(), config(rules=(Rule("network", lr=2.0, optional=True),))) == kinds(Net(), config())


def test_parameters_that_are_frozen_get_no_optimiser() -> None:
    net = Net()
    net.cnn.requires_grad_(False)
    assert not any(name.startswith("cnn") for name in kinds(net, config()))
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that is trained; thaw"):
        kinds(net, config())


def test_one_run_with_two_optimisers_is_each_of_them_alone() -> None:
    """AdamW and SGD side by side move their parameters as torch's own do."""
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    both = Optimisers(ours, config(rules=(Rule("cnn", optimiser="sgd", lr=2.0),), weight_decay=0.1))
    sgd = torch.optim.SGD(theirs.cnn.parameters(), 0.02, momentum=0.9, weight_decay=0.1)
    rest = [each for name, each in theirs.named_parameters() if "cnn" not in name]
    adam = torch.optim.AdamW(rest, 0.01, weight_decay=0.1)
    for step in range(3):
        x = torch.randn(4, 3)
        ours(x).backward()
        theirs(x).backward()
        share = 1 / (1 + step)
        both.step(share)
        sgd.param_groups[0]["lr"], adam.param_groups[0]["lr"] = 0.02 * share, 0.01 * share
        for each in (sgd, adam):
            each.step()
            each.zero_grad()
    for name, each in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), each, rtol=1e-5, atol=1e-7)


def test_their_numbers_go_and_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    rules = (Rule("cnn", optimiser="sgd"),)
    nets = [Net(), Net()]
    first = Optimisers(nets[0], config(rules=rules))
    x = torch.randn(4, 3)
    nets[0](x).backward()
    first.step(1.0)
    nets[1].load_state_dict(nets[0].state_dict())
    second = Optimisers(nets[1], config(rules=rules))
    second.load({name: each.clone() for name, each in first.tensors().items()})
    assert {key.rpartition("/")[2] for key in first.tensors()} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    for net, optimisers in zip(nets, (first, second), strict=True):
        net(x).backward()
        optimisers.step(0.5)
    for name, each in nets[0].named_parameters():
        assert torch.equal(nets[1].get_parameter(name), each)


def test_numbers_come_back_in_the_layout_of_their_parameters() -> None:
    torch.manual_seed(0)
    nets = [torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    first, second = (Optimisers(net, config()) for net in nets)
    x = torch.randn(2, 4, 8, 8)
    nets[0](x).square().sum().backward()
    first.step(1.0)
    nets[1].load_state_dict(nets[0].state_dict())
    saved = {name: each.clone(memory_format=torch.contiguous_format) for name, each in first.tensors().items()}
    second.load(saved)
    for net, optimisers in zip(nets, (first, second), strict=True):
        net(x).square().sum().backward()
        optimisers.step(1.0)
    assert torch.equal(nets[0].weight, nets[1].weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "steps or epochs, one of the two, not 100 and 3"),
        ({"steps": None}, "steps or epochs, one of the two, not None and None"),
        ({"steps": 0}, "steps is 0; it must be above 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be above 0"),
        ({"optimiser": "lamb"}, "optimiser is 'lamb'; choose out of adamw, adam, sgd"),
        ({"schedule": "milestones"}, "milestones () do not go with"),
        ({"milestones": (0.5,)}, "do not go with the schedule 'linear'"),
        ({"warmup": -1}, "warmup -1 must be 0 or more"),
        ({"rules": (Rule("(", lr=1.0),)}, "the pattern '(' of a rule is no regular expression"),
        ({"rules": (Rule("a", optimiser="lamb"),)}, "optimiser of the rule 'a' is 'lamb'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert words in str(caught.value)


def test_settings_survive_json() -> None:
    import json
    from dataclasses import asdict

    one = config(rules=(NO_DECAY,), schedule="milestones", milestones=(0.5,), epochs=1.5, steps=None)
    assert TrainConfig.from_json(json.loads(json.dumps(asdict(one)))) == one
    assert one.total_steps(100) == 5
    with pytest.raises(ConfigError, match="does not know: speed"):
        TrainConfig.from_json({"out": "x", "steps": 1, "speed": 2})
