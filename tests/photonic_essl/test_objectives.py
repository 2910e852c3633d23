"""Losses against plain transcriptions of the papers' formulas, and what has to hold where learning fails."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from photonic_essl.objectives import (
    ESSL,
    AbsolutePrediction,
    BarlowTwins,
    ContinuousPrediction,
    InfoNCE,
    RelativePrediction,
    SimCLR,
    SimSiam,
)
from photonic_essl.symmetry import group

GRID = (8, 8)


def pair(batch=6, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, generator=generator, dtype=torch.float64) for _ in range(2)]


def nt_xent(first, second, temperature):
    """Equation 1 and Algorithm 1 of arXiv 2002.05709, loop by loop."""
    z = np.stack([row for views in zip(first.numpy(), second.numpy()) for row in views])
    n = len(z)
    similarity = np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in z] for a in z])
    total = 0.0
    for i in range(n):
        j = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.exp(similarity[i, k] / temperature) for k in range(n) if k != i)
        total -= math.log(math.exp(similarity[i, j] / temperature) / others)
    return total / n


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_is_the_papers_formula(temperature):
    first, second = pair()
    assert SimCLR(temperature)((first, second)).item() == pytest.approx(nt_xent(first, second, temperature), abs=1e-6)


def test_simclr_of_collapsed_projections_is_the_log_of_the_number_of_others():
    collapsed = torch.ones(8, 4)
    assert SimCLR(0.1)((collapsed, collapsed)).item() == pytest.approx(math.log(15), abs=1e-5)


def test_infonce_contrasts_with_the_other_views_alone():
    first, second = pair()
    a, b = (functional.normalize(view, dim=1).numpy() for view in (first, second))
    expected = 0.0
    for views in ((a, b), (b, a)):
        for i, row in enumerate(views[0]):
            similarity = [row @ other / 0.5 for other in views[1]]
            expected -= (similarity[i] - math.log(sum(map(math.exp, similarity)))) / len(a) / 2
    assert InfoNCE(0.5)((first, second)).item() == pytest.approx(expected, abs=1e-6)
    collapsed = torch.ones(8, 4)
    assert InfoNCE()((collapsed, collapsed)).item() == pytest.approx(math.log(8), abs=1e-5)


def test_simsiam_is_the_papers_formula():
    (z1, z2), (p1, p2) = pair(), pair(seed=1)

    def distance(p, z):
        return -sum(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(p.numpy(), z.numpy())) / len(p)

    expected = distance(p1, z2) / 2 + distance(p2, z1) / 2
    assert SimSiam()((z1, z2), (p1, p2)).item() == pytest.approx(expected, abs=1e-6)


def test_simsiam_holds_the_target_constant():
    projections, predictions = ([view.requires_grad_() for view in pair(seed=seed)] for seed in (0, 1))
    SimSiam()(projections, predictions).backward()
    assert all(view.grad is None for view in projections)
    assert all(view.grad.abs().sum() > 0 for view in predictions)


def test_barlow_twins_is_the_papers_formula():
    first, second = pair(batch=64)
    weight = 5e-3
    a, b = ((view.numpy() - view.numpy().mean(0)) / np.sqrt(view.numpy().var(0) + 1e-5) for view in (first, second))
    correlation = sum(np.outer(x, y) for x, y in zip(a, b)) / len(a)
    expected = 0.0
    for i in range(len(correlation)):
        for j in range(len(correlation)):
            expected += (1 - correlation[i, i]) ** 2 if i == j else weight * correlation[i, j] ** 2
    assert BarlowTwins(weight)((first, second)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("objective", [SimCLR(), BarlowTwins()])
def test_one_cell_is_too_few(objective):
    with pytest.raises(ValueError, match="at least two cells"):
        objective(pair(batch=1))


def cells(count=5, seed=0):
    return torch.rand(count, 1, *GRID, generator=torch.Generator().manual_seed(seed))


def test_absolute_prediction_asks_for_every_element_of_every_cell():
    task = AbsolutePrediction(group("quarter-turns"), GRID)
    question = task.ask(cells(), torch.Generator())
    assert torch.equal(question.target, torch.arange(4).repeat_interleave(5))
    assert torch.equal(question.cells[5:10], torch.rot90(cells(), 1, (2, 3)))
    logits = torch.randn(20, 4, dtype=torch.float64)
    answer = task(logits, question.target)
    rows = zip(logits.numpy(), question.target.tolist())
    expected = np.mean([-row[label] + math.log(np.exp(row).sum()) for row, label in rows])
    assert answer.loss.item() == pytest.approx(expected, abs=1e-6)
    right = functional.one_hot(question.target, 4).double()
    assert task(right, question.target).accuracy == 1


def test_relative_prediction_asks_for_the_element_between_two_copies():
    task = RelativePrediction(group("square"), GRID)
    question = task.ask(cells(20), torch.Generator().manual_seed(0))
    first, second = (question.cells[question.rows[:, which]] for which in (0, 1))
    orbit, labels = task.group.orbit(first)
    wanted = (labels.view(8, -1) == question.target).int().argmax(0)
    found = orbit.view(8, *first.shape)[wanted, torch.arange(len(first))]
    assert torch.equal(found, second)
    assert len(question.target.unique()) == 8


def test_continuous_prediction_asks_for_the_shift_between_two_copies():
    task = ContinuousPrediction(group("translations"), GRID)
    question = task.ask(cells(), torch.Generator().manual_seed(0))
    for row, shift in zip(question.rows, question.target):
        first, second = question.cells[row]
        points = tuple((shift * 8).round().int().tolist())
        assert torch.equal(torch.roll(first, points, (1, 2)), second)
    angle = 2 * np.pi * question.target
    exact = torch.stack((angle.cos(), angle.sin()), 2).flatten(1)
    answer = task(exact, question.target)
    assert answer.loss == pytest.approx(0, abs=1e-9)
    assert answer.accuracy == 1
    assert task(exact.roll(1, 0), question.target).accuracy < 1


def test_questions_about_part_of_a_batch_are_those_about_the_whole():
    for task in (RelativePrediction(group("square"), GRID), ContinuousPrediction(group("translations"), GRID)):
        whole = task.ask(cells(6), torch.Generator().manual_seed(0))
        part = task.ask(cells(6)[2:4], torch.Generator().manual_seed(0), start=2, total=6)
        chosen = whole.target.view(-1, 6, *whole.target.shape[1:])[:, 2:4]
        assert torch.equal(part.target, chosen.reshape(part.target.shape))


def test_essl_is_the_weighted_sum():
    objective = ESSL(SimCLR(), AbsolutePrediction(group("mirrors"), GRID), weight=5.0)
    assert objective(torch.tensor(2.0), torch.tensor(3.0)) == 17
    assert ESSL(SimCLR(), None)(torch.tensor(2.0), None) == 2


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        SimCLR(0)
    with pytest.raises(ValueError, match="`weight` must not be negative"):
        ESSL(SimCLR(), None, weight=-1)
    with pytest.raises(ValueError, match="continuous prediction is for translations; `square`"):
        ContinuousPrediction(group("square"), GRID)
    with pytest.raises(ValueError, match="`off_diagonal_weight` must not be negative, got -1"):
        BarlowTwins(-1)
