"""Two-dimensional Bravais lattices, their reciprocal vectors, and the wavevector grids of the Brillouin zone."""

import numpy as np

# One member of each of the five Bravais types; the shape of the last three is free, and this is the one that our
# families use. Vectors one a row, in units of a; that of the centred rectangular lattice is its primitive cell.
LATTICES = {
    "square": ((1.0, 0.0), (0.0, 1.0)),
    "hexagonal": ((1.0, 0.0), (-0.5, np.sqrt(3.0) / 2.0)),
    "rectangular": ((1.0, 0.0), (0.0, 1.5)),
    "centred": ((0.8, -0.6), (0.8, 0.6)),
    "oblique": ((1.0, 0.0), (0.3, 1.2)),
}


def basis_vectors(lattice: str | np.ndarray = "square") -> np.ndarray:
    """Return the lattice basis, one vector a row.

    Args:
        lattice: a name of `LATTICES`, or basis vectors of shape `(2, 2)`, one a row, in units of a.

    Returns:
        Basis vectors with shape `(2, 2)`, float64, in units of a.

    Raises:
        ValueError: if the name is unknown, or the vectors are not finite, not `(2, 2)`, or span no area.
    """
    if isinstance(lattice, str):
        if lattice not in LATTICES:
            raise ValueError(
                f"`lattice` must be one of {', '.join(LATTICES)} or basis vectors (2, 2), got {lattice!r}."
            )
        return np.array(LATTICES[lattice])
    basis = np.asarray(lattice, dtype=np.float64)
    if basis.shape != (2, 2) or not np.isfinite(basis).all() or abs(np.linalg.det(basis)) < 1e-6:
        raise ValueError(f"`lattice` must be two finite, independent vectors of shape (2, 2), got {lattice!r}.")
    return basis


def reciprocal_vectors(basis: np.ndarray) -> np.ndarray:
    """Return the reciprocal basis, one vector a row, shape `(2, 2)`, in units of 2π/a (so that bᵢ·aⱼ = δᵢⱼ)."""
    return np.linalg.inv(basis).T


def wavevector_grid(n: int) -> np.ndarray:
    """Return the centres of a uniform n × n grid over the whole Brillouin zone.

    Args:
        n: number of points along each reciprocal vector, at least 1.

    Returns:
        Wavevectors with shape `(n * n, 2)`, float64, in units of the reciprocal vectors, each in (-½, ½); the
        second component varies fastest, and entry `i` and entry `n * n - 1 - i` are k and -k.

    Raises:
        ValueError: if `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    axis = (np.arange(n) + 0.5) / n - 0.5
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
