"""Solving cells of a dataset file again with MPB, to see by how much its labels are off."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_gen.dataset import STATUS_SOLVED, open_dataset
from data_gen.labels import LabelSettings, density, distance, label_cells
from data_gen.lattices import basis_vectors, half_grid
from data_gen.own_cells import OwnCells
from data_gen.plane_groups import grid_point_group
from data_gen.solvers import mpb, solver_module
from data_gen.solvers.smoothing import block_mean
from data_gen.unit_cells import CellSource, family_of

K_POINTS, BANDS = 25, 10
SMALLEST_FREQUENCY = 0.02
# MPB takes the highest frequency of an even mesh as -N/2 alone, so that TE bands at k and -k differ from each other, by
# 3e-4 in a cell of high contrast on 32 × 32 points, and by as much from ours (see `solvers/bloch.py`).
FREQUENCY_TOLERANCE = {"tm": 1e-4, "te": 1e-3}


def verify(file: Path, /, *, samples: int = 4, seed: int = 0, source: Path | None = None) -> dict[str, float]:
    """Solve random cells of a dataset file again with MPB and compare; fail if anything is out of tolerance.

    Each cell is drawn again from its seed, or read again from the array of your own cells. Its permittivity and its
    label, made again, are compared with the file's; its bands on the 25 × 25 grid of wavevectors, by the file's solver,
    with MPB's (a file labelled by MPB is compared with the fast solver); and so are the two densities of states.

    Args:
        file: a labelled dataset file made by `generate` or `import_cells`.
        samples: number of cells to solve, at most all of them.
        seed: seed of the choice of cells.
        source: of a file made by `import_cells`, the .npy file that it was made from.

    Returns:
        The deviations that are printed, by name.

    Raises:
        FileNotFoundError: if there is no such file, or MPB cannot be had.
        ValueError: if it is not a labelled dataset file made by one of these, has fewer solved cells than `samples`, or
            a grid that MPB does not take; if `source` is not what it was made from; or if `seed` is negative.
        RuntimeError: if a deviation is beyond its tolerance.
    """
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}")
    with open_dataset(file) as dataset:
        if "dos" not in dataset:
            raise ValueError(f"{file} holds no labels to verify")
        _check_made_here(file, dataset.attrs, dataset["epsilon"].shape[1:])
        cells = cell_source(dataset.attrs, source)
        solved = np.flatnonzero(dataset["status"].values == STATUS_SOLVED)
        if not 1 <= samples <= len(solved):
            raise ValueError(f"`samples` must be from 1 to the {len(solved)} solved cells of {file}, got {samples}")
        chosen = np.sort(np.random.default_rng(seed).choice(solved, samples, replace=False))
        stored = dataset[["epsilon", "dos"]].isel(sample=chosen).load()
        settings = dataset.attrs
    deviations = []
    for index, epsilon, dos in tqdm(
        list(zip(chosen, stored["epsilon"].values, stored["dos"].values)), unit="cell", desc="verify", file=sys.stderr
    ):
        deviations.append(_deviations(cells, int(index), epsilon, dos, settings))
    return _report(deviations, settings["polarization"])


def cell_source(attributes: Mapping[str, Any], source: Path | None) -> CellSource:
    """Return what the cells of a dataset file with these attributes were drawn from.

    Raises:
        ValueError: if its family is unknown, or it is of somebody's own cells and `source` is not what they are from.
    """
    if "source" not in attributes:
        if source is not None:
            raise ValueError(f"`source` is for cells of one's own, these are of family {attributes['family']}")
        return family_of(attributes)
    if source is None:
        raise ValueError("`source` must name the .npy file that these cells are from, got none")
    cells = OwnCells(file=Path(source), lattice=tuple(np.ravel(attributes["lattice"])))
    if cells.checked() != attributes["source"]:
        raise ValueError(f"{source} is not what these cells are from, or was changed")
    return cells


def _check_made_here(file: Path, attributes: Mapping[str, Any], grid: tuple[int, ...]) -> None:
    """Refuse a file whose cells cannot be drawn, or its labels made, again."""
    needed = ("seed", "resolution", "family", *(field.name for field in fields(LabelSettings)))
    if missing := [name for name in needed if name not in attributes]:
        raise ValueError(
            f"{file} was not made by `generate` or `import_cells`: it does not say its {', '.join(missing)}; have MPB "
            "solve some of its cells with `data_gen.solve`"
        )
    if attributes["seed"] < 0:
        raise ValueError(f"{file} was not made by `generate` or `import_cells`: its seed is {attributes['seed']}")
    resolution = int(attributes["resolution"])
    mpb.check_grid((resolution, resolution * grid[1] // grid[0]))


def _deviations(
    cells: CellSource, index: int, epsilon: np.ndarray, dos: np.ndarray, settings: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    """Return the mean and largest deviation of one cell in each respect."""
    resolution = int(settings["resolution"])
    fine = torch.from_numpy(cells.draw(int(settings["seed"]), index, resolution).epsilon)[None]
    basis = basis_vectors(cells.lattice)
    labels = LabelSettings(**{field.name: _setting(settings[field.name]) for field in fields(LabelSettings)})
    again = label_cells(fine, basis, resolution, labels, point_group=grid_point_group(cells.plane_group))["dos"]
    own, other = (
        solver_module(name).solve_bands(
            fine,
            half_grid(K_POINTS),
            bands=BANDS,
            polarization=labels.polarization,
            basis=basis,
            resolution=resolution,
        )
        for name in (("rbme", "mpb") if labels.solver == "rbme" else ("mpb", "rbme"))
    )
    moving = other.frequency > SMALLEST_FREQUENCY
    frequency = ((own.frequency - other.frequency).abs() / other.frequency)[moving]
    densities = [density(half, K_POINTS, fine, basis, labels)[0] for half in (own, other)]
    drawn = block_mean(fine, fine.shape[1] // resolution)[0].numpy()
    return {
        "permittivity": _spread(np.abs(epsilon - drawn) / drawn),
        "label": _spread(distance(torch.from_numpy(dos[None]), torch.from_numpy(again))),
        "frequency": _spread(frequency),
        "density of states": _spread(distance(*densities)),
    }


def tolerances(polarization: str) -> dict[str, tuple[str, float]]:
    """Return, by name of the deviation, what it compares and how large it may be."""
    return {
        "permittivity": ("the file's against the cell drawn again", 1e-6),
        "label": ("the file's against the label made again, relative error", 1e-5),
        "frequency": (f"the two solvers, relative, above {SMALLEST_FREQUENCY}", FREQUENCY_TOLERANCE[polarization]),
        "density of states": ("from the two solvers' bands on one grid, relative error", 3e-3),
    }


def _report(deviations: list[dict[str, tuple[float, float]]], polarization: str) -> dict[str, float]:
    """Print and return the deviations over all cells; raise `RuntimeError` if one is beyond its tolerance."""
    found: dict[str, float] = {}
    failures = []
    for name, (meaning, tolerance) in tolerances(polarization).items():
        mean = float(np.mean([cell[name][0] for cell in deviations]))
        largest = float(np.max([cell[name][1] for cell in deviations]))
        found |= {f"{name} mean": mean, f"{name} largest": largest}
        within = largest <= tolerance  # which a deviation that is not a number is not
        verdict = "ok" if within else "BEYOND TOLERANCE"
        print(f"{name:18s} mean {mean:.1e}  largest {largest:.1e}  tolerance {tolerance:.0e}  {verdict}  ({meaning})")
        if not within:
            failures.append(name)
    if failures:
        raise RuntimeError(f"beyond tolerance in {', '.join(failures)} over {len(deviations)} cells")
    print(f"verified: {len(deviations)} cells")
    return found


def _setting(value: Any) -> Any:
    return None if isinstance(value, str) and value == "as needed" else getattr(value, "item", lambda: value)()


def _spread(values: np.ndarray | torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.max())
