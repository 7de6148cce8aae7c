"""Heads and losses against what they are by definition."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from trainers.models import heads
from trainers.models.heads import IGNORED, AnswerHead, Classifier, WordHead


def test_a_tied_head_decodes_with_the_words_it_is_given() -> None:
    torch.manual_seed(0)
    tied, own = WordHead(4, 7, tied=True), WordHead(4, 7, tied=False)
    states, words = torch.randn(2, 3, 4), torch.randn(7, 4)
    assert {name for name, _ in own.named_parameters()} - {name for name, _ in tied.named_parameters()} == {
        "decoder.weight"
    }
    torch.testing.assert_close(tied(states, words), tied.transform(states) @ words.T)
    assert own.decoder is not None
    own.bias.data.fill_(2.0)
    torch.testing.assert_close(own(states), own.transform(states) @ own.decoder.weight.T + 2)


def test_the_classifier_has_four_steps_in_order() -> None:
    names = [type(each).__name__ for each in Classifier(4, 8, 3)]
    assert names == ["Linear", "LayerNorm", "GELU", "Linear"] and Classifier(4, 8, 3)[1].eps == 1e-5


def test_lxmert_s_answers_come_in_its_order() -> None:
    head = AnswerHead(4, 8, 3)
    assert [type(each).__name__ for each in head] == ["Linear", "GELU", "LayerNorm", "Linear"] and head[2].eps == 1e-12


def test_class_loss_counts_labelled_rows_only() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, IGNORED, 4], [IGNORED, IGNORED, 0]])
    wanted = F.cross_entropy(torch.stack([logits[0, 0], logits[0, 2], logits[1, 2]]), torch.tensor([1, 4, 0]))
    torch.testing.assert_close(heads.class_loss(logits, labels), wanted)
    assert heads.class_loss(logits, torch.full((2, 3), IGNORED)) == 0


def test_answer_loss_is_summed_over_answers() -> None:
    assert math.isclose(float(heads.answer_loss(torch.zeros(2, 4), torch.ones(2, 4))), 4 * math.log(2), rel_tol=1e-6)


def test_soft_class_loss_counts_distributions_only() -> None:
    logits, target = torch.randn(3, 4), torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0.2, 0.3, 0.3, 0.25]])
    wanted = F.cross_entropy(logits[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(heads.soft_class_loss(logits, target), wanted)
    assert heads.soft_class_loss(logits, torch.zeros(3, 4)) == 0
