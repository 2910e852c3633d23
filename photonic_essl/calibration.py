"""Intervals around predicted densities of states: how far a prediction may be off, with a stated coverage.

All copies of a cell under the symmetries of its density of states have one and the same, and a network that sees images
gives each a slightly different one; a first approximation by plane waves is corrected by more where it is hard. How far
copies lie apart, and how large the correction is, tell how sure the prediction is of this cell at this frequency; split
conformal calibration with that scale (Lei et al., J. Am. Stat. Assoc. 113 (2018) 1094, section 5.2) makes it a width of
known coverage, from cells that were not trained on.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from photonic_essl.metrics import SCORED

LEVELS = 99
"""Coverages that are told apart: 1 %, 2 %, … 99 %."""

FEWEST_CELLS = 50
"""From fewer cells no coverage can be stated, as the errors of one cell at its frequencies go together."""

SMALL = 0.1
"""Share of the cells whose errors are smaller, at a frequency, than the error that the spread is never below."""


class Calibration(nn.Module):
    """What turns the spread of predictions over symmetric copies into an interval.

    Half the width of an interval is `quantile(coverage) · (spread + small error)`. The spread is what
    `Regressor.mean_and_spread` gives; the small error, a tenth percentile over cells at this frequency, is for cells
    whose spread is small by chance, or by symmetry.

    Args:
        frequencies: how many are predicted.
    """

    def __init__(self, frequencies: int):
        super().__init__()
        self.register_buffer("small_error", torch.zeros(frequencies))
        self.register_buffer("quantiles", torch.zeros(LEVELS))

    @property
    def done(self) -> bool:
        """Whether there has been a calibration."""
        return bool(self.quantiles.any())

    def fit(
        self,
        mean: Float[Tensor, "sample frequency"],
        spread: Float[Tensor, "sample frequency"],
        dos: Float[Tensor, "sample frequency"],
    ) -> None:
        """Calibrate on cells that were not trained on; nothing happens if these are fewer than `FEWEST_CELLS`.

        Args:
            mean: of the predictions for the copies of each cell.
            spread: how unsure the predictions are.
            dos: the true densities of states.
        """
        if len(dos) < FEWEST_CELLS:
            return
        error = (mean - dos).abs()
        self.small_error = error.quantile(SMALL, 0)
        scores = (error / (spread + self.small_error))[:, SCORED]
        coverages = np.arange(1, LEVELS + 1) / (LEVELS + 1)
        self.quantiles = torch.from_numpy(np.quantile(scores.double().numpy(), coverages)).float()

    def half_width(
        self, spread: Float[Tensor, "sample frequency"], coverage: float
    ) -> Float[Tensor, "sample frequency"]:
        """Return half the width of intervals of this coverage.

        Args:
            spread: how unsure the predictions are.
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
        quantile = torch.lerp(self.quantiles[below], self.quantiles[below + 1], place - below)
        return quantile * (spread + self.small_error)
