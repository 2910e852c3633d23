"""The published pipeline's HDF5 files, read into dataset files and written from them.

Their layout (SIB-CL and `rdangovs/essl`): one HDF5 dataset for each quantity of each cell, cells numbered from 1, some
numbers perhaps missing. `unitcell/mpbepsimage/<i>` (x, y), `unitcell/epsavg/<i>`, `unitcell/epsin/<i>`,
`unitcell/epsout/<i>`, `unitcell/filling/<i>`, `unitcell/uclevel/<i>`, `unitcell/uccoefs/<i>`, and where labelled
`mpbcal/DOS/<i>` (500), D over the scaled frequency, not yet divided by n.

Their bands are not read: the files do not say in which order their wavevectors come.
"""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from data_gen.dataset import (
    SAMPLES_PER_BLOCK,
    SCHEMA_VERSION,
    STATUS_SOLVED,
    VARIABLES,
    Variable,
    new_hdf5_file,
    open_dataset,
    write_dataset,
)
from data_gen.dos import scaled_frequencies
from data_gen.unit_cells import MATERIALS

CONSISTENT = 0.15
"""Largest difference between statements of the mean ε, in units of the contrast: sampled boundaries differ by half."""

LARGEST_GRID = 1024
"""Points along a side of an image, at most."""

MOST_STATES = 10.5
"""Below the largest scaled frequency: each of ten bands holds one, and smoothing moves some there from above."""

# Names of theirs and of ours for one number a cell.
_SCALARS = {"epsin": "epsilon_inside", "epsout": "epsilon_outside", "filling": "filling", "uclevel": "level"}
_TRAINER_NAMES = {
    ("blob", True): "sq-blob-v3-tm.h5",
    ("blob", False): "sq-blob-ul-15k-tm.h5",
    ("gpm", True): "mf1-sg3-tm.h5",
    ("gpm", False): "mf1-sg3-25k-ul-s99-tm.h5",
}


def import_legacy(src: Path, /, *, out: Path) -> None:
    """Make a dataset file from a file of the published pipeline, labelled or not.

    The layout has no checksums. What can be checked is: shapes and types, that numbers are finite, and what the file
    says twice. Each image lies between `epsin` and `epsout`; its mean is `epsavg`, and so is the mean of the two
    weighted with `filling` (of the one or of the other: there are files of both kinds), to within what sampling the
    boundary costs; a density of states is nowhere negative and holds no more states than ten bands. A changed number
    within these bounds cannot be told from a right one.

    Args:
        src: HDF5 file of the published pipeline.
        out: dataset file to write.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole file of the published layout, or `out` is there already.
    """
    src, out = Path(src), Path(out)
    if not src.is_file():
        raise FileNotFoundError(f"no file at {src}")
    if out.exists():
        raise ValueError(f"{out} is there already; remove it first")
    try:
        file = h5py.File(src)
    except OSError as error:
        raise ValueError(f"{src} cannot be read as HDF5: {error}") from None
    with file:
        with _reading(src, "the list of its cells"):
            numbers, shape = _cells(src, file)
            labelled = isinstance(file.get("mpbcal/DOS"), h5py.Group) and len(file["mpbcal/DOS"]) > 0
            scalars = {
                theirs: ours
                for theirs, ours in _SCALARS.items()
                if any(f"unitcell/{theirs}/{number}" in file for number in numbers)
            }
        variables = {name: VARIABLES[name] for name in ("epsilon", "epsilon_mean", "status", "error_message")}
        if labelled:
            variables["dos"] = VARIABLES["dos"]
        for ours in scalars.values():
            meaning = MATERIALS[ours].long_name if ours in MATERIALS else "level of the Fourier sum at the boundary"
            variables[ours] = Variable(("sample",), "f8", "1", meaning)
        variables["legacy_number"] = Variable(("sample",), "i8", "1", "number of the cell in the published file")
        write_dataset(
            out,
            _blocks(src, file, numbers, shape, labelled, scalars),
            samples=len(numbers),
            variables=variables,
            fixed={"frequency": scaled_frequencies()} if labelled else {},
            attributes=_attributes(src, shape, numbers),
        )
    print(f"wrote {out}: {len(numbers)} {'labelled' if labelled else 'unlabelled'} cells of {src.name}")


def export_legacy(file: Path, /, *, out: Path) -> None:
    """Write the solved cells of a dataset file in the layout that the published trainer opens.

    Args:
        file: a dataset file of the square lattice.
        out: HDF5 file to write, or an existing folder: the file then gets the name that the trainer opens for its
            family, labelled or not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a dataset file, its lattice is not square, its labels are not for TM or on other
            frequencies, `out` is a folder and the trainer knows no such family, or the file to write is there already.
    """
    out = Path(out)
    with open_dataset(file) as dataset:
        if not np.allclose(dataset.attrs["lattice"], [1, 0, 0, 1]):
            raise ValueError(f"the published layout is for the square lattice, got {dataset.attrs['lattice']}")
        labelled = "dos" in dataset
        if labelled and dataset.attrs.get("polarization", "tm") != "tm":
            raise ValueError(f"the published layout holds labels for TM, these are for {dataset.attrs['polarization']}")
        if labelled and not np.array_equal(dataset["frequency"].values, scaled_frequencies()):
            raise ValueError("the published layout needs labels on its 500 scaled frequencies, 0 … 1.2")
        if out.is_dir():
            key = (dataset.attrs["family"], labelled)
            if key not in _TRAINER_NAMES:
                raise ValueError(f"the published trainer knows no family {key[0]}; give `out` a file name")
            out = out / _TRAINER_NAMES[key]
        if out.exists():
            raise ValueError(f"{out} is there already; remove it first")
        solved = np.flatnonzero(dataset["status"].values == STATUS_SOLVED)
        with new_hdf5_file(out) as new, h5py.File(new, "w") as target:
            target["universal/rvecs"] = np.eye(2)
            number = 0
            for start in range(0, len(solved), SAMPLES_PER_BLOCK):
                block = dataset.isel(sample=solved[start : start + SAMPLES_PER_BLOCK]).load()
                for index in range(block.sizes["sample"]):
                    number += 1
                    _write_cell(target, number, block.isel(sample=index), labelled)
    print(f"wrote {out}: {len(solved)} cells")


def _write_cell(target: h5py.File, number: int, cell: xr.Dataset, labelled: bool) -> None:
    mean = float(cell["epsilon_mean"])
    target[f"unitcell/mpbepsimage/{number}"] = cell["epsilon"].values.astype(np.float64)
    target[f"unitcell/epsavg/{number}"] = mean
    for theirs, ours in _SCALARS.items():
        if ours in cell:
            target[f"unitcell/{theirs}/{number}"] = float(cell[ours])
    if "coefficient_real" in cell:
        coefficients = cell["coefficient_real"].values + 1j * cell["coefficient_imaginary"].values
        target[f"unitcell/uccoefs/{number}"] = coefficients.reshape(-1)
    if labelled:
        target[f"mpbcal/DOS/{number}"] = cell["dos"].values.astype(np.float64) * np.sqrt(mean)


@contextlib.contextmanager
def _reading(src: Path, what: str) -> Iterator[None]:
    """Say of which file and of what in it h5py complains, whose exceptions are of many kinds and name neither."""
    try:
        yield
    except (KeyError, OSError, RuntimeError, TypeError, MemoryError) as error:
        raise ValueError(f"{src}: {what} is missing or damaged ({error})") from None


def _cells(src: Path, file: h5py.File) -> tuple[list[int], tuple[int, int]]:
    """Return the numbers of the cells, ascending, and the shape of their images."""
    images = file.get("unitcell/mpbepsimage")
    if not isinstance(images, h5py.Group) or not len(images):
        raise ValueError(f"{src} is not of the published layout: it has no cells in unitcell/mpbepsimage")
    odd = [name for name in images if not (name.isascii() and name.isdigit() and len(name) < 10)]
    if odd:
        raise ValueError(f"{src} is not of the published layout: unitcell/mpbepsimage holds {odd[0]!r}")
    numbers = sorted(int(name) for name in images)
    shape = tuple(getattr(images[str(numbers[0])], "shape", ()))
    if len(shape) != 2 or not 1 <= min(shape) <= max(shape) <= LARGEST_GRID:
        raise ValueError(
            f"{src} is not of the published layout: its cells must be images (x, y) of at most {LARGEST_GRID} points "
            f"a side, got {shape}"
        )
    return numbers, (shape[0], shape[1])


def _attributes(src: Path, shape: tuple[int, int], numbers: list[int]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "family": "blob" if "blob" in src.name else "gpm" if "sg3" in src.name else "legacy",
        "samples": len(numbers),
        "seed": -1,
        "resolution": shape[0],
        "lattice": [1.0, 0.0, 0.0, 1.0],
        "package_version": version("photonic_essl"),
        "imported_from": src.name,
        "polarization": "tm",
        "smoothing": "published",
    }


def _blocks(
    src: Path,
    file: h5py.File,
    numbers: list[int],
    shape: tuple[int, int],
    labelled: bool,
    scalars: dict[str, str],
) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(numbers), SAMPLES_PER_BLOCK):
        block = numbers[start : start + SAMPLES_PER_BLOCK]

        def read(group: str, shape: tuple[int, ...] = (), block: list[int] = block) -> np.ndarray:
            return np.stack([_read(src, file, f"{group}/{number}", shape) for number in block])

        arrays = {
            "epsilon": read("unitcell/mpbepsimage", shape),
            "epsilon_mean": read("unitcell/epsavg"),
            "status": np.full(len(block), STATUS_SOLVED, dtype=np.int8),
            "error_message": np.full(len(block), b"", dtype="S200"),
            "legacy_number": np.array(block),
        }
        if not (arrays["epsilon"] > 0).all() or not (arrays["epsilon_mean"] > 0).all():
            raise ValueError(f"{src} is not of the published layout: its images and their means must be positive")
        arrays |= {ours: read(f"unitcell/{theirs}") for theirs, ours in scalars.items()}
        if labelled:
            density = read("mpbcal/DOS", (len(scaled_frequencies()),))
            arrays["dos"] = density / np.sqrt(arrays["epsilon_mean"])[:, None]
        _check_consistent(src, arrays)
        yield arrays


def _check_consistent(src: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse cells that contradict themselves, naming the first."""
    for rule, kept in _rules(arrays):
        if not kept.all():
            number = arrays["legacy_number"][int(np.argmin(kept))]
            raise ValueError(f"{src} is damaged: of cell {number} it does not hold that {rule}")


def _rules(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what has to hold of each cell, and for which it does."""
    image, mean = arrays["epsilon"], arrays["epsilon_mean"]
    lowest, highest = image.min((1, 2)), image.max((1, 2))
    two = [arrays[name] for name in ("epsilon_inside", "epsilon_outside") if name in arrays]
    if len(two) == 2:
        bounds, rounding = (np.minimum(*two), np.maximum(*two)), 1e-5 * highest
        between = (lowest >= bounds[0] - rounding) & (highest <= bounds[1] + rounding)
        yield "its image lies between epsin and epsout", between
        lowest, highest = bounds
    margin = CONSISTENT * (highest - lowest) + 1e-5 * highest
    yield "epsavg is the mean of its image", np.abs(mean - image.mean((1, 2))) <= margin
    if len(two) == 2 and "filling" in arrays:
        part, (inside, outside) = arrays["filling"], two
        yield "filling is a fraction", (part >= 0) & (part <= 1)
        mixtures = np.stack([part * inside + (1 - part) * outside, part * outside + (1 - part) * inside])
        yield "epsavg is the mean of epsin and epsout", (np.abs(mixtures - mean) <= margin).any(0)
    if "dos" in arrays:
        dos = arrays["dos"]
        yield "its DOS is not negative", (dos >= -1e-3 * np.abs(dos).max(1, keepdims=True)).all(1)
        states = np.trapezoid(dos, scaled_frequencies(), axis=1)
        yield "its DOS holds the states of ten bands at most", states <= MOST_STATES


def _read(src: Path, file: h5py.File, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return one array of finite numbers; arrays of one element count as numbers."""
    with _reading(src, name):
        entry = file[name]
        if not isinstance(entry, h5py.Dataset) or entry.dtype.kind not in "fiu" or entry.size != np.prod(shape):
            raise ValueError(f"{src}: {name} must hold numbers of shape {shape}")
        value = entry[()].reshape(shape).astype(np.float64)
    if not np.isfinite(value).all():
        raise ValueError(f"{src}: {name} holds numbers that are not finite")
    return value
