"""The models that come with the package: trained on five families of cells, measured on cells that they have not seen.

    python -m experiments.photonics.shipped --polarization te --workers 2

Makes the datasets of one polarization, trains by the recipe `few-labels`, measures the model once on the test cells,
and writes it with its card into the package. Stop it whenever you like: it goes on where it was.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from data_gen.dataset import STATUS_SOLVED, open_dataset, replaced_when_complete
from data_gen.verification import verify
from experiments.photonics.datasets import generate_what_can_be
from experiments.photonics.figures import markdown
from experiments.photonics.splits import check_disjoint
from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune
from photonic_essl.metrics import PREDICTED, SCORED, empty_lattice, relative_errors
from photonic_essl.regression import SHIPPED, Regressor

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "blob": ("blob", {}),
    "gpm": ("gpm", {}),
    "p1": ("p1", {}),
    "rods": ("rods", {}),
    "p4mm": ("level-set", {"plane_group": "p4mm", "cutoff": 2}),
}
SEEDS = {"pool": 7001, "validation": 7002, "test": 7004}
CELLS = {"pool": 600, "validation": 200, "test": 500}
KEPT = ("epsilon", "epsilon_mean", "status", "dos", "dos_error")
VERIFIED = 1
COVERAGE = 0.9
CONTRASTS = (1.0, 2.0, 4.0, 8.0, 20.0)
FILLS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def make_data(folder: Path, polarization: str, cells: dict[str, int], workers: int) -> dict[str, Path]:
    """Make a file of each split, all families together, and return them by split."""
    splits = {split: folder / f"{split}.h5" for split in SEEDS}
    for split, mixed in splits.items():
        parts = [folder / f"{split}-{name}.h5" for name in FAMILIES]
        for part, (family, options) in zip(parts, FAMILIES.values()):
            drawn = {"samples": cells[split], "seed": SEEDS[split], "polarization": polarization}
            generate_what_can_be(family, part, **drawn, workers=workers, **options)
        if not mixed.exists():
            mix(parts, mixed)
    for name in FAMILIES:
        verify(folder / f"test-{name}.h5", samples=VERIFIED)
    check_disjoint({split: load_cells(file) for split, file in splits.items()})
    return splits


def mix(parts: Sequence[Path], out: Path) -> None:
    """Write the solved cells of several files to one, family after family."""
    datasets = []
    for part in parts:
        with open_dataset(part) as dataset:
            datasets.append(dataset[list(KEPT)].isel(sample=dataset["status"].values == STATUS_SOLVED).load())
    mixed = xr.concat(datasets, "sample", combine_attrs="override").assign_attrs(family="mixed")
    with replaced_when_complete(out) as partial:
        mixed.to_netcdf(partial, engine="h5netcdf")


def train(splits: dict[str, Path], out: Path, epochs: int | None) -> Regressor:
    """Train on all labelled cells of the pool."""
    with open_dataset(splits["pool"]) as dataset:
        labels = dataset.sizes["sample"]
    return finetune(splits["pool"], out, labels=labels, validation=splits["validation"], epochs=epochs)


def measure(model: Regressor, folder: Path) -> pd.DataFrame:
    """Return errors and properties of the test cells, one a row; the test split is read here alone."""
    parts = [measure_file(model, folder / f"test-{name}.h5").assign(family=name) for name in FAMILIES]
    return pd.concat(parts, ignore_index=True)


def measure_file(model: Regressor, test: Path) -> pd.DataFrame:
    """Return errors and properties of the solved cells of one file, one a row."""
    with open_dataset(test) as dataset:
        cells = dataset.isel(sample=dataset["status"].values == STATUS_SOLVED)
        epsilon, true = cells["epsilon"].values, cells["dos"].values[:, :PREDICTED]
    predicted = model.predict_interval(epsilon, COVERAGE)
    within = (predicted["lowest"].values <= true) & (true <= predicted["highest"].values)
    lowest, highest = epsilon.min((1, 2)), epsilon.max((1, 2))
    area = abs(float(torch.linalg.det(model.lattice)))
    return pd.DataFrame(
        {
            "error": relative_errors(predicted["dos"], true),
            "plane waves": relative_errors(model.uncorrected(epsilon), true),
            "empty lattice": relative_errors(np.tile(empty_lattice(area=area)[:PREDICTED], (len(true), 1)), true),
            "within": within[:, SCORED].mean(1),
            "contrast": highest / lowest,
            "fill": (epsilon.mean((1, 2)) - lowest) / (highest - lowest),
        }
    )


def card(cells: pd.DataFrame, polarization: str, sizes: dict[str, int]) -> str:
    """Return the model card, in Markdown."""
    contrast = cells.groupby(pd.cut(cells["contrast"], CONTRASTS, include_lowest=True), observed=True)
    fill = cells.groupby(pd.cut(cells["fill"], FILLS, include_lowest=True), observed=True)
    whole = [("all", cells)]
    parts = [
        f"# The model for {polarization.upper()} that comes with photonic_essl",
        f"Predicts the density of states D/n, {polarization.upper()} polarization, of two-dimensional photonic "
        "crystals on the square lattice, from ε on 32 × 32 pixels, over the scaled frequency ωn below 0.96 (2πc/a), "
        f'with intervals: `photonic_essl.load_regressor(polarization="{polarization}")`.',
        "## Data",
        f"Families {', '.join(FAMILIES)} (level sets of p4mm with cutoff 2), ε from 1 to 20. Of each: {sizes['pool']} "
        f"cells to train on, {sizes['validation']} to choose the epoch and calibrate the intervals, {sizes['test']} to "
        "test, read once; labels converged in k (`data-gen generate`, as it is by default), seeds "
        f"{', '.join(map(str, SEEDS.values()))}. No cell, nor a symmetric copy of one, is in two splits. "
        f"MPB solved {VERIFIED} test cell of each family again, within tolerance.",
        "## Error on test cells",
        "Relative error of arXiv 2111.00899, in %, beside that of the first approximation by plane waves, not "
        "corrected, and of the empty lattice; and the share of true values within the intervals of "
        f"{100 * COVERAGE:.0f} %, in %.",
        _table("family", [*cells.groupby("family", sort=False), *whole], str),
        _table("contrast, highest ÷ lowest ε", contrast, _interval),
        _table("fill, area of the higher ε", fill, _interval),
        "## Where not to trust it",
        "Other lattices and other grids are refused as far as the data say what they are. A contrast above 20 is "
        "warned of. Cells with features much finer, or with more materials, than those of the families above were not "
        "seen in training, nor measured. At high contrast errors are largest, above all at the edges of band gaps: "
        "solve again (`data_gen.label`) what matters.",
        "## Made by",
        f"`python -m experiments.photonics.shipped --polarization {polarization}`: the recipe `few-labels`, seed 0.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(name: str, groups: object, word: Callable[[object], str]) -> str:
    lines = [
        [
            word(key),
            str(len(part)),
            *(f"{100 * value:.3f}" for value in (part["error"].mean(), part["error"].median(), part["error"].max())),
            *(f"{100 * part[column].mean():.3f}" for column in ("plane waves", "empty lattice")),
            f"{100 * part['within'].mean():.1f}",
        ]
        for key, part in groups
    ]
    return markdown(
        [name, "cells", "mean", "median", "worst", "plane waves, mean", "empty lattice, mean", "within"], lines
    )


def _interval(bounds: pd.Interval) -> str:
    return f"{max(bounds.left, 0):.2g} to {bounds.right:.2g}"


def main(argv: Sequence[str] | None = None) -> None:
    """Make one of the models that ship."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--polarization", choices=SHIPPED, required=True, help="of the densities of states")
    command.add_argument("--runs", type=Path, help="folder of the datasets and runs; by default in runs/shipped")
    command.add_argument("--out", type=Path, help="folder of the model; in the package by default")
    command.add_argument("--workers", type=int, default=2, help="processes to solve cells with")
    command.add_argument("--cells", type=int, help="of each family and split, to try it out")
    command.add_argument("--epochs", type=int, help="of training, to try it out")
    arguments = command.parse_args(argv)
    sizes = CELLS if arguments.cells is None else dict.fromkeys(CELLS, arguments.cells)
    polarization = arguments.polarization
    runs = arguments.runs or Path("runs/shipped") / polarization
    out = arguments.out or SHIPPED[polarization]
    runs.mkdir(parents=True, exist_ok=True)
    splits = make_data(runs, polarization, sizes, arguments.workers)
    model = train(splits, runs / "model", arguments.epochs)
    cells = measure(model, runs)
    model.save_pretrained(out)
    (out / "README.md").write_text(card(cells, polarization, sizes))
    cells.to_csv(runs / "test-cells.csv", index=False)
    print(card(cells, polarization, sizes))


if __name__ == "__main__":
    main()
