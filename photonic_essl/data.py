"""From a dataset file to tensors."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float32, Float64, Int64

from data_gen.dataset import STATUS_SOLVED, open_dataset
from photonic_essl.known_cells import cell_hashes
from photonic_essl.metrics import FREQUENCIES, PREDICTED, SCORED

MOST_NEGATIVE = 1e-3
"""By how much a label may be below 0, in a gap, by what rounding and smoothing leave there."""

MEAN_TOLERANCE = 1e-3
"""Relative; a cell that was sampled more finely than the file holds it may have a slightly different mean."""


@dataclass(frozen=True)
class Cells:
    """Unit cells in memory.

    Attributes:
        epsilon: relative permittivity.
        attributes: what the file says of itself: `family`, `lattice`, `polarization`, …
        fingerprint: a hash of the cells and labels, the same for equal contents.
    """

    epsilon: Float32[torch.Tensor, "sample 1 x y"]
    attributes: dict[str, Any]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.epsilon)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of points along the two lattice vectors."""
        return self.epsilon.shape[2], self.epsilon.shape[3]

    @property
    def lattice(self) -> Float64[torch.Tensor, "2 2"]:
        """Lattice vectors, one a row, in units of a."""
        return torch.as_tensor(self.attributes["lattice"], dtype=torch.float64).reshape(2, 2)

    @property
    def area(self) -> float:
        """Area of a cell, in a²."""
        return abs(float(torch.linalg.det(self.lattice)))

    @functools.cached_property
    def hashes(self) -> Int64[torch.Tensor, " sample"]:
        """A hash of each cell, which its symmetric copies share (`photonic_essl.known_cells`)."""
        return cell_hashes(self.epsilon, self.lattice)


@dataclass(frozen=True)
class LabelledCells(Cells):
    """Unit cells in memory, and what networks are to predict of them.

    Attributes:
        dos: density of states D/n on the 400 scaled frequencies that networks predict.
    """

    dos: Float32[torch.Tensor, "sample 400"]

    def subset(self, rows: np.ndarray) -> "LabelledCells":
        """Return some of the cells, in the order of their numbers `rows`."""
        return replace(self, epsilon=self.epsilon[rows], dos=self.dos[rows])


@overload
def load_cells(path: str | Path, labelled: Literal[False] = False) -> Cells: ...
@overload
def load_cells(path: str | Path, labelled: Literal[True]) -> LabelledCells: ...
@overload
def load_cells(path: str | Path, labelled: bool) -> Cells: ...
def load_cells(path: str | Path, labelled: bool = False) -> Cells:
    """Read a dataset file into memory.

    Args:
        path: a file that `data-gen generate` wrote.
        labelled: whether densities of states are wanted too; cells whose solution failed are then left out.

    Returns:
        Its cells.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no dataset file, lacks the labels that are asked for, does not say of which polarization
            they are, or has them on other frequencies or incomplete, of too few bands; or if ε is not positive, or its
            mean is not what the file says.
    """
    with open_dataset(path) as dataset:
        if labelled and "dos" not in dataset:
            raise ValueError(f"{path} is unlabelled: it has no `dos`, which is needed here.")
        if labelled and "polarization" not in dataset.attrs:
            raise ValueError(f"{path} has labels, and must say in its attribute `polarization` whether of tm or te.")
        if labelled:
            dataset = dataset.isel(sample=np.flatnonzero(dataset["status"].values == STATUS_SOLVED))
        epsilon = np.asarray(dataset["epsilon"].values, dtype=np.float32)
        dos = _labels(dataset, path) if labelled else None
        stated = np.asarray(dataset["epsilon_mean"].values, dtype=np.float64)
        attributes = dict(dataset.attrs)
    if not len(epsilon):
        raise ValueError(f"{path} holds no cells{' that were solved' if labelled else ''}.")
    if not (np.isfinite(epsilon) & (epsilon > 0)).all():
        raise ValueError(f"{path}: `epsilon` must be finite and positive everywhere, got {epsilon.min()}.")
    mean = epsilon.mean((1, 2), dtype=np.float64)
    if (wrong := ~np.isclose(stated, mean, rtol=MEAN_TOLERANCE)).any():
        raise ValueError(
            f"{path}: `epsilon_mean` must be the mean of `epsilon`, in cell {wrong.argmax()} {mean[wrong][0]:.6g}, got "
            f"{stated[wrong][0]:.6g}."
        )
    digest = hashlib.sha256(epsilon.tobytes())
    if dos is not None:
        digest.update(dos.tobytes())
    parts: dict[str, Any] = {"epsilon": torch.from_numpy(epsilon)[:, None], "attributes": attributes}
    fingerprint = digest.hexdigest()[:16]
    if dos is None:
        return Cells(**parts, fingerprint=fingerprint)
    return LabelledCells(**parts, fingerprint=fingerprint, dos=torch.from_numpy(dos))


def _labels(dataset: xr.Dataset, path: str | Path) -> np.ndarray:
    frequency = dataset["frequency"].values
    if len(frequency) < PREDICTED or not np.allclose(frequency[:PREDICTED], FREQUENCIES[:PREDICTED], atol=1e-6):
        raise ValueError(
            f"{path} has its `dos` on {len(frequency)} frequencies from {frequency[0]:g} to {frequency[-1]:g}; "
            f"networks predict the first {PREDICTED} of {len(FREQUENCIES)} from 0 to {FREQUENCIES[-1]:g}."
        )
    if "covered_frequency" in dataset:
        covered = dataset["covered_frequency"].values
        if short := int((covered < FREQUENCIES[PREDICTED - 1]).sum()):
            raise ValueError(
                f"{path} has labels of too few bands: in {short} cells they cover ωn to {covered.min():.3f} or more, "
                f"networks predict up to {FREQUENCIES[PREDICTED - 1]:.3f}; give `data-gen generate` more --bands."
            )
    dos = np.ascontiguousarray(dataset["dos"].values[:, :PREDICTED], dtype=np.float32)
    if (negative := dos.min(initial=0)) < -MOST_NEGATIVE:
        raise ValueError(f"{path}: `dos` must not be negative, got {negative:g}.")
    if (empty := ~dos[:, SCORED].any(1)).any():
        raise ValueError(f"{path}: `dos` must not be 0 all over 0.24 < ωn < 0.96, as in cell {empty.argmax()}.")
    return dos
