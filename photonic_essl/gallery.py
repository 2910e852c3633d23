"""Cells as small pictures for a web page: an image of ε, and the densities of states as paths of SVG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from photonic_essl.bands import widest_dos_gaps
from photonic_essl.metrics import FREQUENCIES, empty_lattice

WIDTH, HEIGHT = 400, 200
"""Of the plot of a density of states, in units of its SVG: one a frequency."""

FINE = 1000
"""Steps of a path over the height of the plot."""

QUANTITIES = {
    "error": "relative error (%)",
    "number": "number among the solved cells",
    "contrast": "contrast (largest ÷ smallest ε)",
    "filling": "filling by the higher ε",
    "mean": "mean permittivity ε",
    "gap": "gap in the true DOS (%)",
}
"""What the cards of a gallery are sorted and filtered by."""


@dataclass(frozen=True)
class Card:
    """One cell of the gallery.

    Attributes:
        quantities: a value for each of `QUANTITIES`.
        place: best, median, worst, or nothing.
        image: of ε, a PNG as data URI, one pixel a point.
        lowest: smallest ε.
        highest: largest ε.
        curves: paths of `empty`, `true` and `predicted`, in units of `WIDTH` × `FINE`, downwards.
        ticks: position and text of each tick of D/n, in units of `HEIGHT`, downwards.
    """

    quantities: dict[str, float]
    place: str
    image: str
    lowest: float
    highest: float
    curves: dict[str, str]
    ticks: list[tuple[float, str]]


def cell_properties(epsilon: np.ndarray) -> dict[str, np.ndarray]:
    """Return contrast (largest ÷ smallest ε), filling (share of points above their middle) and mean of cells.

    Args:
        epsilon: shape `(sample, x, y)`.

    Returns:
        Arrays of shape `(sample,)`, by the names of `QUANTITIES`.
    """
    lowest, highest = epsilon.min((1, 2)), epsilon.max((1, 2))
    middle = ((lowest + highest) / 2)[:, None, None]
    return {
        "contrast": highest / lowest,
        "filling": (epsilon > middle).mean((1, 2)),
        "mean": epsilon.mean((1, 2), dtype=np.float64),
    }


def shown_cells(errors: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of cells to show, best first: all, or at most `count` from all over the ranking.

    Args:
        errors: of each cell, shape `(sample,)`.
        count: at least 3.

    Raises:
        ValueError: if `count` is less than 3.
    """
    if count < 3:
        raise ValueError(f"`cells` must be at least 3 (best, median and worst), got {count}.")
    order = np.argsort(errors, kind="stable")
    if len(order) <= count:
        return order
    places = np.rint(np.linspace(0, len(order) - 1, count - 1)).astype(int)
    return order[np.union1d(places, len(order) // 2)]


def make_cards(
    epsilon: np.ndarray, predicted: np.ndarray, true: np.ndarray, errors: np.ndarray, count: int, area: float = 1.0
) -> list[Card]:
    """Return the cards of a gallery, best first.

    Args:
        epsilon: shape `(sample, x, y)`.
        predicted: D/n on the first 400 scaled frequencies, shape `(sample, frequency)`.
        true: the same.
        errors: relative error of each cell, a fraction, shape `(sample,)`.
        count: cards at most.
        area: of a cell, in a².
    """
    quantities = {
        **cell_properties(epsilon),
        "error": 100 * errors,
        "number": np.arange(len(errors)),
        "gap": 100 * widest_dos_gaps(true, area),
    }
    order = np.argsort(errors, kind="stable")
    places = {order[-1]: "worst", order[len(order) // 2]: "median", order[0]: "best"}
    return [
        Card(
            {name: float(quantities[name][cell]) for name in QUANTITIES},
            places.get(cell, ""),
            _image(epsilon[cell]),
            float(epsilon[cell].min()),
            float(epsilon[cell].max()),
            *_plot(predicted[cell], true[cell], area),
        )
        for cell in shown_cells(errors, count)
    ]


def _image(epsilon: np.ndarray) -> str:
    png = io.BytesIO()
    imsave(png, epsilon.T, origin="lower", cmap="cividis", format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _plot(predicted: np.ndarray, true: np.ndarray, area: float) -> tuple[dict[str, str], list[tuple[float, str]]]:
    """Return the curves and ticks of a cell's densities of states."""
    guess = empty_lattice(FREQUENCIES[: len(true)], area)
    top = 1.05 * max(curve.max() for curve in (predicted, true, guess))
    named = {"empty": guess, "true": true, "predicted": predicted}
    ticks = [tick for tick in MaxNLocator(4).tick_values(0, top) if 0 <= tick <= top]
    return (
        {name: _path(1 - curve / top) for name, curve in named.items()},
        [(round(HEIGHT * (1 - tick / top), 1), f"{tick:g}") for tick in ticks],
    )


def _path(depth: Sequence[float]) -> str:
    """Return the path through depths below the top, 0 … 1, one unit apart; steps in whole numbers keep it short."""
    fine = np.rint(FINE * np.asarray(depth)).astype(int)
    return f"M0 {fine[0]}l" + " ".join(f"1 {step}" for step in np.diff(fine))


def frequency_ticks() -> list[tuple[float, str]]:
    """Return position and text of each tick of the scaled frequency, in units of `WIDTH`."""
    return [(round(frequency / FREQUENCIES[1], 1), f"{frequency:g}") for frequency in (0, 0.2, 0.4, 0.6, 0.8)]


def placement(lattice: np.ndarray) -> tuple[str, str]:
    """Return how SVG places a cell's image: the transform of the unit square, and the view box around it.

    Args:
        lattice: vectors one a row, shape `(2, 2)`, in units of a.
    """
    (ax, ay), (bx, by) = np.asarray(lattice, dtype=np.float64)
    matrix = (ax, -ay, -bx, by, (bx - ax) / 2, (ay - by) / 2)
    half = np.abs([(ax + bx, ay + by), (ax - bx, ay - by)]).max(axis=0) / 2
    box = (-half[0], -half[1], 2 * half[0], 2 * half[1])
    transform, view = (" ".join(f"{value:.6g}" for value in values) for values in (matrix, box))
    return transform, view
