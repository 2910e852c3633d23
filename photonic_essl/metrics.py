"""What a density of states is compared with, and how: the scaled frequencies, the empty lattice, the paper's metric."""

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

FREQUENCIES = np.linspace(0.0, 1.2, 500)
"""The scaled frequencies ωn of every dataset, in 2πc/a."""

PREDICTED = 400
"""How many of them a network predicts, from the first: ωn < 0.96."""

SCORED = slice(100, 400)
"""Which of them the metric sums over; below, the density of states hardly varies from cell to cell."""


def empty_lattice(frequency: ArrayLike = FREQUENCIES, area: float = 1.0) -> np.ndarray:
    """Return D/n of a uniform cell: 2π·ωn times its area.

    Args:
        frequency: scaled frequencies, of any shape.
        area: of the cell, in a²; 1 for the square lattice.

    Returns:
        The same shape, float64.
    """
    return 2.0 * np.pi * area * np.asarray(frequency, dtype=np.float64)


def relative_errors(predicted: ArrayLike, true: ArrayLike) -> np.ndarray:
    """Return the relative error of each cell, Σ|D̂ − D| / Σ|D| over 0.24 < ωn < 0.96.

    Args:
        predicted: densities of states D/n on the first 400 scaled frequencies or all 500, shape `(..., frequency)`;
            numpy, torch or xarray.
        true: the same of the true densities of states; either may have 400 or 500 frequencies.

    Returns:
        Errors, a fraction of the true density of states, shape `(...)`, float64.

    Raises:
        ValueError: if the shapes do not fit, or a value that is compared is not finite.
    """
    predicted, true = (_scored(name, values) for name, values in (("predicted", predicted), ("true", true)))
    if predicted.shape != true.shape:
        raise ValueError(
            f"`predicted` and `true` must hold the same cells, got {predicted.shape[:-1]} and {true.shape[:-1]}."
        )
    return np.abs(predicted - true).sum(-1) / np.abs(true).sum(-1)


def relative_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """Return the mean over cells of `relative_errors`, the metric of arXiv 2111.00899.

    Args:
        predicted: as for `relative_errors`.
        true: as for `relative_errors`.

    Returns:
        Mean error, a fraction.

    Raises:
        ValueError: if the shapes do not fit, or a value that is compared is not finite.
    """
    return float(relative_errors(predicted, true).mean())


def _scored(name: str, values: ArrayLike) -> Float64[np.ndarray, "*cells 300"]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] not in (PREDICTED, len(FREQUENCIES)):
        raise ValueError(
            f"`{name}` must have {PREDICTED} or {len(FREQUENCIES)} frequencies in its last axis, got {values.shape}."
        )
    if not np.isfinite(values[..., SCORED]).all():
        raise ValueError(f"`{name}` holds values that are not finite between ωn = 0.24 and 0.96.")
    return values[..., SCORED]
