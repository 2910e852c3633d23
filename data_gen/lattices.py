"""Two-dimensional Bravais lattices, their reciprocal vectors, and grids and paths of wavevectors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

# One member of each of the five Bravais types; the shape of the last three is free, and this is the one that our
# families use. Vectors one a row, in units of a; that of the centred rectangular lattice is its primitive cell.
LATTICES = {
    "square": ((1.0, 0.0), (0.0, 1.0)),
    "hexagonal": ((1.0, 0.0), (-0.5, np.sqrt(3.0) / 2.0)),
    "rectangular": ((1.0, 0.0), (0.0, 1.5)),
    "centred": ((0.8, -0.6), (0.8, 0.6)),
    "oblique": ((1.0, 0.0), (0.3, 1.2)),
}


SHORTEST, LONGEST = 0.01, 100.0
"""Of a lattice vector, in units of a: others are in some other unit."""


def basis_vectors(lattice: str | ArrayLike = "square") -> Float64[np.ndarray, "2 2"]:
    """Return the lattice basis, one vector a row.

    Args:
        lattice: a name of `LATTICES`, or basis vectors of shape `(2, 2)`, one a row, in units of a (or their four
            numbers, as dataset files have them). The vectors of the hexagonal (triangular) lattice are 120° apart:
            (1, 0) and (-½, √3/2).

    Returns:
        Basis vectors, one a row, in units of a.

    Raises:
        ValueError: if the name is unknown, or the vectors are not finite, not `(2, 2)`, span no area, or are in another
            unit, which lengths outside 0.01 to 100 tell.
    """
    if isinstance(lattice, str):
        if lattice not in LATTICES:
            raise ValueError(
                f"`lattice` must be one of {', '.join(LATTICES)} or basis vectors (2, 2), got {lattice!r} (the "
                "triangular lattice is called hexagonal here)."
            )
        return np.array(LATTICES[lattice])
    try:
        basis = np.asarray(lattice, dtype=np.float64)
    except (TypeError, ValueError):
        basis = np.empty(0)
    if basis.shape == (4,):  # as files have it
        basis = basis.reshape(2, 2)
    shaped = basis if basis.shape == (2, 2) else np.zeros((2, 2))
    lengths = np.linalg.norm(shaped, axis=-1)
    if not abs(np.linalg.det(shaped)) > 1e-6 * lengths.prod() or not np.isfinite(shaped).all():
        raise ValueError(f"`lattice` must be two finite, independent vectors of shape (2, 2), got {lattice!r}.")
    if not (lengths.min() >= SHORTEST and lengths.max() <= LONGEST):
        raise ValueError(f"`lattice` must be in units of a, with vectors of length 0.01 to 100, got {lattice!r}.")
    return basis


def reciprocal_vectors(basis: Float64[np.ndarray, "2 2"]) -> Float64[np.ndarray, "2 2"]:
    """Return the reciprocal basis, one vector a row, in units of 2π/a (so that bᵢ·aⱼ = δᵢⱼ)."""
    return np.linalg.inv(basis).T


def wavevector_grid(n: int) -> Float64[np.ndarray, "{n*n} 2"]:
    """Return the centres of a uniform n × n grid over the whole Brillouin zone.

    Args:
        n: number of points along each reciprocal vector, at least 1.

    Returns:
        Wavevectors in units of the reciprocal vectors, each in (-½, ½); the
        second component varies fastest, and entry `i` and entry `n * n - 1 - i` are k and -k.

    Raises:
        ValueError: if `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    axis = (np.arange(n) + 0.5) / n - 0.5
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def half_grid(n: int) -> Float64[np.ndarray, "k 2"]:
    """Return the first half of `wavevector_grid(n)`, `(n² + 1) // 2` wavevectors: -k of these are the others."""
    return wavevector_grid(n)[: (n * n + 1) // 2]


class SymmetryPath(NamedTuple):
    """Wavevectors along straight lines between points of high symmetry, for a band diagram.

    Attributes:
        wavevector: shape `(k, 2)`, float64, in units of the reciprocal vectors.
        position: length of the path up to each wavevector, shape `(k,)`, float64, in 2π/a.
        labels: position and name of each point of high symmetry, in order.
    """

    wavevector: np.ndarray
    position: np.ndarray
    labels: list[tuple[float, str]]


def symmetry_path(lattice: str | np.ndarray = "square", points: int = 60) -> SymmetryPath:
    """Return a closed path through the points of high symmetry of the Brillouin zone.

    It is Γ–X–M–Γ on a square lattice and Γ–M–K–Γ on a hexagonal one, whose vectors enclose 60° or 120°. On any other it
    is Γ–X–S–Y–Γ with X = b₁/2, S = (b₁ + b₂)/2 and Y = b₂/2: the wavevectors that time reversal maps to themselves.

    Args:
        lattice: a name of `LATTICES`, or basis vectors of shape `(2, 2)`, one a row, in units of a.
        points: wavevectors along all of the path, about: each line has its share of them by length.

    Returns:
        The path, both ends and all corners included, each once.

    Raises:
        ValueError: if the lattice is not one, or `points` is less than 8.
    """
    if points < 8:
        raise ValueError(f"`points` must be at least 8, got {points}.")
    basis = basis_vectors(lattice)
    names, corners = _corners(basis)
    lengths = np.linalg.norm(np.diff(corners, axis=0) @ reciprocal_vectors(basis), axis=1)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    steps = np.maximum(np.rint((points - 1) * lengths / ends[-1]).astype(int), 1)
    position = np.concatenate(
        [[0.0], *(np.linspace(start, end, count + 1)[1:] for start, end, count in zip(ends, ends[1:], steps))]
    )
    wavevector = np.stack([np.interp(position, ends, component) for component in corners.T], axis=-1)
    return SymmetryPath(wavevector, position, list(zip(ends.tolist(), names)))


def _corners(basis: np.ndarray) -> tuple[str, np.ndarray]:
    """Return names and wavevectors of the corners of the path, in units of the reciprocal vectors."""
    _, mixed, _, second = (basis @ basis.T).reshape(-1) / (basis[0] @ basis[0])
    # Vectors that are written with three digits or more are meant to be what they are close to.
    second, mixed = np.round((second, mixed), 3)
    if second == 1.0 and mixed == 0.0:
        return "ΓXMΓ", np.array([(0, 0), (1 / 2, 0), (1 / 2, 1 / 2), (0, 0)])
    if second == 1.0 and abs(mixed) == 0.5:
        k = (1 / 3, 1 / 3) if mixed < 0 else (2 / 3, 1 / 3)
        return "ΓMKΓ", np.array([(0, 0), (1 / 2, 0), k, (0, 0)])
    return "ΓXSYΓ", np.array([(0, 0), (1 / 2, 0), (1 / 2, 1 / 2), (0, 1 / 2), (0, 0)])
