"""Figures. Each `draw_*` takes an Axes and returns it; colours differ for any colour vision (Okabe and Ito)."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from photonic_essl.metrics import FREQUENCIES, PREDICTED, empty_lattice, relative_errors

TRUE, PREDICTION, GUESS = "#000000", "#D55E00", "#56B4E9"


def draw_cell(epsilon: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw the relative permittivity of a unit cell, shape `(x, y)`, with its scale."""
    ax = ax or plt.subplots()[1]
    shown = ax.imshow(np.asarray(epsilon).T, origin="lower", extent=(-0.5, 0.5, -0.5, 0.5), cmap="cividis")
    ax.figure.colorbar(shown, ax=ax, label="relative permittivity ε")
    ax.set(xlabel="x (a)", ylabel="y (a)")
    return ax


def draw_dos(predicted: ArrayLike, true: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw a predicted over a true density of states D/n, and the empty lattice behind both.

    Args:
        predicted: on the first 400 scaled frequencies, shape `(frequency,)`.
        true: on the first 400 or all 500.
        ax: where to draw; a new figure where not given.
    """
    ax = ax or plt.subplots()[1]
    predicted, true = np.asarray(predicted), np.asarray(true)
    frequency = FREQUENCIES[:PREDICTED]
    ax.plot(frequency, empty_lattice(frequency), color=GUESS, linewidth=1, label="empty lattice")
    ax.plot(frequency, true[:PREDICTED], color=TRUE, linewidth=1.8, label="true")
    ax.plot(frequency, predicted[:PREDICTED], color=PREDICTION, linewidth=1.4, linestyle="--", label="predicted")
    ax.set(xlabel="scaled frequency ωn (2πc/a)", ylabel="density of states D/n (a/2πc)")
    ax.set_xlim(0, frequency[-1])
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def draw_predictions(predicted: ArrayLike, true: ArrayLike, epsilon: ArrayLike) -> Figure:
    """Draw the cells that are predicted best, at the median and worst, each beside its densities of states.

    Args:
        predicted: D/n on the first 400 scaled frequencies, shape `(sample, frequency)`.
        true: the same, or on all 500.
        epsilon: relative permittivity, shape `(sample, x, y)`.

    Returns:
        A figure of three rows.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    predicted, true, epsilon = (np.asarray(values) for values in (predicted, true, epsilon))
    if len(predicted) != len(epsilon):
        raise ValueError(
            f"`predicted` and `epsilon` must hold the same cells, got {len(predicted)} and {len(epsilon)}."
        )
    errors = relative_errors(predicted, true)
    order = np.argsort(errors)
    figure, axes = plt.subplots(3, 2, figsize=(9, 9), width_ratios=(1, 1.9), layout="constrained")
    for row, (word, cell) in zip(axes, (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1]))):
        draw_cell(epsilon[cell], row[0])
        draw_dos(predicted[cell], true[cell], row[1])
        row[1].set_title(f"{word} of {len(order)} cells: relative error {100 * errors[cell]:.2f} %", fontsize=10)
    return figure


def draw_training(run: str | Path, quantity: str = "loss", ax: Axes | None = None) -> Axes:
    """Draw what a run has logged over its steps.

    Args:
        run: folder of a run.
        quantity: a column of its logs.
        ax: where to draw; a new figure where not given.

    Raises:
        FileNotFoundError: if the folder holds no logs.
        ValueError: if nothing of this name was logged.
    """
    steps, values = read_log(run, quantity)
    ax = ax or plt.subplots()[1]
    ax.plot(steps, values, color=PREDICTION, linewidth=1.4)
    ax.set(xlabel="training step", ylabel=quantity.replace("_", " "))
    return ax


def read_log(run: str | Path, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of what a run has logged, of all its sittings; a step done twice counts once.

    Args:
        run: folder of a run.
        quantity: a column of its logs.

    Returns:
        Steps, int64, ascending, and values, float64, each shape `(row,)`.

    Raises:
        FileNotFoundError: if the folder holds no logs.
        ValueError: if nothing of this name was logged.
    """
    files = sorted(Path(run).glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name))
    if not files:
        raise FileNotFoundError(f"{run} holds no logs of a run.")
    rows = [row for file in files for row in csv.DictReader(file.open(newline=""))]
    logged = {int(row["step"]): float(row[quantity]) for row in rows if row.get(quantity)}
    if not logged:
        names = sorted({name for row in rows for name in row} - {"step", "epoch"})
        raise ValueError(f"{run} has logged no {quantity!r}, only {', '.join(names)}.")
    steps = sorted(logged)
    return np.array(steps), np.array([logged[step] for step in steps])
