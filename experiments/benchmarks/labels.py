"""How far default labels are from the k → ∞ limit, against what they state, and what they cost.

    python -m experiments.benchmarks.labels

Each label is compared with the density of states on the 151 × 151 grid at the same smoothing, and with the limit
extrapolated from 105 × 105 and 151 × 151. The cost is that of a default label over that of one with the published
settings (25 × 25, ten bands), both by the fast solver, one thread, alternating: the mean over cells of each, divided.
Writes experiments/results/labels.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from data_gen.dos import integrate, scaled_frequencies
from data_gen.labels import LabelSettings, distance, label_cells
from data_gen.lattices import basis_vectors, half_grid
from data_gen.plane_groups import grid_point_group
from data_gen.solvers import rbme
from data_gen.unit_cells import unit_cell_family

RESULT = Path("experiments/results/labels.json")
BASIS = basis_vectors("square")
DEFAULT = LabelSettings()
PUBLISHED = LabelSettings(k_points=25, bands=10, smoothing="published")


def density(cell: torch.Tensor, n: int) -> torch.Tensor:
    bands = rbme.solve_bands(cell, half_grid(n), bands=10, resolution=32)
    return integrate(
        bands.frequency,
        bands.group_velocity,
        cell.mean(dim=(1, 2)),
        n=n,
        basis=BASIS,
        scaled_frequency=torch.from_numpy(scaled_frequencies()),
        smoothing=DEFAULT.smoothing,
    )[0]


def measure(family: str, seed: int, cells: int) -> dict[str, np.ndarray]:
    """Return one array over cells for each quantity."""
    rows = []
    group = grid_point_group(unit_cell_family(family).plane_group)
    for index in range(cells):
        cell = torch.from_numpy(unit_cell_family(family).draw(seed, index).epsilon)[None]
        seconds = {}
        for name, settings in (("published", PUBLISHED), ("default", DEFAULT)):
            start = time.perf_counter()
            label = label_cells(cell, BASIS, 32, settings, point_group=group)
            seconds[name] = time.perf_counter() - start
        dos = torch.from_numpy(label["dos"])
        on_105, on_151 = density(cell, 105), density(cell, 151)
        limit = (151**2 * on_151 - 105**2 * on_105) / (151**2 - 105**2)
        rows.append(
            {
                "error_against_151": distance(dos, on_151).item(),
                "error_against_limit": distance(dos, limit).item(),
                "stated_error": float(label["dos_error"][0]),
                "seconds_default": seconds["default"],
                "seconds_published": seconds["published"],
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    label_cells(torch.rand(1, 32, 32, dtype=torch.float64) + 1, BASIS, 32, PUBLISHED)
    table = {}
    for family in ("blob", "gpm", "rods"):
        found = measure(family, arguments.seed, arguments.cells)
        table[family] = {
            name: {"mean": values.mean(), "median": float(np.median(values)), "largest": values.max()}
            for name, values in found.items()
        }
        table[family]["cost_ratio"] = found["seconds_default"].mean() / found["seconds_published"].mean()
        table[family]["share_of_cells_within_stated_error"] = float(
            (found["error_against_limit"] <= found["stated_error"]).mean()
        )
        print(family, json.dumps(table[family], indent=1), flush=True)
    RESULT.write_text(json.dumps({"cells": arguments.cells, "seed": arguments.seed, **table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
