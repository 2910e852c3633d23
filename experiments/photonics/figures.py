"""Figures and tables of the few-label study, from its tidy table.

    python -m experiments.photonics.figures --scale laptop

Writes few_label_study.md, few_label_study_error.png and few_label_study_saved.png beside the table, and, where the
models of the study still are, predictions beside the truth as few_label_study_cells_DATASET.png.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.photonics.comparison import (
    NAMES,
    NETWORKS,
    label_noise,
    labels_needed,
    on_converged_labels,
    paired_tests,
    read_table,
    summary,
    yardstick,
)
from experiments.photonics.datasets import load_plan
from experiments.photonics.study import RUNS, TABLE, TABLES, folders, load_scale
from experiments.photonics.table import read_rows
from experiments.photonics.trials import Trial
from photonic_essl.data import load_cells
from photonic_essl.plotting import draw_learning_curve, draw_predictions
from photonic_essl.regression import load_regressor

# Okabe and Ito's colours, with a marker each, so that curves differ without colour too. What has none, single parts of
# few-labels, stands in the tables alone.
STYLES = {
    "supervised": ("#000000", "o"),
    "simclr": ("#0072B2", "s"),
    "simclr+t": ("#D55E00", "^"),
    "e-simclr": ("#009E73", "D"),
    "e-simclr-relative": ("#CC79A7", "P"),
    "e-simsiam": ("#E69F00", "v"),
    "e-barlow": ("#56B4E9", "X"),
    "published-supervised": ("#999933", "<"),
    "published": ("#44AA99", "h"),
    "few-labels": ("#882255", "*"),
    "few-labels-images": ("#E69F00", "v"),
    "few-labels-surrogate": ("#56B4E9", "X"),
}
BASELINE_LINES = {
    "empty-lattice": ":",
    "nearest-neighbour": (0, (1, 3)),
    "ridge": "--",
    "random-forest": "-.",
    "gaussian-process": (0, (6, 2, 1, 2, 1, 2)),
    "plane-waves": "-",
}
BASELINE_COLOUR = "#888888"


def draw_errors(rows: pd.DataFrame) -> Figure:
    """Draw the error against the number of labels, a panel for each dataset, bands of one standard deviation."""
    means = summary(rows)
    datasets = list(means["dataset"].unique())
    figure, axes = plt.subplots(
        1, len(datasets), figsize=(1.5 + 4.6 * len(datasets), 4.8), squeeze=False, layout="constrained"
    )
    for ax, dataset in zip(axes[0], datasets):
        _draw_panel(ax, means[means["dataset"] == dataset])
        ax.set_title(dataset)
    entries: dict[str, object] = {}
    for ax in axes[0]:
        entries |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside right center", frameon=False)
    return figure


def _draw_panel(ax: Axes, means: pd.DataFrame) -> None:
    for recipe, curve in means.groupby("recipe", sort=False):
        labels, mean, deviation = (curve[name].to_numpy() for name in ("labels", "mean", "deviation"))
        if recipe in BASELINE_LINES:
            style = {"color": BASELINE_COLOUR, "linestyle": BASELINE_LINES[recipe], "label": NAMES[recipe]}
            draw_learning_curve(labels, mean, ax, **style)
            continue
        if recipe not in STYLES:
            continue
        colour, marker = STYLES[recipe]
        style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.5, "label": NAMES[recipe]}
        draw_learning_curve(labels, mean, ax, deviation=deviation, **style)


def draw_labels_saved(rows: pd.DataFrame) -> Figure:
    """Draw how many labels each network needs to equal the yardstick at the largest number of labels."""
    needed, equal = labels_needed(rows), NAMES[yardstick(rows)]
    needed = needed[needed["recipe"].isin([name for name in NETWORKS if name in STYLES])]
    datasets = list(needed["dataset"].unique())
    if not datasets:
        raise ValueError(f"the table has no rows of {equal}, which others would have to equal")
    figure, axes = plt.subplots(
        1, len(datasets), figsize=(1 + 4.4 * len(datasets), 3.6), squeeze=False, layout="constrained"
    )
    for ax, dataset in zip(axes[0], datasets):
        part = needed[needed["dataset"] == dataset].iloc[::-1]
        colours = [STYLES[recipe][0] for recipe in part["recipe"]]
        bars = ax.barh([NAMES[recipe] for recipe in part["recipe"]], part["needed"].fillna(0), color=colours)
        words = [_needed(needed, fewest) for needed, fewest in zip(part["needed"], part["fewest"])]
        ax.bar_label(bars, words, padding=3)
        reference = part["reference"].iloc[0]
        ax.set(title=dataset, xlabel=f"labelled cells to equal\n{equal} at {reference}", xlim=(0, 1.35 * reference))
    return figure


def report(rows: pd.DataFrame, scale: str) -> str:
    """Return the tables as Markdown."""
    converged = on_converged_labels(rows)
    parts = [
        f"# The few-label study, scale `{scale}`",
        "Relative error on the test split in %, the metric of arXiv 2111.00899, mean ± standard deviation over "
        "pre-training seeds and draws of labels (baselines: over draws). The epoch was chosen on the validation "
        "split; the test split was read once a run.",
        *_error_tables(converged, "relative_error"),
        "## Paired differences",
        "First minus second, in percentage points, over runs that share the seed and the draw of labels; negative: the "
        "first is better. p: two-sided t-test of the differences averaged over draws, over seeds; and averaged over "
        "seeds, over draws; the larger of the two. Where there is one draw, over seeds alone: other labels may say "
        "otherwise. With so many comparisons, one in twenty falls below 0.05 by chance.",
        _paired_table(converged),
        "## Labels saved",
        f"Labels that each needs to equal *{NAMES[yardstick(converged)]}* at the largest number of labels; between the "
        "numbers that were run the error is taken for a power law.",
        _needed_table(converged),
        "## Cost",
        "Seconds of one process, of pre-training (or of training a surrogate, without its labels) and of each training "
        "on labels, mean over runs; other processes ran beside them.",
        _cost_table(converged),
    ]
    noise = label_noise(rows)
    if not noise.empty:
        parts += [
            "## Label noise",
            "Relative error in % of the supervised network by the kind of label that it was trained on (rows) and "
            "tested on (columns). The published labels are on a 25 × 25 grid, with the published program's smoothing, "
            "whose width varies from cell to cell; the coarse ones differ from the converged in the grid alone.",
            _noise_table(noise),
        ]
    if converged["relative_error_published_protocol"].notna().any():
        parts += [
            "## The published protocol, for comparison only",
            "The lowest error over epochs *on the test split*, in %.",
            *_error_tables(converged, "relative_error_published_protocol"),
        ]
    return "\n\n".join(parts) + "\n"


def _error_tables(rows: pd.DataFrame, column: str) -> list[str]:
    """Return a table for each dataset: recipes down, numbers of labels across."""
    means, tables = summary(rows.dropna(subset=[column]), column), []
    for dataset, part in means.groupby("dataset"):
        labels = sorted(part["labels"].unique())
        cells = {(row.recipe, row.labels): row for row in part.itertuples()}
        lines = [
            [NAMES[recipe], *(_mean(cells.get((recipe, count))) for count in labels)]
            for recipe in part["recipe"].unique()
        ]
        tables.append(f"**{dataset}**\n\n" + markdown([f"{dataset}, labels", *map(str, labels)], lines))
    return tables


def _mean(cell: object) -> str:
    if cell is None:
        return ""
    spread = "" if np.isnan(cell.deviation) else f" ± {100 * cell.deviation:.3f}"
    return f"{100 * cell.mean:.3f}{spread} ({cell.runs})"


def _paired_table(rows: pd.DataFrame) -> str:
    lines = [
        [
            row.dataset,
            str(row.labels),
            f"{NAMES[row.first]} − {NAMES[row.second]}",
            f"{100 * row.difference:+.3f}",
            "" if np.isnan(row.deviation) else f"{100 * row.deviation:.3f}",
            str(row.pairs),
            "" if np.isnan(row.p_value) else f"{row.p_value:.2g}",
        ]
        for row in paired_tests(rows).itertuples()
    ]
    return markdown(["dataset", "labels", "difference", "mean", "standard deviation", "pairs", "p"], lines)


def _cost_table(rows: pd.DataFrame) -> str:
    """Return a table of seconds: recipes down, pre-training and numbers of labels across."""
    numbers, lines = sorted(rows["labels"].unique()), []
    for (dataset, recipe), part in rows.groupby(["dataset", "recipe"]):
        seconds = part.groupby("labels")["seconds"].mean()
        pretraining = part["pretraining_seconds"].mean()
        words = [pretraining, *(seconds.get(number, np.nan) for number in numbers)]
        lines.append([dataset, NAMES[recipe], *("" if np.isnan(value) else f"{value:.0f}" for value in words)])
    return markdown(["dataset", "recipe", "pre-training", *map(str, numbers)], lines)


def _needed_table(rows: pd.DataFrame) -> str:
    lines = [
        [row.dataset, NAMES[row.recipe], _needed(row.needed, row.fewest)] for row in labels_needed(rows).itertuples()
    ]
    return markdown(["dataset", "recipe", "labels needed"], lines)


def _needed(needed: float, fewest: int) -> str:
    """Return a number of labels in words; nothing is known below the fewest labels of the study."""
    if np.isnan(needed):
        return "not reached"
    return f"≤ {fewest}" if needed <= fewest else f"{needed:.0f}"


def _noise_table(noise: pd.DataFrame) -> str:
    lines = [
        [dataset, str(labels), kind, *(f"{100 * value:.3f}" for value in values)]
        for (dataset, labels, kind), values in zip(noise.index, noise.to_numpy())
    ]
    return markdown(["dataset", "labels", "trained on", *(f"tested on {name}" for name in noise.columns)], lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, first column left-aligned."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def draw_cells(row: Mapping[str, str], runs: Path) -> Figure:
    """Draw what the model of a row predicts for the test cells that it predicts best, at the median and worst.

    Args:
        row: of the table, as text.
        runs: folder of the study's datasets and runs.

    Raises:
        FileNotFoundError: if the model or the test split is not there.
    """
    trial = Trial.from_row(row)
    models, data = folders(runs, load_scale(trial.scale))
    regressor = load_regressor(models / trial.folder)
    cells = load_cells(load_plan(trial.dataset, trial.scale).file(data, "test"), labelled=True)
    figure = draw_predictions(regressor.predict(cells.epsilon[:, 0]), cells.dos, cells.epsilon[:, 0])
    figure.suptitle(f"{trial.dataset}: {NAMES[trial.recipe]}, {trial.labels} labels, {len(cells)} test cells")
    return figure


def shown(rows: Sequence[Mapping[str, str]], scale: str) -> dict[str, Mapping[str, str]]:
    """Return for each dataset the row whose predictions are drawn: E-SimCLR with the most labels, its first run."""
    wanted = [row for row in rows if (row["recipe"], row["scale"]) == ("e-simclr", scale)]
    wanted.sort(key=lambda row: (-int(row["labels"]), int(row["pretraining_seed"]), int(row["label_seed"])))
    first: dict[str, Mapping[str, str]] = {}
    for row in wanted:
        first.setdefault(row["dataset"], row)
    return first


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {"error": draw_errors, "saved": draw_labels_saved}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables and figures of a scale."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--table", type=Path, help="the tidy table; that of the scale where not given")
    command.add_argument("--scale", choices=("smoke", "laptop", "recipes", "paper"), default="laptop")
    command.add_argument("--runs", type=Path, default=RUNS, help="folder of the datasets and runs")
    arguments = command.parse_args(argv)
    scale = arguments.scale
    table = arguments.table or TABLES.get(scale, TABLE)
    try:
        rows = read_table(table, scale)
    except (FileNotFoundError, ValueError) as error:
        command.error(str(error))
    text = report(rows, scale)
    table.with_suffix(".md").write_text(text)
    print(text)
    for name, draw in FIGURES.items():
        try:
            _save(draw(on_converged_labels(rows)), table.with_name(f"{table.stem}_{name}.png"))
        except ValueError as error:
            print(f"{name} is not drawn: {error}")
    for dataset, row in shown(read_rows(table), scale).items():
        try:
            _save(draw_cells(row, arguments.runs), table.with_name(f"{table.stem}_cells_{dataset}.png"))
        except FileNotFoundError as error:
            print(f"no predictions for {dataset} are drawn: {error}")


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=150)
    plt.close(figure)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
