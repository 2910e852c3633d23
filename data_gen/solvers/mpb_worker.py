"""Runs MPB, as a program of its own: `python mpb_worker.py`, requests on standard input, answers on standard output.

It is run by the interpreter that has Meep, which need not be the one that runs the package, so it imports nothing but
numpy, meep and `data_gen/messages.py`. The first message says which Meep this is; then each request is answered by one
message, which holds either the bands or a text under `error`.

A request holds `inverse_epsilon` (x, y, 2, 2) for TE or `epsilon` (x, y) for TM, `wavevectors` (k, 2) in units of the
reciprocal vectors, `basis` (2, 2) one vector a row, `bands` and `tolerance`.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

# The folder of this file has modules named like those that Meep imports; the one above it is needed for one module.
FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path = [os.path.dirname(FOLDER), *(entry for entry in sys.path if entry != FOLDER)]

import numpy as np  # noqa: E402
from messages import end_with_parent, read_message, write_message  # type: ignore[import-not-found]  # noqa: E402

del sys.path[0]

Arrays = dict[str, np.ndarray]
# Eigenvalues closer than this are one degenerate level: MPB's own tolerance leaves about 1e-6 between equal ones.
DEGENERACY = 1e-5
ORTHONORMAL = 1e-3  # MPB's modes are, to rounding
# Any direction that no symmetry singles out separates the velocities of a degenerate level.
GENERIC_DIRECTION = (1.0, 0.6180339887498949)
# MPB starts each wavevector from the modes of the last one. Where plane waves are (nearly) modes, it would stay in
# their span and miss levels that have moved in from outside, without a sign of it; this much noise lets it find them,
# for a fifth more time.
NOISE = 0.1


def material(medium: Any, request: Arrays) -> Callable[[Any], Any]:
    """Return the material function whose value at MPB's grid point (i, j) is the given array's, exactly."""
    if "epsilon" in request:
        media = [[medium(epsilon=value) for value in row] for row in request["epsilon"].tolist()]
    else:
        tensors = np.linalg.inv(request["inverse_epsilon"])
        axial = 1.0 / request["inverse_epsilon"][..., 0, 0]  # E_z is no part of TE; any positive number does
        media = [
            [
                medium(
                    epsilon_diag=(tensors[i, j, 0, 0], tensors[i, j, 1, 1], axial[i, j]),
                    epsilon_offdiag=(tensors[i, j, 0, 1], 0, 0),
                )
                for j in range(tensors.shape[1])
            ]
            for i in range(tensors.shape[0])
        ]
    nx, ny = len(media), len(media[0])

    def value_at(point: Any) -> Any:
        # MPB's grid points lie at i/N - 1/2 of the cell.
        return media[round((point.x + 0.5) * nx) % nx][round((point.y + 0.5) * ny) % ny]

    return value_at


def make_solver(meep: Any, mpb: Any, request: Arrays) -> Any:
    """Return MPB's mode solver for the request, its grid set to the array's."""
    grid = request["epsilon" if "epsilon" in request else "inverse_epsilon"].shape[:2]
    basis = request["basis"]
    lengths = np.linalg.norm(basis, axis=1)
    lattice = meep.Lattice(
        size=meep.Vector3(1, 1),
        basis_size=meep.Vector3(*lengths, 1),
        basis1=meep.Vector3(*(basis[0] / lengths[0])),
        basis2=meep.Vector3(*(basis[1] / lengths[1])),
    )
    solver = mpb.ModeSolver(
        num_bands=int(request["bands"]),
        geometry_lattice=lattice,
        resolution=meep.Vector3(grid[0], grid[1], 1),
        default_material=material(meep.Medium, request),
        mesh_size=1,
        tolerance=float(request["tolerance"]),
        deterministic=True,
    )
    solver.verbose = False
    solver.init_params(meep.TM if "epsilon" in request else meep.TE, True)
    seen = np.asarray(solver.get_epsilon())
    if seen.shape != grid:
        raise RuntimeError(f"MPB chose a grid of {seen.shape} for an array of {grid}")
    return solver


class Operator:
    """MPB's scalar operator A(k) h = ω² h, for the check of its answers and for their velocities.

    TM: A = |q| ε⁻¹ |q|, with q = k + G and h the in-plane component of H. TE: A = q⊥ᵀ ε⁻¹ q⊥, with q⊥ = (q_y, -q_x) and
    h = H_z. In both, A = Σ C† ε⁻¹ C with C(k) diagonal in G, so dA/dk = (dC/dk)† ε⁻¹ C + its adjoint.
    """

    def __init__(self, request: Arrays):
        self.inverse = request["inverse_epsilon"] if "inverse_epsilon" in request else 1.0 / request["epsilon"]
        self.grid = self.inverse.shape[:2]
        self.reciprocal = np.linalg.inv(request["basis"]).T
        indices = [-np.fft.fftfreq(n, 1.0 / n) for n in self.grid]  # MPB's entry j belongs to G = -j
        self.lattice_points = np.stack(np.meshgrid(*indices, indexing="ij"), axis=-1)

    def curls(self, wavevector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return C and its derivatives along x and y, each with shape `(component, x, y)`."""
        q = (self.lattice_points + wavevector) @ self.reciprocal
        if self.inverse.ndim == 2:
            length = np.linalg.norm(q, axis=-1)
            unit = q / np.where(length > 0, length, 1.0)[..., None]
            return length[None], unit[None, ..., 0], unit[None, ..., 1]
        ones, zeros = np.ones(self.grid), np.zeros(self.grid)
        return np.stack([q[..., 1], -q[..., 0]]), np.stack([zeros, -ones]), np.stack([ones, zeros])

    def electric_field(self, displacement: np.ndarray) -> np.ndarray:
        """Return ε⁻¹ applied to a field of shape `(band, component, x, y)` given and returned in Fourier space."""
        field = np.fft.fft2(displacement)
        scalar = self.inverse.ndim == 2
        field = field * self.inverse if scalar else np.einsum("xyij,bjxy->bixy", self.inverse, field)
        return np.fft.ifft2(field)

    def ritz(self, wavevector: np.ndarray, frequency: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return frequencies `(band,)` and modes `(band, x, y)` that diagonalise A in the span of MPB's modes.

        MPB stops when the sum of its eigenvalues settles, which it does before those of a nearly degenerate level are
        told apart: single frequencies are off by 1e-4 then, though the span is right to 1e-7.

        Args:
            wavevector: `(2,)`, in units of the reciprocal vectors.
            frequency: `(band,)`, MPB's own.
            modes: `(band, x, y)`, Fourier coefficients.
        """
        curl = self.curls(wavevector)[0]
        image = (curl * self.electric_field(curl * modes[:, None])).sum(axis=1)
        flat, image = modes.reshape(len(modes), -1), image.reshape(len(modes), -1)
        overlap = flat.conj() @ flat.T
        if np.abs(overlap - np.eye(len(modes))).max() > ORTHONORMAL:
            # At k = 0 MPB's constant modes may lie in the other component. Its degenerate levels may come unsorted.
            order = np.argsort(frequency)
            return frequency[order], modes[order]
        root = np.linalg.inv(np.linalg.cholesky(overlap))
        eigenvalue, vectors = np.linalg.eigh(root @ (flat.conj() @ image.T) @ root.conj().T)
        rotated = (root.conj().T @ vectors).T @ flat
        return np.sqrt(np.maximum(eigenvalue, 0.0)), rotated.reshape(modes.shape)

    def velocities_and_residuals(
        self, wavevector: np.ndarray, frequency: np.ndarray, modes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return group velocities `(band, 2)` in c and residual norms `(band,)` of A h - ω² h.

        Args:
            wavevector: `(2,)`, in units of the reciprocal vectors.
            frequency: `(band,)`.
            modes: `(band, x, y)`, Fourier coefficients, each of norm 1.
        """
        curl, *derivatives = self.curls(wavevector)
        electric = self.electric_field(curl * modes[:, None])
        residual = (curl * electric).sum(axis=1) - frequency[:, None, None] ** 2 * modes
        half = [np.einsum("aixy,bixy->ab", (d * modes[:, None]).conj(), electric) for d in derivatives]
        operators = [0.5 * (part + part.conj().T) for part in half]
        return subspace_velocities(frequency, operators), np.linalg.norm(residual.reshape(len(modes), -1), axis=1)


def subspace_velocities(frequency: np.ndarray, operators: list[np.ndarray]) -> np.ndarray:
    """Return velocities `(band, 2)`: diagonal elements, in the velocity operator's own basis where levels coincide.

    `operators` are the two matrices ½ h†(dA/dk)h, `(band, band)`; dividing by ω gives velocities.
    """
    velocity = np.stack([np.diag(part).real for part in operators], axis=-1)
    breaks = np.flatnonzero(np.diff(frequency) > DEGENERACY * frequency[1:]) + 1
    for level in np.split(np.arange(len(frequency)), breaks):
        if len(level) > 1:
            blocks = [part[np.ix_(level, level)] for part in operators]
            _, vectors = np.linalg.eigh(sum(c * block for c, block in zip(GENERIC_DIRECTION, blocks)))
            for axis, block in enumerate(blocks):
                velocity[level, axis] = np.einsum("ia,ij,ja->a", vectors.conj(), block, vectors).real
    moving = frequency > 1e-6
    return np.where(moving[:, None], velocity / np.where(moving, frequency, 1.0)[:, None], 0.0)


def starting_noise(lattice_points: np.ndarray, bands: int) -> np.ndarray:
    """Return reproducible noise `(G, band)`, strong in the long waves of which low bands are made."""
    decay = np.exp(-np.sum(lattice_points**2, axis=-1) / 8).reshape(-1, 1)
    real, imaginary = np.random.default_rng(0).normal(size=(2, len(decay), bands))
    return NOISE * decay * (real + 1j * imaginary)


def solve(meep: Any, mpb: Any, request: Arrays) -> Arrays:
    """Return frequency `(k, band)`, group_velocity `(k, band, 2)` and residual `(k, band)` for one request."""
    solver = make_solver(meep, mpb, request)
    operator = Operator(request)
    component = 1 if "epsilon" in request else 0  # of MPB's two transverse components: in plane for TM, z for TE
    bands = int(request["bands"])
    noise = starting_noise(operator.lattice_points, bands)
    vectors = None
    frequencies, velocities, residuals = [], [], []
    for wavevector in request["wavevectors"]:
        if vectors is not None:
            vectors[:, component, :] += noise
            solver.set_eigenvectors(vectors, 1)
        solver.solve_kpoint(meep.Vector3(*wavevector))
        frequency = np.array(solver.get_freqs())
        vectors = np.array(solver.get_eigenvectors(1, bands))
        modes = vectors[:, component, :].T.reshape(bands, *operator.grid)
        frequency, modes = operator.ritz(wavevector, frequency, modes)
        velocity, residual = operator.velocities_and_residuals(wavevector, frequency, modes)
        frequencies.append(frequency)
        velocities.append(velocity)
        residuals.append(residual)
    return {
        "frequency": np.array(frequencies),
        "group_velocity": np.array(velocities),
        "residual": np.array(residuals),
    }


def main() -> None:
    """Answer requests until standard input ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # MPB's banners and progress go to standard error, never between two answers
    try:
        import meep
        from meep import mpb
    except Exception as error:
        write_message(answers, error=np.array(f"{type(error).__name__}: {error}"))
        return
    meep.verbosity(0)
    write_message(answers, version=np.array(meep.__version__))
    while True:
        request = read_message(sys.stdin.buffer)
        if request is None:
            return
        try:
            write_message(answers, **solve(meep, mpb, request))
        except Exception:
            write_message(answers, error=np.array(traceback.format_exc(limit=-1)))


if __name__ == "__main__":
    main()
