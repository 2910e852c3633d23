"""The dataset file: its schema, how it is written, opened and validated.

One netCDF-4/HDF5 file, which plain h5py and plain xarray read. Each `Variable` below is one entry of its dictionary.
"""

import contextlib
import fcntl
import io
import itertools
import math
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5netcdf
import h5py
import numpy as np
import xarray as xr

from data_gen.lattices import basis_vectors
from data_gen.seal import check_seal, seal

if TYPE_CHECKING:
    import dask.array

SCHEMA_VERSION = 1
SAMPLES_PER_BLOCK = 256
STATUS_SOLVED, STATUS_FAILED = 0, 1
REQUIRED = ("epsilon", "epsilon_mean", "status")
SEALED = "sealed"  # group that says so: what plain xarray reads and writes again is another file, and has none
MOST_COMPRESSED = 1032  # deflate makes nothing smaller by more
PROVENANCE = ("family", "seed", "resolution", "lattice", "schema_version", "package_version")


@dataclass(frozen=True)
class Variable:
    """One variable of the file: dimensions, dtype, units and meaning; `compressed` where that pays."""

    dimensions: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    compressed: bool = False


VARIABLES: dict[str, Variable] = {
    "epsilon": Variable(
        ("sample", "x", "y"), "f4", "1", "relative permittivity, mean over each pixel", compressed=True
    ),
    "epsilon_mean": Variable(("sample",), "f8", "1", "mean relative permittivity, n²"),
    "status": Variable(("sample",), "i1", "1", "0: solved, 1: failed"),
    "error_message": Variable(("sample",), "S", "1", "what went wrong, where status is 1"),
    "dos": Variable(("sample", "frequency"), "f4", "a/2πc", "density of states per unit cell, divided by n"),
    "dos_error": Variable(("sample",), "f4", "1", "estimated relative distance of dos from the k → ∞ limit"),
    "covered_frequency": Variable(
        ("sample",), "f4", "2πc/a", "scaled frequency up to which the computed bands cover dos"
    ),
    "band_frequency": Variable(("sample", "k", "band"), "f8", "2πc/a", "band frequency"),
    "group_velocity": Variable(("sample", "k", "band", "axis"), "f8", "c", "group velocity, Cartesian"),
    "frequency": Variable(("frequency",), "f8", "2πc/a", "scaled frequency ωn"),
    "wavevector": Variable(("k", "axis"), "f8", "reciprocal vectors", "wavevector in the reciprocal basis"),
}


def write_dataset(
    path: Path,
    blocks: Iterable[Mapping[str, np.ndarray]],
    *,
    samples: int,
    variables: Mapping[str, Variable],
    fixed: Mapping[str, np.ndarray],
    attributes: Mapping[str, object],
) -> None:
    """Write a dataset file from consecutive blocks of samples, in one pass, and put it in place whole or not at all.

    The same arguments give the same bytes: nothing of the machine or the moment goes in.

    Args:
        path: file to write; replaced only when the new one is complete and on disk.
        blocks: for each block of samples, in order, an array for each per-sample variable.
        samples: number of samples in all.
        variables: per-sample variables by name.
        fixed: variables without a sample dimension (`frequency`, `wavevector`), by name.
        attributes: global attributes; numbers, texts or lists of numbers.

    Raises:
        OSError: if the file cannot be written.
    """
    with new_hdf5_file(path) as target:
        with h5netcdf.File(target, "w") as file:
            file.dimensions["sample"] = samples
            for name, value in fixed.items():
                _create(file, name, VARIABLES[name], value.shape)[...] = value
            _fill(file, blocks, samples, variables)
            for name, attribute in attributes.items():
                file.attrs[name] = attribute
            file.create_group(SEALED)
        if target.error is None:
            seal(target)


def _fill(
    file: h5netcdf.File, blocks: Iterable[Mapping[str, np.ndarray]], samples: int, variables: Mapping[str, Variable]
) -> None:
    targets, start = {}, 0
    for block in _of_equal_size(blocks):
        count = len(block["epsilon"])
        for name, variable in variables.items():
            if name not in targets:
                targets[name] = _create(file, name, variable, (samples, *block[name].shape[1:]))
            targets[name][start : start + count] = block[name].astype(_stored_dtype(variable))
        start += count
    if start != samples:
        raise ValueError(f"the blocks hold {start} samples of {samples}")


def open_array(path: str | Path) -> np.ndarray:
    """Return the cells of an .npy file, read where they are indexed.

    Args:
        path: file of ε, real, one cell `(x, y)` or several `(sample, x, y)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, EOFError, OSError):  # numpy's own words advise to unpickle
        raise ValueError(f"{path} is no .npy file of numbers, or damaged.") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        held = getattr(array, "dtype", "several arrays")
        raise ValueError(f"{path} is no .npy file of real numbers: it holds {held}.")
    if array.ndim not in (2, 3):
        raise ValueError(f"{path} must hold one cell (x, y) or several (sample, x, y), got shape {array.shape}.")
    if not array.size:
        raise ValueError(f"{path} holds no cells.")
    return array


def append_to_dataset(
    path: Path,
    block: Mapping[str, np.ndarray],
    *,
    variables: Mapping[str, Variable],
    fixed: Mapping[str, np.ndarray],
    attributes: Mapping[str, object],
) -> int:
    """Put samples at the end of a dataset file, or begin one; the file is replaced whole or not at all.

    Args:
        path: the file; what it holds already has to be of the same kind.
        block: as one of `write_dataset`.
        variables: as for `write_dataset`.
        fixed: as for `write_dataset`.
        attributes: as for `write_dataset`.

    Returns:
        How many samples the file holds now.

    Raises:
        ValueError: if the file is no dataset file, or has other variables or attributes.
        OSError: if the file cannot be written.
    """
    with _locked(path.parent), contextlib.ExitStack() as stack:
        blocks: Iterable[Mapping[str, np.ndarray]] = [block]
        samples = len(block["epsilon"])
        if path.exists():
            held = stack.enter_context(open_dataset(path))
            _check_same_kind(path, held, variables, fixed, attributes)
            blocks = itertools.chain(_blocks_of(held, variables), blocks)
            samples += held.sizes["sample"]
        write_dataset(path, blocks, samples=samples, variables=variables, fixed=fixed, attributes=attributes)
    return samples


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes that append to files of this folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _blocks_of(dataset: xr.Dataset, variables: Mapping[str, Variable]) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, dataset.sizes["sample"], SAMPLES_PER_BLOCK):
        block = dataset.isel(sample=slice(start, start + SAMPLES_PER_BLOCK))
        yield {name: block[name].values for name in variables}


def _check_same_kind(
    path: Path,
    dataset: xr.Dataset,
    variables: Mapping[str, Variable],
    fixed: Mapping[str, np.ndarray],
    attributes: Mapping[str, object],
) -> None:
    if different := {str(name) for name in dataset.variables} ^ {*variables, *fixed}:
        raise ValueError(f"{path} is a file of another kind: it differs in having {', '.join(sorted(different))}")
    for name, value in attributes.items():
        found = np.asarray(dataset.attrs.get(name)).tolist()
        if found != value:
            raise ValueError(
                f"{path} holds cells with {name} {found!r}, and this one has {value!r}; choose another file"
            )
    for name, value in fixed.items():
        if not np.array_equal(dataset[name].values, value):
            raise ValueError(f"{path} holds cells with another `{name}`; choose another file")


def _of_equal_size(blocks: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Join blocks to `SAMPLES_PER_BLOCK` samples, the chunk of the file: each chunk is compressed and written once."""
    held: list[dict[str, np.ndarray]] = []
    for block in blocks:
        held.append(dict(block))
        while sum(len(part["epsilon"]) for part in held) >= SAMPLES_PER_BLOCK:
            joined = _joined(held)
            yield {name: value[:SAMPLES_PER_BLOCK] for name, value in joined.items()}
            held = [{name: value[SAMPLES_PER_BLOCK:] for name, value in joined.items()}]
    joined = _joined(held)
    if len(joined["epsilon"]):
        yield joined


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def partial_of(path: Path) -> Path:
    """Return where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def file_to_write(path: str | Path, *endings: str) -> Path:
    """Return the path of a file to write, once it is sure that it is one of its kind, and not a dataset or a model.

    Raises:
        FileNotFoundError: if there is no folder to write it to.
        ValueError: if its name has none of these endings, in capitals or not.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to.")
    if path.suffix.lower() not in endings:
        kinds = endings[0] if len(endings) == 1 else f"one of {', '.join(endings)}"
        raise ValueError(f"`out` must end in {kinds}, got {path}.")
    return path


@contextlib.contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to disk and rename it, on failure remove it.

    The name is always the same, so that what a killed process has left is overwritten by the next.
    """
    partial = partial_of(path)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        if error.errno and error.filename in (None, partial, str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


class _PatientFile(io.FileIO):
    """A new file that HDF5 can write to whatever happens: the first error is kept in `error`, and nothing comes after.

    HDF5 does not survive a write that fails, as on a full disk: the interpreter crashes when the file is closed.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while self.error is None and len(left):  # what finds little room is written in part
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0


@contextlib.contextmanager
def new_hdf5_file(path: Path) -> Iterator[_PatientFile]:
    """Give a file for HDF5 to write, which is put in place of `path` as by `replaced_when_complete`.

    Raises:
        OSError: if something could not be written.
    """
    with replaced_when_complete(path) as partial, _PatientFile(partial) as file:
        yield file
        if file.error is not None:
            raise file.error


def open_dataset(path: str | Path) -> xr.Dataset:
    """Open a dataset file lazily (dask-backed) and validate it.

    Args:
        path: a file made by `generate` or `import_legacy`.

    Returns:
        The dataset. Values are read when they are asked for; that raises `ValueError` where they are damaged, or where
        a sample that counts as solved holds numbers that are not finite.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole dataset file of a schema version that this package reads.
    """
    path = Path(path)
    if not path.is_file():
        unfinished = path.with_name(f"{path.name}.part").is_dir()
        hint = "; it is unfinished, and goes on by the command that makes it" if unfinished else ""
        raise FileNotFoundError(f"no dataset file at {path}{hint}")
    if path.suffix == ".npy":
        raise ValueError(f"{path} is an array, not a dataset file; `data-gen import-cells` makes one of it")
    sealed = check_seal(path)
    try:
        with h5py.File(path) as file:  # h5netcdf prints a traceback where this fails
            cut = SEALED in file and not sealed
        dataset = xr.open_dataset(path, engine="h5netcdf", phony_dims="sort", cache=False)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a dataset file (netCDF-4): it is damaged or of another kind ({_one_line(error)})"
        ) from None
    try:
        if cut:
            raise ValueError(
                f"{path} was cut or changed in place after it was written: its seal is missing (what was changed on "
                "purpose is read when xarray has written it to another file)"
            )
        _validate(path, dataset)
        _check_stored(path, dataset)
        solved = _solved(path, dataset)
    except Exception as error:
        dataset.close()
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{path} is damaged ({_one_line(error)})") from None
    dataset.update(
        {
            name: variable.copy(data=cast(Any, _Checked(path, str(name), variable, solved).lazily()))
            for name, variable in dataset.variables.items()
            if name not in dataset.indexes
        }
    )
    for name in ("lattice", "polarization"):  # cells that are taken out of the file still say what they are
        if name in dataset.attrs:
            dataset["epsilon"].attrs[name] = dataset.attrs[name]
    return dataset


def _validate(path: Path, dataset: xr.Dataset) -> None:
    version = dataset.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} must have the attribute schema_version {SCHEMA_VERSION}, got {_shown(version)}")
    missing = [name for name in REQUIRED if name not in dataset] + [
        name for name in PROVENANCE if name not in dataset.attrs
    ]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    for name, variable in VARIABLES.items():
        if name in dataset and dataset[name].dims != variable.dimensions:
            raise ValueError(f"{path}: `{name}` must have dimensions {variable.dimensions}, got {dataset[name].dims}")
        if name in dataset and variable.dtype.startswith("f") and dataset[name].dtype.kind not in "fiu":
            raise ValueError(f"{path}: `{name}` must hold real numbers, got {dataset[name].dtype}")
    lattice = np.asarray(dataset.attrs["lattice"])
    if lattice.shape != (4,) or lattice.dtype.kind not in "fiu":
        raise ValueError(f"{path}: `lattice` must be four numbers, one vector after the other, got {lattice}")
    try:
        basis_vectors(lattice)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (polarization := dataset.attrs.get("polarization", "tm")) not in ("tm", "te"):
        raise ValueError(f"{path}: `polarization` must be tm or te, got {polarization!r}")
    if "dos" in dataset:
        if "frequency" not in dataset.coords:
            raise ValueError(f"{path} has `dos`, but lacks the coordinate `frequency`")
        frequency = dataset["frequency"].values
        if not np.isfinite(frequency).all() or (np.diff(frequency) <= 0).any():
            raise ValueError(f"{path}: `frequency` must be finite and ascending")


def _shown(value: object) -> str:
    """Return a value as Python writes it, numpy's numbers as numbers."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _check_stored(path: Path, dataset: xr.Dataset) -> None:
    """Refuse variables of which parts are missing, which HDF5 would fill with zeros, or are to be read unchecked.

    Nothing larger than what can be compressed into the file is left to be read then, whatever size the file claims.
    """
    with h5py.File(path) as file:
        for name in dataset.variables:
            entry = file[name]
            masks: list[int] = []  # not 0 where a chunk is to be read without its checksum
            if entry.chunks:
                entry.id.chunk_iter(lambda chunk, masks=masks: masks.append(chunk.filter_mask))
                whole = len(masks) == math.prod(-(-size // chunk) for size, chunk in zip(entry.shape, entry.chunks))
            else:
                stored = entry.id.get_storage_size()
                # Of texts of any length, what is stored here is where they lie.
                whole = stored > 0 if entry.dtype.kind == "O" else stored == entry.nbytes
            if not whole or any(masks) or entry.nbytes > MOST_COMPRESSED * path.stat().st_size:
                raise ValueError(f"{path} is damaged: `{name}` is not whole")


def _solved(path: Path, dataset: xr.Dataset) -> np.ndarray:
    """Return which samples count as solved."""
    status = _Checked(path, "status", dataset["status"].variable)[...]
    if not np.isin(status, (STATUS_SOLVED, STATUS_FAILED)).all():
        raise ValueError(f"{path}: `status` must be {STATUS_SOLVED} or {STATUS_FAILED} everywhere")
    return status == STATUS_SOLVED


class _Checked:
    """Values of a variable, read from the file where they are indexed, and refused where they are damaged.

    Args:
        path: the file.
        name: of the variable.
        variable: as xarray reads it.
        solved: which samples count as solved, and have to be finite; None where that is not known yet.
    """

    def __init__(self, path: Path, name: str, variable: xr.Variable, solved: np.ndarray | None = None):
        self.path, self.name, self.variable, self.solved = path, name, variable, solved
        self.shape, self.dtype, self.ndim = variable.shape, variable.dtype, variable.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            values = self.variable[key].values
        except Exception as error:  # what HDF5 raises names neither the file nor the variable
            raise ValueError(f"{self.path} is damaged: `{self.name}` cannot be read ({_one_line(error)})") from None
        checked = values.dtype.kind == "f" and self.variable.dims[:1] == ("sample",)
        if checked and self.solved is not None:
            samples = np.atleast_1d(np.arange(len(self.solved))[key[0]])
            finite = np.isfinite(values).reshape(len(samples), -1 if values.size else 0).all(1)
            if len(wrong := samples[self.solved[samples] & ~finite]):
                raise ValueError(
                    f"{self.path}: `{self.name}` holds numbers that are not finite in sample {wrong[0]}, which counts "
                    f"as solved (`status` {STATUS_SOLVED})"
                )
        return values

    def lazily(self) -> "dask.array.Array":
        """Return the values as dask reads them, a block of samples at a time."""
        import dask.array  # what writes files has no need of it

        blocks = tuple(SAMPLES_PER_BLOCK if dimension == "sample" else -1 for dimension in self.variable.dims)
        empty = np.empty((0,) * self.ndim, self.dtype)
        return dask.array.from_array(self, chunks=blocks, name=False, meta=empty)  # type: ignore[no-untyped-call]


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error) or type(error).__name__)[:200]


def _stored_dtype(variable: Variable) -> np.dtype:
    return np.dtype("S200" if variable.dtype == "S" else f"<{variable.dtype}")


def _create(file: h5netcdf.File, name: str, variable: Variable, shape: tuple[int, ...]) -> h5netcdf.Variable:
    for dimension, size in zip(variable.dimensions, shape):
        if dimension not in file.dimensions:
            file.dimensions[dimension] = size
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if variable.compressed else {}
    first = min(SAMPLES_PER_BLOCK, shape[0]) if variable.dimensions[0] == "sample" else shape[0]
    options |= {"chunks": (first, *shape[1:]), "fletcher32": True}  # a chunk that was damaged is not read
    target = file.create_variable(name, variable.dimensions, _stored_dtype(variable), **options)
    target.attrs["units"] = variable.units
    target.attrs["long_name"] = variable.long_name
    return target


def package_commit() -> str | None:
    """Return the commit of the package's own repository, None where it was installed without one.

    Returns:
        40 hexadecimal digits, with `-dirty` after them where files differ from the commit's.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # It may be installed in a folder of somebody else's repository, which has no such file.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, timeout=10, check=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
