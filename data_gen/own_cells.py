"""Cells of one's own: from an array of ε to a dataset file, with labels, as `generate` makes one of a family."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from data_gen.dataset import open_array
from data_gen.generation import Plan, carry_out, label_settings
from data_gen.lattices import basis_vectors
from data_gen.shards import Chunk
from data_gen.solvers.contract import checked_cells
from data_gen.solvers.smoothing import block_mean
from data_gen.unit_cells import CellSource, Parameter, UnitCell

CELLS_READ_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class OwnCells(CellSource):
    """The cells of an .npy file, by their place in it; there is one seed, 0.

    Attributes:
        file: array of ε, `(x, y)` or `(sample, x, y)`.
        lattice: lattice vectors, one after the other.
    """

    file: Path
    lattice: tuple[float, ...]
    parameters = MappingProxyType[str, Parameter]({})

    def array(self) -> np.ndarray:
        """Return the cells, `(sample, x, y)`, read when asked for.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no such array.
        """
        array = open_array(self.file)
        return array if array.ndim == 3 else array[None]

    def checked(self) -> str:
        """Look at all cells and return the SHA-256 of shape and values; raises `ValueError` where ε is not positive."""
        array = self.array()
        digest = hashlib.sha256(repr(array.shape).encode())
        for start in range(0, len(array), CELLS_READ_AT_ONCE):
            block = np.ascontiguousarray(array[start : start + CELLS_READ_AT_ONCE], dtype=np.float64)
            with np.errstate(over="ignore"):
                stored = block.astype(np.float32)
            good = (np.isfinite(stored) & (stored > 0)).all((1, 2))
            if not good.all():
                raise ValueError(
                    f"{self.file}: ε must be finite and positive everywhere, in single precision, which it is not in "
                    f"cell {start + int(good.argmin())}"
                )
            digest.update(block.tobytes())
        return digest.hexdigest()

    def draw(self, seed: int, index: int, resolution: int) -> UnitCell:
        """Return a cell of the file."""
        return UnitCell(np.array(self.array()[index], dtype=np.float64), {})

    def fine_samples_per_pixel(self, resolution: int) -> int:
        """Return how many samples of the array lie along each pixel."""
        return self.array().shape[1] // resolution


@dataclass(frozen=True, kw_only=True)
class OwnPlan(Plan):
    """What decides the bytes of a dataset file of one's own cells.

    Attributes:
        cells: where they come from.
    """

    cells: OwnCells

    @property
    def unit_cells(self) -> CellSource:
        """Where the cells come from."""
        return self.cells

    @property
    def grid(self) -> tuple[int, int]:
        """Number of pixels along the two lattice vectors."""
        _, x, y = self.cells.array().shape
        return self.resolution, y * self.resolution // x

    def origin(self) -> dict[str, Any]:
        """Return the attributes of the file that say where its cells come from."""
        return {"family": self.family, "source": self.cells.checked()}

    def agrees(self, chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> bool:
        """Return whether the cells of a chunk are still those of the file, which may change while others work."""
        fine = np.array(self.cells.array()[slice(*chunk)], dtype=np.float64)
        pixels = block_mean(torch.from_numpy(fine), self.cells.fine_samples_per_pixel(self.resolution))
        return np.array_equal(pixels.to(torch.float32).numpy(), arrays["epsilon"])

    def words(self) -> list[str]:
        """Return the words of the command that say where the cells come from."""
        lattice = basis_vectors(self.cells.lattice).tolist()
        settings = ["--name", self.family, "--lattice", str(lattice), "--resolution", str(self.resolution)]
        return ["import-cells", self.cells.file.name, *settings]


def import_cells(
    source: Path,
    /,
    *,
    out: Path,
    name: str = "own",
    lattice: list[list[float]] | str = "square",
    resolution: int | None = None,
    solver: Literal["rbme", "mpb"] = "rbme",
    polarization: Literal["tm", "te"] = "tm",
    k_points: int | None = None,
    accuracy: float = 5e-4,
    bands: int | None = None,
    smoothing: float | Literal["published"] = 0.01,
    unlabelled: bool = False,
    keep_bands: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Make a dataset file of your own unit cells and, unless unlabelled, their densities of states.

    Run the same command again after any interruption: it continues, and the file is the same bytes as if nothing had
    happened.

    Args:
        source: array of ε in an .npy file, one cell `(x, y)` or several `(sample, x, y)`, sampled along the lattice
            vectors.
        out: file to write, netCDF-4/HDF5.
        name: what the cells are called in the file, as its `family`.
        lattice: square, hexagonal, rectangular, centred or oblique, or the two lattice vectors, such as
            `"[[1, 0], [0, 1.5]]"`, in units of a, to which frequencies in 2πc/a refer.
        resolution: pixels along the first lattice vector, of which each is the mean of the samples in it; where not
            given, samples are pixels. Nine samples along each pixel make labels of smooth interfaces. What pixels leave
            out is not in `dos_error`: compare with labels of twice as many.
        solver: rbme is fast, mpb the reference.
        polarization: tm (E along z) or te (H along z).
        k_points: n of the n × n grid of wavevectors, 2 or more; where not given, each cell gets what `accuracy` needs.
        accuracy: largest distance of a label from the k → ∞ limit, relative error.
        bands: number of bands; where not given, as many as the label needs (10 with `keep_bands`).
        smoothing: standard deviation of the Gaussian in scaled frequency, or "published" for the published program's.
        unlabelled: write cells only, which takes no settings of labels.
        keep_bands: store frequencies and group velocities too; needs `k_points`.
        workers: worker processes on this machine; one for each core where not given.
        scheduler: address of a running dask scheduler, whose workers then do the work, and read `source` themselves.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such cells, an argument is out of its range, or `out` belongs to a run of other cells
            or settings.
        RuntimeError: if cells failed; the file is there and its `status` says which. Or if no worker processes can be
            started, as in a script that does not keep them from running it themselves.
        OSError: if the file or its shards cannot be written, `source` changes meanwhile, or MPB is asked for and cannot
            be had.

    Warns:
        UserWarning: if lattice vectors of one length are sampled differently, or labels are asked for of cells with one
            sample a pixel.
    """
    if Path(out).absolute() == Path(source).absolute():
        raise ValueError(f"`out` must be another file than `source`, got {out} for both")
    labels = label_settings(
        unlabelled,
        keep_bands,
        k_points=k_points,
        accuracy=accuracy,
        bands=bands,
        smoothing=smoothing,
        solver=solver,
        polarization=polarization,
    )
    cells = OwnCells(file=Path(source).absolute(), lattice=tuple(basis_vectors(lattice).reshape(-1).tolist()))
    array = cells.array()
    resolution = array.shape[1] if resolution is None else resolution
    checked_cells(np.array(array[:1], dtype=np.float64), bands=1, polarization=polarization, resolution=resolution)
    plan = OwnPlan(name, len(array), 0, resolution, keep_bands, labels, cells=cells)
    _warn_of_what_is_odd(plan)
    carry_out(plan, out, workers, scheduler)


def _warn_of_what_is_odd(plan: OwnPlan) -> None:
    """Warn of axes that are hardly those of the lattice, and of labels of cells whose interfaces are jagged."""
    samples, lengths = plan.cells.array().shape[1:], np.linalg.norm(basis_vectors(plan.cells.lattice), axis=1)
    if samples[0] != samples[1] and np.isclose(lengths[0], lengths[1], rtol=1e-3):
        warnings.warn(
            f"lattice vectors of one length have {samples[0]} and {samples[1]} samples along them: are the axes of the "
            "array (sample, x, y)?",
            stacklevel=3,
        )
    if plan.labels is not None and plan.cells.fine_samples_per_pixel(plan.resolution) == 1:
        warnings.warn(
            "the array has one sample a pixel: labels are those of crystals whose interfaces are as jagged as that. Of "
            "several samples a pixel, such as 9 by 9, `resolution` makes pixels that stand for smooth interfaces.",
            stacklevel=3,
        )
