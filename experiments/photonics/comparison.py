"""What the tidy table says: means and spreads, paired tests between recipes, labels saved, label noise."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from experiments.photonics.datasets import CONVERGED

RUN = ["pretraining_seed", "label_seed"]
"""What two recipes share where they are compared pair by pair."""

NAMES = {
    "empty-lattice": "empty lattice",
    "nearest-neighbour": "nearest neighbour",
    "ridge": "ridge regression",
    "random-forest": "random forest",
    "gaussian-process": "Gaussian process",
    "plane-waves": "plane waves, not corrected",
    "supervised": "supervised",
    "simclr": "SimCLR",
    "simclr+t": "SimCLR + T",
    "e-simclr": "E-SimCLR",
    "e-simclr-relative": "E-SimCLR, relative",
    "e-simsiam": "E-SimSiam",
    "e-barlow": "E-Barlow",
    "published-supervised": "published encoder, supervised",
    "published": "published, E-SimCLR of 15 epochs",
    "few-labels": "few labels",
    "few-labels-69-waves": "few labels, 69 plane waves in place of 137",
    "few-labels-197-waves": "few labels, 197 plane waves",
    "few-labels-rough-output": "few labels, output not smoothed",
    "few-labels-squared-loss": "few labels, squared loss",
    "few-labels-light": "few labels, light encoder beside",
    "few-labels-e-simclr": "few labels, light encoder beside, E-SimCLR",
    "few-labels-images": "few labels, images alone",
    "few-labels-surrogate": "few labels, images alone, surrogate",
}
"""Recipes in the order of the tables, and what they are called there."""

NETWORKS = list(NAMES)[6:]

PAIRS = [
    ("simclr", "supervised"),
    ("e-simclr", "supervised"),
    ("e-simclr", "simclr"),
    ("simclr+t", "simclr"),
    ("e-simclr-relative", "e-simclr"),
    ("e-simsiam", "supervised"),
    ("e-barlow", "supervised"),
    ("published", "published-supervised"),
    ("few-labels", "published"),
    ("few-labels", "published-supervised"),
    ("few-labels", "plane-waves"),
    *((name, "few-labels") for name in NAMES if name.startswith("few-labels-")),
]
"""Recipes whose difference is tested: the first minus the second."""


def read_table(table: Path, scale: str) -> pd.DataFrame:
    """Return the rows of a scale.

    Raises:
        FileNotFoundError: if there is no table.
        ValueError: if it has no rows of this scale.
    """
    rows = pd.read_csv(table)
    rows = rows[rows["scale"] == scale]
    if rows.empty:
        raise ValueError(f"{table} has no rows of the scale {scale}")
    return rows


def on_converged_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the comparison itself: those trained on converged labels."""
    return rows[rows["training_labels"] == CONVERGED]


def summary(rows: pd.DataFrame, column: str = "relative_error") -> pd.DataFrame:
    """Return mean, standard deviation and number of runs for each dataset, recipe and number of labels.

    Args:
        rows: trained on converged labels.
        column: which error.

    Returns:
        Recipes in the order of `NAMES`; columns dataset, recipe, labels, mean, deviation, runs.
    """
    groups = rows.groupby(["dataset", "recipe", "labels"])[column]
    found = groups.agg(mean="mean", deviation="std", runs="count").reset_index()
    order = {name: number for number, name in enumerate(NAMES)}
    return found.sort_values(["dataset", "recipe", "labels"], key=lambda values: values.map(lambda v: order.get(v, v)))


def paired_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """Test the difference between recipes over runs that share seed and draw of labels (two-sided t-tests for pairs).

    Runs that share a seed, or a draw, are not independent of each other. So the differences are averaged over draws
    and tested over seeds, averaged over seeds and tested over draws, and the larger p-value counts. Where there is one
    draw, as there is of all cells of a pool, they are tested over seeds alone.

    Args:
        rows: trained on converged labels.

    Returns:
        A row for each dataset, pair of `PAIRS` and number of labels: the mean difference and its standard deviation
        (fractions), the number of pairs, and the p-value, not a number where there are fewer than two seeds.
    """
    errors = rows.pivot(index=["dataset", "labels", *RUN], columns="recipe", values="relative_error")
    for baseline in set(errors.columns) - set(NETWORKS):  # has one run for all seeds of pre-training
        draws = errors[baseline].groupby(level=["dataset", "labels", "label_seed"])
        errors[baseline] = draws.transform("first")
    found = []
    for (dataset, labels), part in errors.groupby(level=["dataset", "labels"]):
        for first, second in PAIRS:
            if not {first, second} <= set(part.columns):
                continue
            difference = (part[first] - part[second]).dropna()
            if difference.empty:
                continue
            draws = difference.index.unique("label_seed")
            p_value = np.max(
                [_p_value(difference.groupby(level=of).mean()) for of in (RUN if len(draws) > 1 else RUN[:1])]
            )
            numbers = (difference.mean(), difference.std(), len(difference), p_value)
            found.append((dataset, labels, first, second, *numbers))
    names = ["dataset", "labels", "first", "second", "difference", "deviation", "pairs", "p_value"]
    return pd.DataFrame(found, columns=names)


def _p_value(differences: pd.Series) -> float:
    """Return the p-value of a mean of 0, not a number where there are fewer than two differences."""
    return stats.ttest_1samp(differences, 0.0).pvalue if len(differences) > 1 else np.nan


def labels_needed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many labels each recipe needs to equal `yardstick(rows)` at the largest number of labels.

    Between two numbers of labels the mean error is a power law.

    Args:
        rows: trained on converged labels.

    Returns:
        Columns dataset, recipe, needed (not a number where the recipe does not get there; `fewest` where it is there
        from the start), fewest, the smallest number of labels, and reference, the largest of the yardstick.
    """
    means, found = summary(rows), []
    for dataset, of_dataset in means.groupby("dataset"):
        curves = {recipe: curve.sort_values("labels") for recipe, curve in of_dataset.groupby("recipe", sort=False)}
        if yardstick(rows) not in curves:
            continue
        reference, target = curves[yardstick(rows)][["labels", "mean"]].iloc[-1]
        for recipe, curve in curves.items():
            needed = first_crossing(curve["labels"].to_numpy(), curve["mean"].to_numpy(), target)
            found.append((dataset, recipe, needed, curve["labels"].iloc[0], int(reference)))
    return pd.DataFrame(found, columns=["dataset", "recipe", "needed", "fewest", "reference"])


def yardstick(rows: pd.DataFrame) -> str:
    """Return the recipe that others are to equal with fewer labels: the published one, or `supervised` without it."""
    return "published" if "published" in set(rows["recipe"]) else "supervised"


def first_crossing(labels: np.ndarray, errors: np.ndarray, target: float) -> float:
    """Return where errors over ascending numbers of labels first fall to `target`, log–log; not a number if nowhere."""
    below = np.flatnonzero(errors <= target)
    if not len(below):
        return np.nan
    after = below[0]
    if after == 0:
        return float(labels[0])
    part = np.log(errors[after - 1] / target) / np.log(errors[after - 1] / errors[after])
    return float(labels[after - 1] * (labels[after] / labels[after - 1]) ** part)


def label_noise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean error for each kind of label trained on, against each kind tested on.

    Args:
        rows: of all kinds of labels; runs of `supervised` count of which every kind was trained on.

    Returns:
        Indexed by dataset, number of labels, and kind trained on; a column for each kind tested on.
    """
    rows = rows[rows["recipe"] == "supervised"]
    run = ["dataset", "labels", *RUN]
    kinds = rows.groupby(run)["training_labels"].transform("nunique")
    rows = rows[kinds > 1].rename(
        columns={
            "relative_error": "converged",
            "relative_error_published_labels": "published",
            "relative_error_coarse_labels": "coarse",
        }
    )
    table = rows.groupby(["dataset", "labels", "training_labels"])[["converged", "published", "coarse"]].mean()
    return table.dropna(axis="columns", how="all")
