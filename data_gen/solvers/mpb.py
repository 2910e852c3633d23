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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_gen.lattices import basis_vectors
from data_gen.messages import Peer, read_message
from data_gen.solvers.contract import Bands, ConvergenceError, SolverError, as_tensor, checked_cells, numbered
from data_gen.solvers.smoothing import block_mean, effective_inverse_permittivity

TOLERANCE = 1e-7  # MPB's own default: the relative change of the eigenvalues in its last iteration
LARGEST_ERROR = 1e-4  # of a frequency, estimated from the residual; beyond it, the answer is refused
# MPB now and then skips a level at the top of its block; so it solves this many more than are asked for. Where levels
# closer than this part of their frequency run through the top of the block, it cannot tell them apart, and solves more.
GUARD_BANDS = 2
CLUSTER = 1e-2
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

    def ask(self, **request: np.ndarray | str) -> dict[str, np.ndarray]:
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


@atexit.register
def _close() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
        _worker = None


_one_at_a_time = threading.Lock()  # a dask worker may have several threads, and there is one pipe


def worker() -> Worker:
    """Return this process's MPB worker, starting one if there is none or the last one died."""
    global _worker
    if _worker is not None and _worker.process.poll() is not None:
        _close()
    if _worker is None:
        _worker = Worker(interpreter())
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


def check_grid(shape: Sequence[int]) -> None:
    """Raise `ValueError` unless MPB keeps a grid as it is: its sides must be even, of prime factors up to 7.

    MPB takes a larger grid in place of one that its Fourier transforms are slow on; and of an odd one, the check of its
    residuals says that its answers are wrong.
    """
    kept = [n for n in range(2, 2 * max(shape) + 9, 2) if _of_small_primes(n)]
    if wrong := [n for n in shape if n not in kept]:
        near = sorted(kept, key=lambda n: abs(n - wrong[0]))[:2]
        raise ValueError(
            f"MPB needs a grid of even sides whose prime factors are 2, 3, 5 and 7, got {' × '.join(map(str, shape))}; "
            f"the nearest are {min(near)} and {max(near)}."
        )


def _of_small_primes(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


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
        ValueError: if the input breaks a rule of `checked_cells` or `check_grid`.
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
    check_grid(arrays.shape[1:3])
    # MPB's waves lie about G = 0, not about -k: far outside the zone they are too few, and no residual tells.
    wavevectors = np.asarray(wavevectors, dtype=np.float64)
    wavevectors = wavevectors - np.round(wavevectors)
    answers = []
    for index, array in enumerate(arrays):
        request = {name: array, "wavevectors": wavevectors, "basis": basis}
        with numbered([index]):
            answers.append(_solve_cell(request, bands, cells[index].mean().item()))
    return Bands(*(torch.from_numpy(np.stack(column)) for column in zip(*answers)))


Answer = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Frequency `(k, band)`, velocity `(k, band, 2)` and estimated error of one cell."""


def _solve_cell(request: dict[str, np.ndarray], bands: int, epsilon_mean: float) -> Answer:
    """Return the answer for one cell; a tighter tolerance where the first is too loose."""
    with _one_at_a_time:
        answer = _ask(request, bands, epsilon_mean, TOLERANCE)
        if answer[2] > LARGEST_ERROR:
            answer = _ask(request, bands, epsilon_mean, TOLERANCE / 1000)
    if answer[2] > LARGEST_ERROR:
        raise ConvergenceError(f"MPB's residual puts a frequency off by {answer[2]:.1e}, over {LARGEST_ERROR}")
    return answer


def _ask(request: dict[str, np.ndarray], bands: int, epsilon_mean: float, tolerance: float) -> Answer:
    """Ask MPB for bands, with more guards at the wavevectors where close levels run through the top of the block."""
    wavevectors = np.asarray(request["wavevectors"])
    all_modes = int(np.prod(request["epsilon" if "epsilon" in request else "inverse_epsilon"].shape[:2]))
    frequency, velocity = np.empty((len(wavevectors), bands)), np.empty((len(wavevectors), bands, 2))
    error = np.zeros(len(wavevectors))
    rest, guards = np.arange(len(wavevectors)), GUARD_BANDS
    while len(rest):
        solved = min(bands + guards, all_modes)
        asked = {"wavevectors": wavevectors[rest], "bands": np.array(solved), "tolerance": np.array(tolerance)}
        answer = worker().ask(**request | asked)
        found = answer["frequency"]
        frequency[rest], velocity[rest] = found[:, :bands], answer["group_velocity"][:, :bands]
        error[rest] = _estimated_errors(answer, epsilon_mean)[:, :bands].max(1)
        cut = found[:, -1] - found[:, bands - 1] <= CLUSTER * found[:, -1]
        rest, guards = rest[cut & (solved < all_modes)], 2 * guards
    return frequency, velocity, np.asarray(error.max())


def _estimated_errors(answer: dict[str, np.ndarray], epsilon_mean: float) -> np.ndarray:
    """Return the estimated relative error of each frequency `(k, band)`, refusing numbers that are not finite.

    MPB's vectors are Ritz vectors of one subspace, so that an eigenvalue λ = ω² is off by at most ‖r‖² over its
    distance from the eigenvalues that were left out (Kato and Temple): those lie above the highest band by about one
    mean level spacing, 1 / (π · mean ε).
    """
    frequency = answer["frequency"]
    if not (np.isfinite(frequency).all() and np.isfinite(answer["group_velocity"]).all()):
        raise MPBError("MPB gave numbers that are not finite")
    eigenvalue = frequency**2
    gap = eigenvalue[:, -1:] - eigenvalue + 1 / (np.pi * epsilon_mean)
    moving = frequency > SMALLEST_FREQUENCY
    return np.where(moving, answer["residual"] ** 2 / gap / (2 * np.where(moving, eigenvalue, 1.0)), 0.0)
