"""How far labels on 32 × 32 pixels are from those of the same cells on finer grids.

    python -m experiments.benchmarks.grids

`dos_error` is a label's distance from the k → ∞ limit on its grid, and says nothing of the grid. Here the same cells,
sampled nine times along each pixel, are labelled on 32 × 32, 64 × 64 and 96 × 96 pixels, the last of which stands for
the limit. Writes experiments/results/grids.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data_gen
from data_gen.unit_cells import unit_cell_family
from photonic_essl.metrics import relative_errors

RESULT = Path("experiments/results/grids.json")
FAMILIES = ("blob", "gpm", "rods")
RESOLUTIONS = (32, 64, 96)


def distances(family: str, polarization: str, cells: int, seed: int) -> dict[int, np.ndarray]:
    """Return the relative error of each cell's label, against the finest, by resolution."""
    labels = {resolution: [] for resolution in RESOLUTIONS}
    for index in tqdm(range(cells), desc=f"{family}, {polarization.upper()}", unit="cell"):
        for resolution, found in labels.items():
            epsilon = unit_cell_family(family).draw(seed, index, resolution).epsilon
            found.append(data_gen.label(epsilon, resolution=resolution, polarization=polarization)["dos"].values)
    finest = np.stack(labels.pop(RESOLUTIONS[-1]))
    return {resolution: relative_errors(np.stack(found), finest) for resolution, found in labels.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20, help="of each family")
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = {}
    for polarization in ("tm", "te"):
        for family in FAMILIES:
            found = distances(family, polarization, arguments.cells, arguments.seed)
            table[f"{family}, {polarization.upper()}"] = {
                f"{resolution} × {resolution}": {
                    name: round(100 * float(of(errors)), 4)
                    for name, of in (("mean", np.mean), ("median", np.median), ("worst", np.max))
                }
                for resolution, errors in found.items()
            }
    text = json.dumps(
        {"cells": arguments.cells, "seed": arguments.seed, "relative error in % against 96 × 96": table},
        indent=1,
        ensure_ascii=False,
    )
    print(text)
    RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
