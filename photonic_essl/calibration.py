"""Intervals around predicted densities of states: how far a prediction may be off, with a stated coverage.

All copies of a cell under the symmetries of its density of states have one and the same, and a network that sees images
gives each a slightly different one; a first approximation by plane waves is corrected by more where it is hard. How far
copies lie apart, and how large the correction is, tell how sure the prediction is of this cell at this frequency; split
conformal calibration with that scale (Lei et al., J. Am. Stat. Assoc. 113 (2018) 1094, section 5.2) makes it a width of
known coverage, from cells that were not trained on.

Hard cells err by more than that scale says, and easy ones by less. So what it is multiplied by is read off the
calibration cells that are about as hard, which is how intervals hold what they state for either (as in the Mondrian
conformal regressors of Boström and Johansson, Proc. Mach. Learn. Res. 128 (2020) 114, with groups that overlap).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from photonic_essl.metrics import SCORED

LEVELS = 99
"""Coverages that are told apart: 1 %, 2 %, … 99 %."""

GROUPS = 10
"""Of calibration cells, from the easiest to the hardest; between their medians what they say is interpolated."""

SMALLEST_GROUP = 10
"""Fewer cells are not a group: where there are few, groups overlap."""

FEWEST_CELLS = 50
"""From fewer cells no coverage can be stated, as the errors of one cell at its frequencies go together."""

SMALL = 0.1
"""Share of the cells whose errors are smaller, at a frequency, than the error that the spread is never below."""


class Calibration(nn.Module):
    """What turns the spread of predictions over symmetric copies into an interval.

    Half the width of an interval is `quantile(difficulty, coverage) · (spread + small error)`. Spread and difficulty
    are what `Regressor` gives; the small error, a tenth percentile over cells at this frequency, is for cells whose
    spread is small by chance, or by symmetry.

    Args:
        frequencies: how many are predicted.
    """

    def __init__(self, frequencies: int):
        super().__init__()
        self.register_buffer("small_error", torch.zeros(frequencies))
        self.register_buffer("difficulties", torch.zeros(GROUPS))
        self.register_buffer("quantiles", torch.zeros(GROUPS, LEVELS))

    @property
    def done(self) -> bool:
        """Whether there has been a calibration."""
        return bool(self.quantiles.any())

    def fit(
        self,
        error: Float[Tensor, "sample frequency"],
        spread: Float[Tensor, "sample frequency"],
        difficulty: Float[Tensor, " sample"],
    ) -> None:
        """Calibrate on cells that were not trained on.

        Args:
            error: absolute error of each prediction.
            spread: how unsure the predictions are.
            difficulty: of each cell, in any unit; harder cells have more.

        Raises:
            ValueError: if there are fewer than `FEWEST_CELLS`, or an error is not finite.
        """
        if len(error) < FEWEST_CELLS:
            raise ValueError(f"a calibration needs {FEWEST_CELLS} cells or more, got {len(error)}.")
        if not torch.isfinite(error).all():
            raise ValueError("a calibration needs true densities of states that are finite everywhere.")
        self.small_error = error.quantile(SMALL, 0)
        order = difficulty.argsort()
        scores = (error / (spread + self.small_error))[order][:, SCORED].double().numpy()
        size = max(SMALLEST_GROUP, -(-len(order) // GROUPS))
        first = np.linspace(0, len(order) - size, GROUPS).round().astype(int)
        self.difficulties = torch.stack([difficulty[order[start : start + size]].median() for start in first])
        coverages = np.arange(1, LEVELS + 1) / (LEVELS + 1)
        quantiles = [np.quantile(scores[start : start + size], coverages) for start in first]
        self.quantiles = torch.from_numpy(np.stack(quantiles)).float()

    def half_width(
        self, spread: Float[Tensor, "sample frequency"], difficulty: Float[Tensor, " sample"], coverage: float
    ) -> Float[Tensor, "sample frequency"]:
        """Return half the width of intervals of this coverage.

        Args:
            spread: how unsure the predictions are.
            difficulty: of each cell, in the unit of the calibration.
            coverage: share of cells and frequencies, 0.24 < ωn < 0.96, whose true value is to lie within.

        Raises:
            ValueError: if `coverage` is not from 0.01 to 0.99, or there has been no calibration.
        """
        if not 0.01 <= coverage <= 0.99:
            raise ValueError(f"`coverage` must be from 0.01 to 0.99, got {coverage}.")
        if not self.done:
            raise ValueError(
                f"the model has no intervals: they need {FEWEST_CELLS} validation cells or more when it is fine-tuned."
            )
        place = coverage * (LEVELS + 1) - 1
        below = min(int(place), LEVELS - 2)
        of_groups = torch.lerp(self.quantiles[:, below], self.quantiles[:, below + 1], place - below)
        quantile = np.interp(difficulty.cpu(), self.difficulties.cpu(), of_groups.cpu())
        return torch.from_numpy(quantile).to(spread)[:, None] * (spread + self.small_error.to(spread))
