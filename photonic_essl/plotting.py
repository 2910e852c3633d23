"""Figures. Each `draw_*` takes an Axes and returns it; colours differ for any colour vision (Okabe and Ito)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from photonic_essl.bands import band_gaps
from photonic_essl.metrics import FREQUENCIES, PREDICTED, empty_lattice, relative_errors

TRUE, PREDICTION, GUESS = "#000000", "#D55E00", "#56B4E9"
POLARIZATIONS: dict[str, dict[str, Any]] = {
    "tm": {"color": "#0072B2", "markerfacecolor": "#0072B2", "label": "TM"},
    "te": {"color": "#CC3311", "markerfacecolor": "none", "label": "TE"},
}
"""How each polarization is drawn: TM blue and filled, TE red and hollow."""


def draw_cell(
    epsilon: ArrayLike, ax: Axes | None = None, *, lattice: ArrayLike = ((1.0, 0.0), (0.0, 1.0)), periods: int = 1
) -> Axes:
    """Draw the relative permittivity of a unit cell, or of several periods of the crystal, with its scale.

    Args:
        epsilon: shape `(x, y)`, its axes along the two lattice vectors.
        ax: where to draw; a new figure where not given.
        lattice: lattice vectors, shape `(2, 2)` or `(4,)` as in a dataset file, one a row, in units of a.
        periods: how many along each lattice vector; the middle of the picture is the origin, and one cell is outlined
            where there are more.

    Raises:
        ValueError: if `epsilon` is not `(x, y)`, or `periods` is less than 1.
    """
    epsilon, lattice = np.asarray(epsilon), np.asarray(lattice, dtype=np.float64).reshape(2, 2)
    if epsilon.ndim != 2 or periods < 1:
        raise ValueError(
            f"`epsilon` must have shape (x, y) and `periods` be at least 1, got {epsilon.shape} and {periods}."
        )
    ax = ax or plt.subplots()[1]
    along = [np.linspace(-periods / 2, periods / 2, periods * points + 1) for points in epsilon.shape]
    corners = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1) @ lattice
    tiled = np.roll(
        np.tile(epsilon, (periods, periods)), [(periods - 1) * points // 2 for points in epsilon.shape], (0, 1)
    )
    shown = ax.pcolormesh(corners[..., 0], corners[..., 1], tiled, cmap="cividis", rasterized=True)
    if periods > 1:
        outline = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]) @ lattice
        ax.plot(*outline.T, color="white", linewidth=2.5)
        ax.plot(*outline.T, color="black", linewidth=1, linestyle="--")
    ax.figure.colorbar(shown, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label="relative permittivity ε")
    ax.set(xlabel="x (a)", ylabel="y (a)", aspect="equal")
    return ax


def draw_bands(
    position: ArrayLike,
    labels: Sequence[tuple[float, str]],
    *,
    tm: ArrayLike | None = None,
    te: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a band diagram, its gaps over 1 % of their middle shaded and labelled with that ratio.

    Args:
        position: of each wavevector along the path, shape `(k,)`, in 2π/a.
        labels: position and name of each point of high symmetry.
        tm: frequencies of the TM bands, shape `(k, band)`, ascending along band, in 2πc/a.
        te: the same of the TE bands.
        ax: where to draw; a new figure where not given.

    Raises:
        ValueError: if neither polarization is given, or the bands do not fit the path.
    """
    given = {name: np.asarray(bands) for name, bands in (("tm", tm), ("te", te)) if bands is not None}
    position = np.asarray(position)
    if not given or any(len(bands) != len(position) for bands in given.values()):
        shapes = ", ".join(f"`{name}` of shape {bands.shape}" for name, bands in given.items())
        raise ValueError(
            f"bands (k, band) on the {len(position)} wavevectors of the path are needed, got {shapes or 'none'}."
        )
    ax = ax or plt.subplots()[1]
    for name, bands in given.items():
        style = POLARIZATIONS[name]
        ax.plot(position, bands, color=style["color"], linewidth=0.6, alpha=0.5)
        points = ax.plot(position, bands, **style, marker="o", markersize=3.2, linestyle="none", zorder=3)
        plt.setp(points[1:], label="_")
        for gap in band_gaps(bands):
            ax.axhspan(*gap, color=style["color"], alpha=0.15, linewidth=0, zorder=0)
    for corner, _ in labels:
        ax.axvline(corner, color="#BBBBBB", linewidth=0.6, zorder=0)
    ax.set_xticks([corner for corner, _ in labels], [name for _, name in labels])
    ax.set(xlim=(position[0], position[-1]), xlabel="wavevector", ylabel="frequency ωa/2πc")
    ax.set_ylim(0, max(bands.max() for bands in given.values()) * 1.02)
    ax.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize="small")
    _label_gaps(ax, given)
    return ax


def _label_gaps(ax: Axes, given: Mapping[str, np.ndarray]) -> None:
    """Write gap/mid-gap of all gaps to the right of the axes, each at its gap or just above the label below it."""
    gaps = sorted((sum(gap) / 2, gap, name) for name, bands in given.items() for gap in band_gaps(bands))
    spacing, free = 0.045 * ax.get_ylim()[1], 0.0
    for middle, gap, name in gaps:
        height = max(middle, free)
        free = height + spacing
        ax.text(
            1.015,
            height,
            f"{POLARIZATIONS[name]['label']} gap {100 * gap.ratio:.1f} %",
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize="x-small",
            color=POLARIZATIONS[name]["color"],
        )


def draw_turned_dos(
    frequency: ArrayLike,
    dos: ArrayLike,
    epsilon_mean: float,
    ax: Axes | None = None,
    *,
    polarization: str = "tm",
) -> Axes:
    """Draw a density of states along the horizontal, to stand beside a band diagram on the same frequency axis.

    Args:
        frequency: scaled frequencies ωn, shape `(frequency,)`, in 2πc/a.
        dos: D/n, shape `(frequency,)`, in a/2πc.
        epsilon_mean: mean relative permittivity n² of the cell, which takes ωn back to ω and D/n to D.
        ax: where to draw, such as the right one of `plt.subplots(1, 2, sharey=True)`; a new figure where not given.
        polarization: tm or te, which gives the colour.
    """
    ax = ax or plt.subplots()[1]
    style, index = POLARIZATIONS[polarization], np.sqrt(epsilon_mean)
    ax.plot(
        np.asarray(dos) * index,
        np.asarray(frequency) / index,
        color=style["color"],
        linestyle="-" if polarization == "tm" else "--",
        linewidth=1.4,
        label=style["label"],
    )
    ax.set(xlabel="density of states D (a/2πc)", ylabel="frequency ωa/2πc")
    ax.set_xlim(0, 1.05 * max(np.max(line.get_xdata()) for line in ax.lines))
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_dos(
    predicted: ArrayLike,
    true: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    area: float = 1.0,
) -> Axes:
    """Draw a predicted density of states D/n over the true one, and the empty lattice behind both.

    Args:
        predicted: on the first 400 scaled frequencies, shape `(frequency,)`.
        true: on the first 400 or all 500, where it is known.
        ax: where to draw; a new figure where not given.
        interval: its bounds, `lowest` and `highest` of `Regressor.predict_interval`, each as `predicted`; shaded.
        area: of the cell, in a², for the empty lattice.
    """
    ax = ax or plt.subplots()[1]
    frequency = FREQUENCIES[:PREDICTED]
    ax.plot(frequency, empty_lattice(frequency, area), color=GUESS, linewidth=1, label="empty lattice")
    if true is not None:
        ax.plot(frequency, np.asarray(true)[:PREDICTED], color=TRUE, linewidth=1.8, label="true")
    if interval is not None:
        low, high = (np.asarray(bound)[:PREDICTED] for bound in interval)
        ax.fill_between(frequency, low, high, color=PREDICTION, alpha=0.25, linewidth=0, label="interval")
    predicted = np.asarray(predicted)[:PREDICTED]
    ax.plot(frequency, predicted, color=PREDICTION, linewidth=1.4, linestyle="--", label="predicted")
    ax.set(xlabel="scaled frequency ωn (2πc/a)", ylabel="density of states D/n (a/2πc)")
    ax.set_xlim(0, frequency[-1])
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def draw_predictions(
    predicted: ArrayLike,
    true: ArrayLike,
    epsilon: ArrayLike,
    *,
    lattice: ArrayLike = ((1.0, 0.0), (0.0, 1.0)),
) -> Figure:
    """Draw the cells that are predicted best, at the median and worst, each beside its densities of states.

    Args:
        predicted: D/n on the first 400 scaled frequencies, shape `(sample, frequency)`.
        true: the same, or on all 500.
        epsilon: relative permittivity, shape `(sample, x, y)`.
        lattice: lattice vectors, shape `(2, 2)` or `(4,)` as in a dataset file, one a row, in units of a.

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
    errors, area = relative_errors(predicted, true), abs(np.linalg.det(np.reshape(lattice, (2, 2))))
    order = np.argsort(errors)
    figure, axes = plt.subplots(3, 2, figsize=(9, 9), width_ratios=(1, 1.9), layout="constrained")
    for row, (word, cell) in zip(axes, (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1]))):
        draw_cell(epsilon[cell], row[0], lattice=lattice)
        draw_dos(predicted[cell], true[cell], row[1], area=area)
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
    rows = _log_rows(run)
    logged = {int(row["step"]): float(row[quantity]) for row in rows if row.get(quantity)}
    if not logged:
        raise ValueError(f"{run} has logged no {quantity!r}, only {', '.join(logged_quantities(run))}.")
    steps = sorted(logged)
    return np.array(steps), np.array([logged[step] for step in steps])


def logged_quantities(run: str | Path) -> list[str]:
    """Return the names of what a run has logged, in alphabetical order; `FileNotFoundError` where there are no logs."""
    return sorted({name for row in _log_rows(run) for name in row} - {"step", "epoch"})


def _log_rows(run: str | Path) -> list[dict[str, str]]:
    files = sorted(Path(run).glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name))
    if not files:
        raise FileNotFoundError(f"{run} holds no logs of a run.")
    return [row for file in files for row in csv.DictReader(file.open(newline=""))]


def draw_error_distribution(errors: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw which share of the cells has at most each relative error.

    Args:
        errors: of each cell, a fraction, shape `(sample,)`, by the name of what predicted them.
        ax: where to draw; a new figure where not given.
    """
    ax = ax or plt.subplots()[1]
    colours = (PREDICTION, TRUE, GUESS, "#009E73", "#CC79A7")
    for number, (name, values) in enumerate(errors.items()):
        ordered = 100 * np.sort(np.asarray(values))
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        style = ("-", "--", "-.", ":")[number % 4]
        ax.step(ordered, share, where="post", color=colours[number % 5], linestyle=style, linewidth=1.6, label=name)
    ax.set(xscale="log", xlabel="relative error of a cell (%)", ylabel="share of cells with at most this (%)")
    ax.set_ylim(0, 100)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(color="#DDDDDD", linewidth=0.5)
    ax.legend(frameon=False, loc="lower right", fontsize="small")
    return ax


def draw_learning_curve(
    labels: ArrayLike,
    errors: ArrayLike,
    ax: Axes | None = None,
    *,
    deviation: ArrayLike | None = None,
    **style: Any,
) -> Axes:
    """Draw the error against the number of labels, both on logarithmic scales.

    Args:
        labels: numbers of labelled cells, shape `(point,)`.
        errors: mean relative error at each, a fraction.
        ax: where to draw, curve upon curve; a new figure where not given.
        deviation: standard deviation of the error at each; a band of one on each side is shaded.
        style: of the line, as for `Axes.plot`: `label`, `color`, `marker`, …
    """
    ax = ax or plt.subplots()[1]
    labels, errors = np.asarray(labels), 100 * np.asarray(errors, dtype=np.float64)
    (line,) = ax.plot(labels, errors, **style)
    if deviation is not None:
        spread = 100 * np.nan_to_num(np.asarray(deviation, dtype=np.float64))
        ax.fill_between(labels, errors - spread, errors + spread, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="labelled cells", ylabel="relative error on the test split (%)")
    ax.set_xticks(sorted({float(value) for drawn in ax.lines for value in np.asarray(drawn.get_xdata())}))
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.grid(which="both", color="#DDDDDD", linewidth=0.5)
    return ax


def draw_representation(features: ArrayLike, values: ArrayLike, name: str, ax: Axes | None = None) -> Axes:
    """Draw the representations of cells on their first two principal components, coloured by a property of the cells.

    Args:
        features: shape `(sample, feature)`, at least 2 of each.
        values: of the property, shape `(sample,)`; cells without one (NaN) are grey.
        name: of the property, with its unit.
        ax: where to draw; a new figure where not given.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    features, values = np.asarray(features, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or min(features.shape) < 2 or values.shape != features.shape[:1]:
        raise ValueError(
            f"`features` (sample, feature) and `values` (sample,) must fit, got {features.shape} and {values.shape}."
        )
    ax = ax or plt.subplots()[1]
    centred = features - features.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    share = 100 * scale[:2] ** 2 / max((scale**2).sum(), np.finfo(float).tiny)
    x, y = (left[:, :2] * scale[:2]).T
    known = np.isfinite(values)
    ax.scatter(x[~known], y[~known], s=9, color="#BBBBBB", linewidths=0, rasterized=True)
    shown = ax.scatter(x[known], y[known], s=12, c=values[known], cmap="viridis", linewidths=0, rasterized=True)
    ax.figure.colorbar(shown, ax=ax, label=name)
    ax.set(
        xlabel=f"first principal component ({share[0]:.0f} % of variance)",
        ylabel=f"second principal component ({share[1]:.0f} %)",
    )
    return ax
