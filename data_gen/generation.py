"""The run that makes a dataset file: plan → cells and labels on workers → shards → one file.

A run can be killed at any moment and started again. Its plan is cut into chunks of consecutive cells; each finished
chunk lands as a shard in `FILE.part/`, whole and checksummed or not at all; the file is put together from the shards.
Chunks depend on the plan alone, never on the workers, so that the file is the same bytes however it was made.
"""

import functools
import itertools
import numbers
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from data_gen.dataset import (
    SCHEMA_VERSION,
    STATUS_FAILED,
    STATUS_SOLVED,
    VARIABLES,
    Variable,
    open_dataset,
    package_commit,
    write_dataset,
)
from data_gen.dos import scaled_frequencies
from data_gen.labels import BANDS, LabelSettings, label_cells
from data_gen.lattices import basis_vectors, wavevector_grid
from data_gen.plane_groups import grid_point_group
from data_gen.shards import COMMIT, Chunk, Shards, open_shards
from data_gen.solvers import mpb, solver_version
from data_gen.solvers.contract import SolverError, mode_count
from data_gen.solvers.smoothing import block_mean
from data_gen.unit_cells import CellSource, unit_cell_family
from data_gen.workers import keep_freed_memory, one_thread, run_chunks

_USUAL = asdict(LabelSettings())
CELLS_PER_CHUNK = {"mpb": 1, "rbme": 8, "unlabelled": 512}


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a dataset file."""

    family: str
    samples: int
    seed: int
    resolution: int
    keep_bands: bool
    labels: LabelSettings | None
    plane_group: str | None = None
    cutoff: int | None = None

    @property
    def unit_cells(self) -> CellSource:
        """What the cells are drawn from."""
        return unit_cell_family(self.family, self.plane_group, self.cutoff)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of pixels along the two lattice vectors."""
        return self.resolution, self.resolution

    def origin(self) -> dict[str, Any]:
        """Return the attributes of the file that say where its cells come from."""
        cutoff = {} if self.cutoff is None else {"cutoff": self.cutoff}
        return {"family": self.family, "plane_group": self.unit_cells.plane_group, **cutoff}

    def words(self) -> list[str]:
        """Return the words of the command that say where the cells come from."""
        given = {name: getattr(self, name) for name in ("plane_group", "cutoff", "samples", "seed", "resolution")}
        return ["generate", self.family, *_options(given)]

    def described(self) -> str:
        """Return what the cells and labels are, in a few words."""
        labels = "" if self.labels is None else f"{self.labels.polarization.upper()}, "
        vectors = ", ".join(f"({x:.4g}, {y:.4g})" for x, y in basis_vectors(self.unit_cells.lattice).tolist())
        return f"{self.family} ({labels}lattice {vectors}, {self.grid[0]} × {self.grid[1]} pixels)"

    def agrees(self, chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> bool:
        """Return whether the cells of a chunk are those of this plan, as those of a family always are."""
        return True

    def check(self) -> None:
        """Raise `ValueError` if a setting is out of its range."""
        family = self.unit_cells
        if self.resolution % 2 and family.plane_group != "p1":
            raise ValueError(f"`resolution` must be even for a family with symmetry, got {self.resolution}")
        for name, least in (("samples", 1), ("seed", 0), ("resolution", 4)):
            if not least <= getattr(self, name) < 2**63:  # a file holds no larger number
                raise ValueError(f"`{name}` must be at least {least} (and below 2⁶³), got {getattr(self, name)}")
        if self.labels is not None:
            self.labels.check()
            if self.labels.solver == "mpb":
                mpb.check_grid(self.grid)
            most = mode_count(self.grid, self.labels.polarization)
            if self.labels.bands is not None and self.labels.bands > most:
                raise ValueError(f"`bands` must be at most {most} on this grid, got {self.labels.bands}")
        if self.keep_bands:
            _ = self.wavevectors

    @property
    def wavevectors(self) -> np.ndarray:
        """The grid that bands are kept on, shape `(k, 2)`; raises `ValueError` where there is no one grid."""
        if self.labels is None or self.labels.k_points is None:
            raise ValueError("`keep_bands` needs labels on one grid for every cell: give `k_points`")
        return wavevector_grid(self.labels.k_points)

    def chunks(self) -> list[Chunk]:
        """Return the first and last-plus-one cell of each chunk."""
        size = CELLS_PER_CHUNK[self.labels.solver if self.labels else "unlabelled"]
        return [(start, min(start + size, self.samples)) for start in range(0, self.samples, size)]

    def variables(self) -> dict[str, Variable]:
        """Return the per-sample variables of the file."""
        names = ["epsilon", "epsilon_mean", "status", "error_message"]
        if self.labels is not None:
            names += ["dos", "dos_error", "covered_frequency"]
        if self.keep_bands:
            names += ["band_frequency", "group_velocity"]
        parameters = self.unit_cells.parameters
        return {name: VARIABLES[name] for name in names} | {
            name: Variable(("sample", *parameter.dimensions), "f8", parameter.units, parameter.long_name)
            for name, parameter in parameters.items()
        }

    def command(self) -> str:
        """Return the command that makes the file again, but for `--out`, so that a file is the same by any name."""
        labels = ["--unlabelled"] if self.labels is None else _options(asdict(self.labels))
        return shlex.join(["data-gen", *self.words(), *labels, *["--keep-bands"] * self.keep_bands])


def _options(given: Mapping[str, Any]) -> list[str]:
    """Return the words of a command that set what is not None."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None)
    return list(itertools.chain(*pairs))


def generate(
    family: str,
    /,
    *,
    out: Path,
    samples: int,
    seed: int = 0,
    plane_group: str | None = None,
    cutoff: int | None = None,
    solver: Literal["rbme", "mpb"] = "rbme",
    polarization: Literal["tm", "te"] = "tm",
    resolution: int = 32,
    k_points: int | None = None,
    accuracy: float = 5e-4,
    bands: int | None = None,
    smoothing: float | Literal["published"] = 0.01,
    unlabelled: bool = False,
    keep_bands: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Make a dataset file of unit cells and, unless unlabelled, their densities of states.

    Run the same command again after any interruption: it continues, and the file is the same bytes as if nothing had
    happened.

    Args:
        family: family of cells: blob, gpm, p1, rods, or level-set for any plane group.
        out: file to write, netCDF-4/HDF5.
        samples: number of cells.
        seed: seed of the cells; cell i of a seed is always the same cell.
        plane_group: for level-set: p1, p2, pm, pg, cm, p2mm, p2mg, p2gg, c2mm, p4, p4mm, p4gm, p3, p3m1, p31m, p6 or
            p6mm.
        cutoff: for level-set: largest |n| of the Fourier sum along each axis, 1 where not given.
        solver: rbme is fast, mpb the reference.
        polarization: tm (E along z) or te (H along z).
        resolution: pixels along each lattice vector.
        k_points: n of the n × n grid of wavevectors, 2 or more; where not given, each cell gets what `accuracy` needs.
        accuracy: largest distance of a label from the k → ∞ limit, relative error.
        bands: number of bands; where not given, as many as the label needs (10 with `keep_bands`).
        smoothing: standard deviation of the Gaussian in scaled frequency, or "published" for the published program's.
        unlabelled: write cells only, which takes no settings of labels.
        keep_bands: store frequencies and group velocities too; needs `k_points`.
        workers: worker processes on this machine; one for each core where not given.
        scheduler: address of a running dask scheduler, whose workers then do the work.

    Raises:
        ValueError: if an argument is out of its range, or `out` belongs to a run of other settings.
        RuntimeError: if cells failed; the file is there and its `status` says which. Or if no worker processes can be
            started, as in a script that does not keep them from running it themselves.
        OSError: if the file or its shards cannot be written, or MPB is asked for and cannot be had.
    """
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
    carry_out(Plan(family, samples, seed, resolution, keep_bands, labels, plane_group, cutoff), out, workers, scheduler)


def label_settings(unlabelled: bool, keep_bands: bool, **settings: Any) -> LabelSettings | None:
    """Return how cells are to be labelled; None for cells only.

    Args:
        unlabelled: whether cells only are wanted.
        keep_bands: whether bands are to be stored, of which there then have to be so many in every cell.
        settings: of `LabelSettings`.

    Raises:
        ValueError: if settings of labels are given for cells only.
    """
    if unlabelled:
        if unused := [f"`{name}`" for name, value in settings.items() if value != _USUAL[name]]:
            raise ValueError(f"`unlabelled` cells have no use for {', '.join(unused)}")
        return None
    if keep_bands and settings["bands"] is None:
        settings["bands"] = BANDS
    if isinstance(settings["smoothing"], numbers.Real):
        settings["smoothing"] = float(settings["smoothing"])  # of numpy's, which a file's record would not hold
    return LabelSettings(**settings)


def carry_out(plan: Plan, out: str | Path, workers: int | None, scheduler: str | None) -> None:
    """Make the file of a plan, or go on with it.

    Args:
        plan: what decides the file's bytes.
        out: file to write.
        workers: processes on this machine; one for each core where None.
        scheduler: address of a dask scheduler to use in their place.

    Raises:
        ValueError: if the plan, or `workers`, is out of range, or `out` belongs to a run of another plan.
        RuntimeError: if cells failed; the file is there and its `status` says which. Or if no worker processes can be
            started.
        OSError: if the file or its shards cannot be written, cells change meanwhile, or MPB is asked for and cannot be
            had.
    """
    plan.check()
    if workers is not None and workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    out = Path(out)
    attributes = provenance(plan)
    failed = _failed_in_finished(out, attributes)
    if failed is not None:
        print(f"{out} is already there, made with these settings")
    else:
        with open_shards(out, attributes) as shards:
            _fill(shards, plan, workers, scheduler)
            failed = _assemble(out, shards, plan)
        print(f"wrote {out}: {plan.samples} cells of {plan.described()}, {failed} failed")
    if failed:
        raise RuntimeError(f"{failed} of {plan.samples} cells failed; `status` and `error_message` say which and why")


def provenance(plan: Plan) -> dict[str, Any]:
    """Return the global attributes of the file: how it was made, and nothing of where or when."""
    attributes = {
        "schema_version": SCHEMA_VERSION,
        **plan.origin(),
        "samples": plan.samples,
        "seed": plan.seed,
        "resolution": plan.resolution,
        "fine_samples_per_pixel": plan.unit_cells.fine_samples_per_pixel(plan.resolution),
        "lattice": basis_vectors(plan.unit_cells.lattice).reshape(-1).tolist(),
        "package_version": version("photonic_essl"),
        COMMIT: package_commit() or "unknown",
        "command": plan.command(),
    }
    if plan.labels is not None:
        attributes |= label_provenance(plan.labels)
    # Numbers of numpy's are Python's here: a plan is kept as JSON.
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}


def label_provenance(settings: LabelSettings) -> dict[str, str | int | float]:
    """Return the global attributes that say how the labels of a file were made."""
    said = {name: "as needed" if value is None else value for name, value in asdict(settings).items()}
    return said | {"solver_version": solver_version(settings.solver)}


@one_thread()
def compute_chunk(plan: Plan, start: int, stop: int) -> dict[str, np.ndarray]:
    """Draw cells start … stop - 1 and label them; a cell that cannot be labelled is recorded with its error."""
    keep_freed_memory()
    family = plan.unit_cells
    cells = [family.draw(plan.seed, index, plan.resolution) for index in range(start, stop)]
    fine = torch.from_numpy(np.stack([cell.epsilon for cell in cells]))
    arrays = {
        "epsilon": block_mean(fine, family.fine_samples_per_pixel(plan.resolution)).to(torch.float32).numpy(),
        "epsilon_mean": fine.mean(dim=(1, 2)).numpy(),
        "status": np.full(len(cells), STATUS_SOLVED, dtype=np.int8),
        "error_message": np.full(len(cells), b"", dtype="S200"),
    }
    arrays |= {name: np.stack([cell.parameters[name] for cell in cells]) for name in family.parameters}
    if plan.labels is None:
        return arrays
    basis = basis_vectors(family.lattice)
    solve = functools.partial(
        label_cells,
        basis=basis,
        resolution=plan.resolution,
        settings=plan.labels,
        point_group=grid_point_group(family.plane_group),
        keep_bands=plan.keep_bands,
    )
    try:
        return arrays | solve(fine)
    except (RuntimeError, MemoryError) as error:
        unsolvable = (SolverError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
        if not isinstance(error, unsolvable) and not _out_of_memory(error):
            raise
        if len(cells) > 1:
            return join([compute_chunk(plan, index, index + 1) for index in range(start, stop)])
        # Which cell it is, `failed_cell` says.
        message = error.message if isinstance(error, SolverError) else str(error)
        return failed_cell(plan, start, f"out of memory: {message}" if _out_of_memory(error) else message)


def _out_of_memory(error: Exception) -> bool:
    # Where there is no GPU in question, torch raises no error of a class of its own.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def failed_cell(plan: Plan, index: int, message: str) -> dict[str, np.ndarray]:
    """Return the arrays of a cell that could not be labelled: its label is not a number."""
    arrays = compute_chunk(replace(plan, labels=None, keep_bands=False), index, index + 1)
    arrays["status"][:] = STATUS_FAILED
    arrays["error_message"] = np.array([f"seed {plan.seed}, index {index}: {message}".encode()[:200]], dtype="S200")
    sizes = {"frequency": len(scaled_frequencies()), "axis": 2}
    if plan.keep_bands and plan.labels is not None:
        sizes |= {"k": len(plan.wavevectors), "band": plan.labels.bands or BANDS}
    for name, variable in plan.variables().items():
        if name not in arrays:
            arrays[name] = np.full((1, *(sizes[dimension] for dimension in variable.dimensions[1:])), np.nan)
    return arrays


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of consecutive cells as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _fill(shards: Shards, plan: Plan, workers: int | None, scheduler: str | None) -> None:
    """Compute every chunk of which there is no whole shard."""
    chunks = plan.chunks()
    missing = [chunk for chunk in chunks if shards.read(chunk) is None]
    if not missing:
        return
    compute, fail = functools.partial(compute_chunk, plan), functools.partial(failed_cell, plan)
    done = plan.samples - sum(stop - start for start, stop in missing)
    if len(chunks) == 1:  # not worth the seconds that processes take to start
        workers = 1
    with tqdm(total=plan.samples, initial=done, unit="cell", desc=plan.family, file=sys.stderr) as progress:
        for chunk, arrays in run_chunks(compute, fail, join, missing, workers, scheduler):
            shards.write(chunk, arrays)
            progress.update(chunk[1] - chunk[0])


def _assemble(out: Path, shards: Shards, plan: Plan) -> int:
    """Put the file together from the shards; return how many cells failed."""
    failed = 0

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        nonlocal failed
        for chunk in plan.chunks():
            arrays = shards.read(chunk)
            if arrays is None:
                raise OSError(f"the shard of cells {chunk[0]} to {chunk[1] - 1} was damaged meanwhile; run it again")
            if not plan.agrees(chunk, arrays):
                shards.remove(chunk)
                raise OSError(f"cells {chunk[0]} to {chunk[1] - 1} were changed meanwhile; run it again")
            failed += int((arrays["status"] == STATUS_FAILED).sum())
            yield arrays

    fixed = {}
    if plan.labels is not None:
        fixed["frequency"] = scaled_frequencies()
    if plan.keep_bands:
        fixed["wavevector"] = plan.wavevectors
    write_dataset(out, blocks(), samples=plan.samples, variables=plan.variables(), fixed=fixed, attributes=shards.plan)
    return failed


def _failed_in_finished(out: Path, attributes: dict[str, Any]) -> int | None:
    """Return how many cells failed in the file of this plan, None if there is none; another file is a `ValueError`."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give `out` the name of a file")
    if not out.exists():
        return None
    with open_dataset(out) as dataset:
        found = {name: np.asarray(value).tolist() for name, value in dataset.attrs.items()}
        failed = int((dataset["status"].values == STATUS_FAILED).sum())
    for name, value in attributes.items():
        if name == "source" and found.get(name, value) != value:
            raise ValueError(f"{out} exists, and was made from other cells; give another `out`, or remove it first")
        if name != COMMIT and found.get(name) != value:
            raise ValueError(
                f"{out} exists, with {name} {found.get(name)!r}, and this run asks for {value!r}; remove it first"
            )
    return failed
