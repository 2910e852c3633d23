"""The published pipeline's HDF5 files, read into dataset files and written from them.

Their layout (SIB-CL and `rdangovs/essl`): one HDF5 dataset for each quantity of each cell, cells numbered from 1, some
numbers perhaps missing. `unitcell/mpbepsimage/<i>` (x, y), `unitcell/epsavg/<i>`, `unitcell/epsin/<i>`,
`unitcell/epsout/<i>`, `unitcell/filling/<i>`, `unitcell/uclevel/<i>`, `unitcell/uccoefs/<i>`, and where labelled
`mpbcal/DOS/<i>` (500), D over the scaled frequency, not yet divided by n.

Their bands are not read: the files do not say in which order their wavevectors come.
"""

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
        numbers = _numbers(src, file)
        labelled = isinstance(file.get("mpbcal/DOS"), h5py.Group) and len(file["mpbcal/DOS"]) > 0
        scalars = {theirs: ours for theirs, ours in _SCALARS.items() if f"unitcell/{theirs}/{numbers[0]}" in file}
        variables = {name: VARIABLES[name] for name in ("epsilon", "epsilon_mean", "status", "error_message")}
        if labelled:
            variables["dos"] = VARIABLES["dos"]
        for ours in scalars.values():
            meaning = MATERIALS[ours].long_name if ours in MATERIALS else "level of the Fourier sum at the boundary"
            variables[ours] = Variable(("sample",), "f8", "1", meaning)
        variables["legacy_number"] = Variable(("sample",), "i8", "1", "number of the cell in the published file")
        write_dataset(
            out,
            _blocks(src, file, numbers, labelled, scalars),
            samples=len(numbers),
            variables=variables,
            fixed={"frequency": scaled_frequencies()} if labelled else {},
            attributes=_attributes(src, file, numbers),
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
        ValueError: if it is not a dataset file, its lattice is not square, its labels are on other frequencies, or
            `out` is a folder and the trainer knows no such family.
    """
    out = Path(out)
    with open_dataset(file) as dataset:
        if not np.allclose(dataset.attrs["lattice"], [1, 0, 0, 1]):
            raise ValueError(f"the published layout is for the square lattice, got {dataset.attrs['lattice']}")
        labelled = "dos" in dataset
        if labelled and not np.array_equal(dataset["frequency"].values, scaled_frequencies()):
            raise ValueError("the published layout needs labels on its 500 scaled frequencies, 0 … 1.2")
        if out.is_dir():
            key = (dataset.attrs["family"], labelled)
            if key not in _TRAINER_NAMES:
                raise ValueError(f"the published trainer knows no family {key[0]}; give `out` a file name")
            out = out / _TRAINER_NAMES[key]
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


def _numbers(src: Path, file: h5py.File) -> list[int]:
    """Return the numbers of the cells, ascending."""
    images = file.get("unitcell/mpbepsimage")
    if not isinstance(images, h5py.Group) or not len(images):
        raise ValueError(f"{src} is not of the published layout: it has no cells in unitcell/mpbepsimage")
    odd = [name for name in images if not name.isdigit()]
    if odd:
        raise ValueError(f"{src} is not of the published layout: unitcell/mpbepsimage holds {odd[0]!r}")
    return sorted(int(name) for name in images)


def _attributes(src: Path, file: h5py.File, numbers: list[int]) -> dict[str, Any]:
    shape = file[f"unitcell/mpbepsimage/{numbers[0]}"].shape
    return {
        "schema_version": SCHEMA_VERSION,
        "family": "blob" if "blob" in src.name else "gpm" if "sg3" in src.name else "legacy",
        "samples": len(numbers),
        "seed": -1,
        "resolution": int(shape[0]),
        "lattice": [1.0, 0.0, 0.0, 1.0],
        "package_version": version("photonic_essl"),
        "imported_from": src.name,
        "polarization": "tm",
        "smoothing": "published",
    }


def _blocks(
    src: Path, file: h5py.File, numbers: list[int], labelled: bool, scalars: dict[str, str]
) -> Iterator[dict[str, np.ndarray]]:
    shape = file[f"unitcell/mpbepsimage/{numbers[0]}"].shape
    for start in range(0, len(numbers), SAMPLES_PER_BLOCK):
        block = numbers[start : start + SAMPLES_PER_BLOCK]
        epsilon = np.stack([_read(src, file, f"unitcell/mpbepsimage/{number}", shape) for number in block])
        if epsilon.ndim != 3 or (epsilon <= 0).any():
            raise ValueError(f"{src} is not of the published layout: its cells must be positive images (x, y)")
        mean = np.array([_read(src, file, f"unitcell/epsavg/{number}", ()) for number in block])
        arrays = {
            "epsilon": epsilon,
            "epsilon_mean": mean,
            "status": np.full(len(block), STATUS_SOLVED, dtype=np.int8),
            "error_message": np.full(len(block), b"", dtype="S200"),
            "legacy_number": np.array(block),
        }
        if labelled:
            density = np.stack([_read(src, file, f"mpbcal/DOS/{number}", (500,)) for number in block])
            arrays["dos"] = density / np.sqrt(mean)[:, None]
        for theirs, ours in scalars.items():
            arrays[ours] = np.array([_read(src, file, f"unitcell/{theirs}/{number}", ()) for number in block])
        yield arrays


def _read(src: Path, file: h5py.File, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return one array of finite numbers; arrays of one element count as numbers."""
    try:
        entry = file[name]
        if not isinstance(entry, h5py.Dataset) or entry.dtype.kind not in "fiu" or entry.size != np.prod(shape):
            raise ValueError(f"{src}: {name} must hold numbers of shape {shape}")
        value = entry[()].reshape(shape).astype(np.float64)
    except (KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"{src}: {name} is missing or damaged ({error})") from None
    if not np.isfinite(value).all():
        raise ValueError(f"{src}: {name} holds numbers that are not finite")
    return value
