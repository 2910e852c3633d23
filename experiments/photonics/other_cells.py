"""The recipe `few-labels` where the study does not go: TE, the hexagonal and the centred lattice.

    python -m experiments.photonics.other_cells --workers 2

Makes small datasets, has MPB solve some of their cells again, trains on 100 and on 500 labels from three seeds, and
measures each model once on the test cells, beside plane waves that are not corrected. Writes
experiments/results/other_cells.csv and other_cells.md. Stop it whenever you like: it goes on where it was.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_gen.solvers import mpb
from data_gen.verification import verify
from experiments.photonics.datasets import generate_what_can_be
from experiments.photonics.figures import markdown
from experiments.photonics.shipped import COVERAGE, measure_file
from experiments.photonics.splits import check_disjoint
from experiments.processes import process_pool
from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune

RESULTS = Path("experiments/results")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "blob, TE": ("blob", {"polarization": "te"}),
    "gpm, TE": ("gpm", {"polarization": "te"}),
    "p6mm, hexagonal, TM": ("level-set", {"plane_group": "p6mm"}),
    "p6mm, hexagonal, TE": ("level-set", {"plane_group": "p6mm", "polarization": "te"}),
    "cm, centred, TM": ("level-set", {"plane_group": "cm"}),
}
SPLIT_SEEDS = {"pool": 7101, "validation": 7102, "test": 7103}
CELLS = {"pool": 500, "validation": 200, "test": 500}
LABELS = (100, 500)
SEEDS = (0, 1, 2)
VERIFIED = 2


def split_file(runs: Path, kind: str, split: str) -> Path:
    return runs / kind.replace(", ", "-").lower() / f"{split}.h5"


def make_data(runs: Path, kind: str, cells: Mapping[str, int], workers: int) -> None:
    """Make the files of one kind of cell, check that they share no cell, and verify some labels with MPB."""
    family, settings = KINDS[kind]
    files = {split: split_file(runs, kind, split) for split in SPLIT_SEEDS}
    for split, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = {"samples": cells[split], "seed": SPLIT_SEEDS[split]}
        generate_what_can_be(family, file, **drawn, workers=workers, **settings)
    check_disjoint({split: load_cells(file) for split, file in files.items()})
    if mpb.is_available():
        verify(files["test"], samples=VERIFIED)


def train_and_measure(runs: Path, kind: str, labels: int, seed: int) -> pd.DataFrame:
    """Train one model and return its errors on the test cells, one a row."""
    pool, validation, test = (split_file(runs, kind, split) for split in SPLIT_SEEDS)
    out = pool.parent / f"model-{labels}-{seed}"
    model = finetune(pool, out, labels=labels, validation=validation, seed=seed, device="cpu", progress=False)
    return measure_file(model, test).assign(kind=kind, labels=labels, seed=seed)


def summary(found: pd.DataFrame) -> str:
    """Return the table, in Markdown: errors in %, mean ± standard deviation over seeds of the mean over cells."""
    lines = []
    for kind, cells in found.groupby("kind", sort=False):
        waves = 100 * cells["plane waves"]  # the same from every model
        lines.append([str(kind), "none", f"{waves.mean():.3f}", f"{waves.max():.1f}", ""])
        for labels, rows in cells.groupby("labels"):
            seeds = rows.groupby("seed")
            error, within = 100 * seeds["error"].mean(), 100 * seeds["within"].mean()
            worst = 100 * rows["error"].max()
            spread = f"{error.mean():.3f} ± {error.std():.3f}"
            lines.append([str(kind), str(labels), spread, f"{worst:.1f}", f"{within.mean():.1f}"])
    return markdown(["cells", "labels", "error", "worst cell", f"within {100 * COVERAGE:.0f} % intervals"], lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the recipe on other kinds of cells."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--runs", type=Path, default=Path("runs/other-cells"), help="folder of datasets and models")
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of the two tables")
    command.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = command.parse_args(argv)
    for kind in KINDS:
        make_data(arguments.runs, kind, CELLS, arguments.workers)
    with process_pool(arguments.workers) as pool:
        wanted = [(kind, labels, seed) for kind in KINDS for labels in LABELS for seed in SEEDS]
        waiting = [pool.submit(train_and_measure, arguments.runs, *one) for one in wanted]
        found = pd.concat([one.result() for one in waiting], ignore_index=True)
    means = found.groupby(["kind", "labels", "seed"], sort=False).mean()
    means.assign(worst=found.groupby(["kind", "labels", "seed"])["error"].max()).to_csv(
        arguments.results / "other_cells.csv", float_format="%.6g"
    )
    (arguments.results / "other_cells.md").write_text(summary(found) + "\n")
    print(summary(found))


if __name__ == "__main__":
    main()
