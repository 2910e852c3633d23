"""The reference solver: MPB (Johnson & Joannopoulos, Opt. Express 8 (2001) 173), in worker processes of its own.

Importing meep makes a process flush subnormal numbers to zero and keeps state across simulations, and a crash of MPB
takes its process along, so none of it runs in the caller's process: `mpb_worker.py` does, under whichever interpreter
has Meep.
"""

import atexit
import functools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import torch

from data_gen.lattices import basis_vectors
from data_gen.messages import Peer, read_message
from data_gen.solvers.contract import Bands, ConvergenceError, SolverError, as_tensor, checked_cells
from data_gen.solvers.smoothing import block_mean, effective_inverse_permittivity

TOLERANCE = 1e-7  # MPB's own default: the relative change of the eigenvalues in its last iteration
LARGEST_ERROR = 1e-4  # of a frequency, estimated from the residual; beyond it, the answer is refused
# MPB now and then skips a level at the top of its block; so it solves this many more than are asked for.
GUARD_BANDS = 2
SMALLEST_FREQUENCY = 1e-3  # below it, the acoustic bands at k ≈ 0, a relative error means nothing

MISSING = (
    "MPB cannot be had: no interpreter found that imports `meep.mpb`. "
    "Get it with `apt install python3-meep python3-matplotlib python3-h5py libopenblas0-pthread`, "
    "or with `conda install -c conda-forge pymeep`; $MEEP_PYTHON names an interpreter that has it."
)


class MPBUnavailableError(FileNotFoundError):
    """No interpreter on this machine imports `meep.mpb`."""


class MPBError(SolverError):
    """MPB failed on a cell: it stopped with an error, crashed, or gave numbers that are not finite."""


class Worker(Peer):
    """One process that runs MPB, started on construction, stopped by `close`."""

    def __init__(self, interpreter: str):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        if "MEEP_PYTHON" not in os.environ:
            environment.pop("PYTHONPATH", None)  # this interpreter's packages are not that one's
        command = [interpreter, "-W", "ignore", str(Path(__file__).with_name("mpb_worker.py"))]
        super().__init__(command, stderr=subprocess.DEVNULL, env=environment)
        hello = read_message(self.answers)
        if hello is None or "error" in hello:
            self.close()
            raise MPBUnavailableError(MISSING)
        self.version = str(hello["version"])

    def ask(self, **request: np.ndarray) -> dict[str, np.ndarray]:
        """Return the answer to one request; raises `MPBError` if MPB says no or dies."""
        answer = super().ask(**request)
        if answer is None:
            raise MPBError(f"MPB's process died (exit status {self.process.wait()})")
        if "error" in answer:
            raise MPBError(f"MPB failed: {str(answer['error']).strip().splitlines()[-1]}")
        return answer


@functools.cache
def interpreter() -> str:
    """Return the interpreter that imports `meep.mpb`.

    $MEEP_PYTHON if set; else this one, that of the active conda environment, or the system's own python3.

    Raises:
        MPBUnavailableError: if none does.
    """
    named = os.environ.get("MEEP_PYTHON")
    conda = [os.path.join(prefix, "bin", "python")] if (prefix := os.environ.get("CONDA_PREFIX")) else []
    for candidate in [named] if named else [sys.executable, *conda, "/usr/bin/python3"]:
        try:
            Worker(candidate).close()
        except OSError:
            continue
        return candidate
    raise MPBUnavailableError(MISSING)


_worker: Worker | None = None
_one_at_a_time = threading.Lock()  # a dask worker may have several threads, and there is one pipe


def worker() -> Worker:
    """Return this process's MPB worker, starting one if there is none or the last one died."""
    global _worker
    if _worker is None or _worker.process.poll() is not None:
        _worker = Worker(interpreter())
        atexit.register(_worker.close)
    return _worker


def version() -> str:
    """Return what runs, for the record: MPB through which Meep."""
    return f"MPB through Meep {worker().version}"


def is_available() -> bool:
    """Return whether MPB can be had on this machine."""
    try:
        interpreter()
    except MPBUnavailableError:
        return False
    return True


def solve_bands(
    epsilon: np.ndarray | torch.Tensor,
    wavevectors: np.ndarray,
    *,
    bands: int = 10,
    polarization: str = "tm",
    basis: np.ndarray | None = None,
    resolution: int | None = None,
) -> Bands:
    """Solve each cell with MPB, on exactly the permittivity (TM) or smoothed tensor (TE) that the fast solver gets.

    Args:
        epsilon: relative permittivity, shape `(sample, x, y)`.
        wavevectors: shape `(k, 2)`, in units of the reciprocal vectors.
        bands: number of bands.
        polarization: "tm" (E along z) or "te" (H along z).
        basis: lattice vectors, shape `(2, 2)`, one a row, in units of a; the square lattice if None.
        resolution: pixels of MPB's grid along x; those of `epsilon` if None.

    Returns:
        `Bands`; its `error` is estimated from the residuals of MPB's eigenvectors.

    Raises:
        ValueError: if the input breaks a rule of `checked_cells`.
        MPBUnavailableError: if no interpreter has MPB.
        MPBError: if MPB fails or crashes, or gives numbers that are not finite.
        ConvergenceError: if the residuals say that a frequency is off by more than 1e-4.
    """
    basis = basis_vectors() if basis is None else basis
    epsilon = as_tensor(epsilon).detach().cpu()
    cells, factor = checked_cells(epsilon, bands=bands, polarization=polarization, resolution=resolution)
    if polarization == "tm":
        name, arrays = "epsilon", np.asarray(block_mean(cells, factor))
    else:
        name, arrays = "inverse_epsilon", np.asarray(effective_inverse_permittivity(cells, factor, basis))
    solved = min(bands + GUARD_BANDS, arrays[0].shape[0] * arrays[0].shape[1])
    answers = []
    for index, array in enumerate(arrays):
        request = {name: array, "wavevectors": wavevectors, "basis": basis, "bands": np.array(solved)}
        answers.append(_solve_cell(index, request, cells[index].mean().item()))
    frequency, velocity, error = (torch.from_numpy(np.stack(column)) for column in zip(*answers))
    return Bands(frequency[..., :bands].contiguous(), velocity[..., :bands, :].contiguous(), error)


def _solve_cell(
    index: int, request: dict[str, np.ndarray], epsilon_mean: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frequency, velocity and estimated error of one cell; a tighter tolerance where the first is too loose."""
    try:
        with _one_at_a_time:
            answer = worker().ask(**request, tolerance=np.array(TOLERANCE))
            frequency, velocity, error = _checked(answer, epsilon_mean)
            if error > LARGEST_ERROR:
                answer = worker().ask(**request, tolerance=np.array(TOLERANCE / 1000))
                frequency, velocity, error = _checked(answer, epsilon_mean)
    except MPBError as failure:
        raise MPBError(f"cell {index}: {failure}") from None
    if error > LARGEST_ERROR:
        raise ConvergenceError(
            f"cell {index}: MPB's residual puts a frequency off by {error:.1e}, over {LARGEST_ERROR}"
        )
    return frequency, velocity, error


def _checked(answer: dict[str, np.ndarray], epsilon_mean: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frequency, velocity and estimated error of an answer, refusing numbers that are not finite.

    MPB's vectors are Ritz vectors of one subspace, so that an eigenvalue λ = ω² is off by at most ‖r‖² over its
    distance from the eigenvalues that were left out (Kato and Temple): those lie above the highest band by about one
    mean level spacing, 1 / (π · mean ε).
    """
    frequency, velocity = answer["frequency"], answer["group_velocity"]
    if not (np.isfinite(frequency).all() and np.isfinite(velocity).all()):
        raise MPBError("MPB gave numbers that are not finite")
    eigenvalue = frequency**2
    gap = eigenvalue[:, -1:] - eigenvalue + 1 / (np.pi * epsilon_mean)
    moving = frequency > SMALLEST_FREQUENCY
    shift = answer["residual"] ** 2 / gap / (2 * np.where(moving, eigenvalue, 1.0))
    return frequency, velocity, np.asarray(shift[moving].max(initial=0.0))
