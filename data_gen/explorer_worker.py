"""Draws and solves single cells on request, as a program of its own: `python -m data_gen.explorer_worker`.

Requests come on standard input and answers go to standard output, as `data_gen.messages` has them; it ends when its
standard input does. A request names a task of `TASKS` under `task`, and under `cell`, as JSON text, the arguments of a
`ChosenCell`. The answer holds what the task returns, or one line of text under `error`.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from data_gen.dataset import SCHEMA_VERSION, STATUS_SOLVED
from data_gen.dos import scaled_frequencies
from data_gen.generation import label_provenance
from data_gen.labels import BANDS, LabelSettings, label_cells
from data_gen.lattices import SymmetryPath, basis_vectors, half_grid, symmetry_path
from data_gen.messages import end_with_parent, read_message, write_message
from data_gen.plane_groups import PLANE_GROUPS, grid_point_group
from data_gen.solvers import solver_module
from data_gen.solvers.equivalence import equivalence
from data_gen.solvers.smoothing import block_mean
from data_gen.unit_cells import (
    EPSILON_RANGE,
    FAMILY_NAMES,
    FINE_SAMPLES_PER_PIXEL,
    LEVEL_SET,
    UnitCell,
    UnitCellFamily,
    unit_cell_family,
)
from data_gen.workers import one_thread

# Wavevectors along each reciprocal vector: MPB takes seconds for these, and minutes for those of a label.
REFERENCE_GRID = 25
# The same of the grid that band gaps are read off from, besides the path of the band diagram.
ZONE_GRID = 25

Answer = dict[str, Any]


@dataclass(frozen=True)
class ChosenCell:
    """A cell as one chooses it: drawn from a family, with some of its parameters chosen, and painted over.

    Attributes:
        family: name of a family.
        plane_group: for "level-set".
        cutoff: for "level-set".
        seed: of the draw.
        index: of the draw.
        resolution: pixels along each lattice vector.
        polarization: "tm" or "te".
        parameters: values of parameters that are not left to the draw.
        painted: ε of each pixel that is painted over, 0 where none is, x · resolution + y in order; empty for none.
    """

    family: str
    plane_group: str | None = None
    cutoff: int | None = None
    seed: int = 0
    index: int = 0
    resolution: int = 32
    polarization: str = "tm"
    parameters: dict[str, float] = field(default_factory=dict)
    painted: list[float] = field(default_factory=list)

    @functools.cached_property
    def unit_cells(self) -> UnitCellFamily:
        """The family that it is drawn from."""
        return unit_cell_family(self.family, self.plane_group, self.cutoff)

    @property
    def basis(self) -> np.ndarray:
        """Lattice vectors, shape `(2, 2)`, one a row, in units of a."""
        return basis_vectors(self.unit_cells.lattice)

    @property
    def path(self) -> SymmetryPath:
        """The path of its band diagram."""
        return symmetry_path(self.unit_cells.lattice)

    @property
    def symmetry(self) -> np.ndarray | None:
        """The point group that spares wavevectors: the family's; none is taken for granted of what is painted."""
        return None if any(self.painted) else grid_point_group(self.unit_cells.plane_group)

    @functools.cached_property
    def drawn(self) -> UnitCell:
        """The cell without what is painted over it."""
        return self.unit_cells.draw(self.seed, self.index, self.resolution, self.parameters)

    @functools.cached_property
    def fine(self) -> torch.Tensor:
        """The relative permittivity on the fine grid, shape `(1, x, y)`, float64."""
        epsilon = self.drawn.epsilon
        if any(self.painted):
            painted = np.kron(self._checked_paint(), np.ones((FINE_SAMPLES_PER_PIXEL, FINE_SAMPLES_PER_PIXEL)))
            epsilon = np.where(painted > 0, painted, epsilon)
        return torch.from_numpy(epsilon)[None]

    def _checked_paint(self) -> np.ndarray:
        painted, (low, high) = np.array(self.painted, dtype=np.float64), EPSILON_RANGE
        if painted.size != self.resolution**2:
            raise ValueError(f"`painted` must hold {self.resolution**2} numbers, got {painted.size}")
        if not ((painted == 0) | ((painted >= low) & (painted <= high))).all():
            raise ValueError(f"`painted` must be 0, or from {low:g} to {high:g}")
        return painted.reshape(self.resolution, self.resolution)

    def label(self, settings: LabelSettings) -> dict[str, np.ndarray]:
        """Return its label, each array with a first dimension of 1."""
        return label_cells(self.fine, self.basis, self.resolution, settings, point_group=self.symmetry)

    def frequencies(self, wavevectors: np.ndarray, solver: str) -> np.ndarray:
        """Return its bands at wavevectors `(k, 2)`, shape `(k, band)`, in 2πc/a."""
        same = equivalence(wavevectors, self.basis, self.symmetry)
        bands = solver_module(solver).solve_bands(
            self.fine,
            wavevectors[same.solved],
            bands=BANDS,
            polarization=self.polarization,
            basis=self.basis,
            resolution=self.resolution,
        )
        return same.expand(bands).frequency[0].numpy()


def draw(cell: ChosenCell) -> Answer:
    """Return the cell on the solver's grid, its lattice, and the values of the parameters that one may choose."""
    drawn = cell.drawn.parameters
    return {
        "epsilon": block_mean(cell.fine, FINE_SAMPLES_PER_PIXEL)[0].numpy().astype(np.float32),
        "epsilon_mean": cell.fine.mean().item(),
        "lattice": cell.basis,
        "polarization": cell.polarization,
        "parameters": json.dumps({name: float(drawn[name]) for name in cell.unit_cells.ranges}),
    }


def solve(cell: ChosenCell) -> Answer:
    """Return what `draw` does, the label, the bands along the path and on a grid of the zone, and what a file says."""
    settings = LabelSettings(polarization=cell.polarization)
    path = cell.path
    zone = half_grid(ZONE_GRID)
    bands = cell.frequencies(np.concatenate([path.wavevector, zone]), "rbme")
    label = {name: value[0] for name, value in cell.label(settings).items()}
    return draw(cell) | record(cell) | label | {
        "frequency": scaled_frequencies(),
        "wavevector": path.wavevector,
        "band_frequency": bands[: len(path.wavevector)],
        "zone_frequency": bands,
        "position": path.position,
        "corners": json.dumps(path.labels),
        "attributes": json.dumps(provenance(cell, settings)),
    }  # fmt: skip


def record(cell: ChosenCell) -> Answer:
    """Return what a file says of one solved cell: whence it is."""
    return {
        "status": STATUS_SOLVED,
        "error_message": b"",
        "drawn_from": cell.unit_cells.name.encode(),
        "drawn_seed": cell.seed,
        "drawn_index": cell.index,
        "changed": bool(cell.parameters) or any(cell.painted),
    }


def provenance(cell: ChosenCell, settings: LabelSettings) -> dict[str, object]:
    """Return the global attributes of a file of such cells."""
    return {
        "schema_version": SCHEMA_VERSION,
        "family": "explorer",
        "seed": -1,
        "resolution": cell.resolution,
        "fine_samples_per_pixel": FINE_SAMPLES_PER_PIXEL,
        "lattice": cell.basis.reshape(-1).tolist(),
        "package_version": version("photonic_essl"),
        **label_provenance(settings),
    }


def compare(cell: ChosenCell) -> Answer:
    """Return the label and the bands along the path by MPB."""
    label = cell.label(LabelSettings(k_points=REFERENCE_GRID, solver="mpb", polarization=cell.polarization))
    return {"dos": label["dos"][0], "band_frequency": cell.frequencies(cell.path.wavevector, "mpb")}


def catalogue() -> Answer:
    """Return what there is to choose from, as JSON text."""
    families = {}
    for name in FAMILY_NAMES:
        family = unit_cell_family(name, PLANE_GROUPS[0] if name == LEVEL_SET else None)
        families[name] = [
            {"name": each, "long_name": family.parameters[each].long_name, "units": family.parameters[each].units,
             "range": bounds} for each, bounds in family.ranges.items()
        ]  # fmt: skip
    choices = {"families": families, "plane_groups": {LEVEL_SET: PLANE_GROUPS}, "epsilon_range": EPSILON_RANGE}
    return {"catalogue": json.dumps(choices | {"reference_grid": REFERENCE_GRID})}


TASKS: dict[str, Callable[[ChosenCell], Answer]] = {"draw": draw, "solve": solve, "compare": compare}


def answer(task: str, cell: str) -> Answer:
    """Return the answer to a request; what goes wrong becomes one line under `error`."""
    try:
        return catalogue() if task == "catalogue" else TASKS[task](ChosenCell(**json.loads(cell)))
    except Exception as error:
        kind = "" if isinstance(error, (ValueError, RuntimeError, OSError)) else f"{type(error).__name__}: "
        return {"error": kind + " ".join(str(error).split())}


def main() -> None:
    """Answer requests until standard input ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints goes to standard error, never between two answers
    with one_thread(), contextlib.suppress(BrokenPipeError):
        while (request := read_message(sys.stdin.buffer)) is not None:
            write_message(answers, **answer(str(request["task"]), str(request["cell"])))


if __name__ == "__main__":
    main()
