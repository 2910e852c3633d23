"""Objectives in representation space: what makes a representation good, whatever network it came from.

E-SSL (arXiv 2111.00899, equation 2) is an invariance loss between two views plus a weight times a loss of predicting
the transformation. Invariance losses see projections, `(batch, width)` each, the i-th of both being views of the same
cell; predictions see outputs of a prediction head, and what they should have been.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity
from torch import Tensor, nn
from torch.nn import functional

from photonic_essl.symmetry import Batch, TransformGroup

Projections = Sequence[Float[Tensor, "batch width"]]
Loss = Float[Tensor, ""]


class SimCLR(nn.Module):
    """Normalised temperature-scaled cross-entropy (arXiv 2002.05709, equation 1), mean over both views.

    Args:
        temperature: positive.
    """

    needs_predictor = False

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        self.temperature = temperature

    def forward(self, projections: Projections) -> Loss:
        """Return the loss of two projections.

        Raises:
            ValueError: if the batch is a single cell, which has no other to be told apart from.
        """
        batch = len(projections[0])
        if batch < 2:
            raise ValueError("SimCLR needs at least two cells in a batch: with one there is nothing to contrast.")
        views = functional.normalize(torch.cat(tuple(projections)), dim=1)
        itself = torch.eye(2 * batch, dtype=torch.bool, device=views.device)
        # Lightly's loss leaves these out, by a choice of entries that makes a GPU wait to hear how many.
        similarity = (views @ views.T / self.temperature).masked_fill(itself, -torch.inf)
        return functional.cross_entropy(similarity, torch.arange(2 * batch, device=views.device).roll(batch))


class InfoNCE(nn.Module):
    """Each view told apart from the other views of others alone, as the code of arXiv 2111.00899 has SimCLR on images.

    Mean over both views of the cross-entropy of cosine similarities, divided by the temperature.

    Args:
        temperature: positive.
    """

    needs_predictor = False

    def __init__(self, temperature: float = 0.5):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        self.temperature = temperature

    def forward(self, projections: Projections) -> Loss:
        """Return the loss of two projections."""
        first, second = (functional.normalize(view, dim=1) for view in projections)
        similarity = first @ second.T / self.temperature
        same = torch.arange(len(first), device=first.device)
        return (functional.cross_entropy(similarity, same) + functional.cross_entropy(similarity.T, same)) / 2


class SimSiam(nn.Module):
    """Negative cosine similarity of a prediction to the other view, held constant (arXiv 2011.10566, equation 2)."""

    needs_predictor = True

    def __init__(self) -> None:
        super().__init__()
        self.loss = NegativeCosineSimilarity()

    def forward(self, projections: Projections, predictions: Projections) -> Loss:
        """Return the loss of two projections and the predictor's output on each."""
        (first, second), (from_first, from_second) = projections, predictions
        return (self.loss(from_first, second.detach()) + self.loss(from_second, first.detach())) / 2


class BarlowTwins(nn.Module):
    """Cross-correlation of the two views drawn to the identity (arXiv 2103.03230, equation 1).

    Args:
        off_diagonal_weight: λ of the paper, not negative.
    """

    needs_predictor = False

    def __init__(self, off_diagonal_weight: float = 5e-3):
        super().__init__()
        if off_diagonal_weight < 0:
            raise ValueError(f"`off_diagonal_weight` must not be negative, got {off_diagonal_weight}.")
        self.loss = BarlowTwinsLoss(lambda_param=off_diagonal_weight)

    def forward(self, projections: Projections) -> Loss:
        """Return the loss of two projections.

        Raises:
            ValueError: if the batch is a single cell, over which nothing correlates.
        """
        if len(projections[0]) < 2:
            raise ValueError("Barlow Twins needs at least two cells in a batch to correlate over.")
        return self.loss(*projections)


INVARIANCE_OBJECTIVES = {"simclr": SimCLR, "infonce": InfoNCE, "simsiam": SimSiam, "barlow": BarlowTwins}


class Question(NamedTuple):
    """Transformed cells, and what a prediction head is asked about them.

    Attributes:
        cells: copies of the cells.
        rows: which copies the head sees for each answer, one or two.
        target: the right answers: labels, or shifts in parts of the cell.
    """

    cells: Float[Tensor, "copy channel x y"]
    rows: Int64[Tensor, "answer seen"]
    target: Int64[Tensor, " answer"] | Float[Tensor, "answer 2"]


class Prediction(NamedTuple):
    """The loss of some answers, and the part of them that is right, 0 … 1; both scalars."""

    loss: Loss
    accuracy: Float[Tensor, ""]


class AbsolutePrediction(nn.Module):
    """Classify the element that was applied, for every element of the group (the published task).

    It is ill-posed where the data hold both x and T(x): then no answer is right.

    Args:
        group: the elements to tell apart.
        grid: number of points along the two lattice vectors.
    """

    seen = 1
    """How many representations the head sees for one answer."""

    def __init__(self, group: TransformGroup, grid: tuple[int, int]):
        super().__init__()
        self.group, self.grid = group, grid
        self.outputs = group.order(grid)
        self.chance = 1 / self.outputs  # part of the answers that a guess has right

    def ask(self, cells: Batch, generator: torch.Generator, start: int = 0, total: int = 0) -> Question:
        """Return a question about each cell of a batch.

        Args:
            cells: the batch.
            generator: source of random numbers, on the device of the cells.
            start: position of the first cell in a larger batch that is spread over processes.
            total: number of cells in the larger batch; 0 if there is none.
        """
        copies, labels = self.group.orbit(cells)
        return Question(copies, torch.arange(len(labels), device=cells.device)[:, None], labels)

    def forward(self, outputs: Float[Tensor, "answer order"], target: Int64[Tensor, " answer"]) -> Prediction:
        """Return cross-entropy and accuracy of outputs for labels."""
        accuracy = (outputs.argmax(1) == target).float().mean()
        return Prediction(functional.cross_entropy(outputs, target), accuracy)


class RelativePrediction(AbsolutePrediction):
    """Classify the element between two transformed copies, well-posed whatever the data hold.

    Each copy of the orbit is paired with a random other copy of the same cell (or itself).

    Args:
        group: the elements to tell apart.
        grid: number of points along the two lattice vectors.
    """

    seen = 2

    def ask(self, cells: Batch, generator: torch.Generator, start: int = 0, total: int = 0) -> Question:
        """Return a question about each copy of each cell, as `AbsolutePrediction.ask`."""
        copies, labels = self.group.orbit(cells)
        batch, total = len(cells), total or len(cells)
        partner = torch.randint(self.outputs, (self.outputs, total), generator=generator, device=cells.device)[
            :, start : start + batch
        ].reshape(-1)
        here = torch.arange(len(labels), device=cells.device)
        rows = torch.stack((here, partner * batch + here % batch), 1)
        between = self.group.compose(self.group.inverse(labels, self.grid), partner, self.grid)
        return Question(copies, rows, between)


class ContinuousPrediction(nn.Module):
    """Regress the translation between two shifted copies, as a point on the torus.

    The head answers with a vector (cos, sin) for each axis, whose angle is 2π times the shift in parts of the cell.

    Args:
        group: translations.
        grid: number of points along the two lattice vectors.

    Raises:
        ValueError: if the group has elements that are not translations.
    """

    seen = 2
    outputs = 4
    tolerance = 1 / 16
    """By how much of the cell an answer that counts as right may be off, along each axis."""

    chance = (2 * tolerance) ** 2
    """Part of the answers that a guess has right."""

    def __init__(self, group: TransformGroup, grid: tuple[int, int]):
        super().__init__()
        if len(group.matrices) > 1:
            raise ValueError(f"continuous prediction is for translations; `{group.name}` holds other elements.")
        self.group, self.grid = group, grid

    def ask(self, cells: Batch, generator: torch.Generator, start: int = 0, total: int = 0) -> Question:
        """Return a question about each cell, as `AbsolutePrediction.ask`."""
        batch, total = len(cells), total or len(cells)
        first, second = (
            self.group.draw(total, self.grid, generator, cells.device)[start : start + batch] for _ in range(2)
        )
        copies = torch.cat([self.group.apply(cells, elements) for elements in (first, second)])
        here = torch.arange(batch, device=cells.device)
        shift = self.group.shifts(second.labels, self.grid) - self.group.shifts(first.labels, self.grid)
        return Question(copies, torch.stack((here, here + batch), 1), shift % 1.0)

    def forward(self, outputs: Float[Tensor, "answer 4"], target: Float[Tensor, "answer 2"]) -> Prediction:
        """Return mean squared distance of outputs from the shifts, and accuracy."""
        angle = 2 * torch.pi * target
        direction = torch.stack((angle.cos(), angle.sin()), 2)
        answer = outputs.view(-1, 2, 2)
        off = torch.atan2(answer[..., 1], answer[..., 0]) / (2 * torch.pi) - target
        right = ((off - off.round()).abs() <= self.tolerance).all(1)
        return Prediction(functional.mse_loss(answer, direction), right.float().mean())


PredictionTask = AbsolutePrediction | ContinuousPrediction

PREDICTION_TASKS: dict[str, type[PredictionTask]] = {
    "absolute": AbsolutePrediction,
    "relative": RelativePrediction,
    "continuous": ContinuousPrediction,
}


class ESSL(nn.Module):
    """Invariance + weight · prediction, for any pair.

    Args:
        invariance: a loss of two projections, one of `INVARIANCE_OBJECTIVES`.
        prediction: a task of `PREDICTION_TASKS`; None for invariance alone.
        weight: of the prediction loss, not negative.

    Raises:
        ValueError: if the weight is negative.
    """

    def __init__(self, invariance: nn.Module, prediction: PredictionTask | None, weight: float = 1.0):
        super().__init__()
        if weight < 0:
            raise ValueError(f"`weight` must not be negative, got {weight}.")
        self.invariance, self.prediction, self.weight = invariance, prediction, weight

    def forward(self, invariance: Loss, prediction: Loss | None) -> Loss:
        """Return the total of the losses that the parts gave."""
        return invariance if prediction is None else invariance + self.weight * prediction
