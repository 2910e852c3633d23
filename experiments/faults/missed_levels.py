"""Does the fast solver miss a level? Random cells on meshes small enough to be diagonalised whole.

    python -m experiments.faults.missed_levels

Thin layers, crossed or nearly uniform along themselves, and rods, of ε from 8 to 50, on all five kinds of lattice and
on cells up to four times as long as wide, both polarizations, eight to sixteen bands at two wavevectors. Layers are
the hard cells: symmetry keeps modes apart, and of one that a reduced basis lacks no residual tells. In long ones, or
at high contrast, modes made of waves at the edge of such coarse meshes are among the lowest. Writes
experiments/results/missed_levels.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_gen.lattices import LATTICES, basis_vectors
from data_gen.solvers.bloch import Grid, TransverseElectric, TransverseMagnetic
from data_gen.solvers.patches import hamiltonian
from data_gen.solvers.rbme import solve_bands
from data_gen.solvers.smoothing import effective_inverse_permittivity

RESULT = Path("experiments/results/missed_levels.json")
MISSED = 1e-3  # relative error of a frequency that is more than a few times the solver's tolerance, 2e-5
SHAPES = ("layer along x", "layer along y", "crossed layers", "nearly uniform layer", "rod")


def draw(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return permittivity `(x, y)`, wavevectors `(k, 2)`, and the settings of a random problem."""
    random = np.random.default_rng((seed, index))
    shape = SHAPES[index % len(SHAPES)]
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in random.integers(12, 20, 2)]
    x, y = np.meshgrid(*axes, indexing="ij")
    width, high = random.uniform(0.05, 0.15), np.exp(random.uniform(np.log(8), np.log(50)))
    inside = {
        "layer along x": abs(y) < width,
        "layer along y": abs(x) < width,
        "crossed layers": (abs(x) < width / 2) | (abs(y) < width / 2),
        "nearly uniform layer": abs(y) < width,
        "rod": np.hypot(x, y) < width,
    }[shape]
    epsilon = np.where(inside, high, 1.0)
    if shape == "nearly uniform layer":
        epsilon = epsilon * (1 + 10 ** random.uniform(-4, -1) * np.cos(2 * np.pi * (x + y)))
    settings = {
        "bands": int(random.integers(8, 17)),
        "polarization": str(random.choice(("tm", "te"))),
        "basis": basis_vectors(str(random.choice(list(LATTICES)))) * [1.0, random.choice((1.0, random.uniform(1, 4)))],
    }
    return epsilon, random.uniform(-0.5, 0.5, (2, 2)), settings


def all_levels(epsilon: np.ndarray, wavevectors: np.ndarray, polarization: str, basis: np.ndarray) -> np.ndarray:
    """Diagonalise the whole problem; return every frequency, ascending, shape `(k, mode)`."""
    medium = torch.from_numpy(epsilon)[None]
    grid = Grid(epsilon.shape, basis, medium.device)
    if polarization == "tm":
        operator = TransverseMagnetic(grid, medium)
    else:
        operator = TransverseElectric(grid, effective_inverse_permittivity(medium, 1, basis))
    fields = operator.every_field() * operator.mass().rsqrt()[:, None]
    k = torch.from_numpy(wavevectors) @ grid.reciprocal
    return torch.linalg.eigvalsh(hamiltonian(operator.polynomial(fields), k))[0].clamp(min=0).sqrt().numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    errors, missed = [], []
    for index in tqdm(range(arguments.cells), unit="cell"):
        epsilon, wavevectors, settings = draw(arguments.seed, index)
        expected = all_levels(epsilon, wavevectors, settings["polarization"], settings["basis"])[:, : settings["bands"]]
        found = solve_bands(epsilon[None], wavevectors, **settings).frequency[0].numpy()
        errors.append(float((np.abs(found - expected) / expected.clip(0.02)).max()))
        if errors[-1] > MISSED:
            missed.append({"index": index, "shape": SHAPES[index % len(SHAPES)], "error": errors[-1]})
    summary = {
        "seed": arguments.seed,
        "cells": arguments.cells,
        "missed": missed,
        "error": {"median": float(np.median(errors)), "largest": max(errors)},
    }
    RESULT.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
