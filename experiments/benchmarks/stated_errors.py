"""How far labels on a grid of wavevectors that is asked for are from the k → ∞ limit, against what they state.

    python -m experiments.benchmarks.stated_errors

Labels of random cells of two materials, of 12 × 12 pixels, on each of the named lattices and in both polarizations, on
n × n wavevectors; the label on 101 × 101 stands for the limit. Writes experiments/results/stated_errors.json: the mean
and largest ratio of the distance from it to `dos_error`, by lattice and n, and how many ratios are above 1.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import data_gen
from data_gen.labels import distance
from data_gen.lattices import LATTICES
from experiments.processes import process_pool

RESULT = Path("experiments/results/stated_errors.json")
PIXELS, BANDS, LIMIT = 12, 14, 101
GRIDS = (4, 6, 9, 13, 20, 25, 40)


def cell(random: np.random.Generator) -> np.ndarray:
    """Return ε of a random smooth shape of one material in another, `(12, 12)`."""
    waves = np.hypot(*np.meshgrid(*[np.fft.fftfreq(PIXELS, 1 / PIXELS)] * 2))
    height = np.fft.ifft2(np.fft.fft2(random.normal(size=waves.shape)) * np.exp(-((waves / 1.5) ** 2))).real
    return np.where(height > np.quantile(height, random.uniform(0.3, 0.8)), random.uniform(2, 14), 1.0)


def ratios(lattice: str, seed: int, index: int) -> dict[int, float]:
    """Return the distance of each grid's label from the limit, as part of what it states."""
    torch.set_num_threads(1)
    epsilon = cell(np.random.default_rng((seed, list(LATTICES).index(lattice), index)))
    settings = {"bands": BANDS, "polarization": ("te", "tm")[index % 2], "lattice": lattice}
    labels = {n: data_gen.label(epsilon, k_points=n, **settings) for n in (*GRIDS, LIMIT)}
    dos = {n: torch.from_numpy(label["dos"].values)[None] for n, label in labels.items()}
    return {n: float(distance(dos[n], dos[LIMIT])) / float(labels[n]["dos_error"]) for n in GRIDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=8, help="of each lattice")
    parser.add_argument("--seed", type=int, default=402)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    table: dict = {"seed": arguments.seed, "cells": arguments.cells, "labels": 0, "further than stated": 0}
    table["distance ÷ stated"] = {}
    with process_pool(arguments.processes) as pool:
        waiting = {
            lattice: [pool.submit(ratios, lattice, arguments.seed, index) for index in range(arguments.cells)]
            for lattice in LATTICES
        }
        for lattice, jobs in waiting.items():
            found = [job.result() for job in jobs]
            by_grid = {n: [one[n] for one in found] for n in GRIDS}
            table["labels"] += sum(map(len, by_grid.values()))
            table["further than stated"] += sum(value > 1 for values in by_grid.values() for value in values)
            row = {f"{n} × {n}": {"mean": float(np.mean(v)), "largest": max(v)} for n, v in by_grid.items()}
            table["distance ÷ stated"][lattice] = row
            print(lattice, {n: round(value["largest"], 2) for n, value in row.items()}, flush=True)
    RESULT.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
