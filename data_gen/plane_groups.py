"""The 17 plane groups: their operations, the lattice each needs, and their action on Fourier sums.

Operations come from gemmi's tables of space groups: a plane group is the projection along c of the space group named
beside it, all of whose operations leave z alone.
"""

import functools

import gemmi
import numpy as np

_SPACE_GROUPS = {
    "p1": "P 1",
    "p2": "P 1 1 2",
    "pm": "P m 1 1",
    "pg": "P b 1 1",
    "cm": "C m 1 1",
    "p2mm": "P m m 2",
    "p2mg": "P m a 2",
    "p2gg": "P b a 2",
    "c2mm": "C m m 2",
    "p4": "P 4",
    "p4mm": "P 4 m m",
    "p4gm": "P 4 b m",
    "p3": "P 3",
    "p3m1": "P 3 m 1",
    "p31m": "P 3 1 m",
    "p6": "P 6",
    "p6mm": "P 6 m m",
}
PLANE_GROUPS = tuple(_SPACE_GROUPS)
_LATTICE_OF_SYSTEM = {"p1": "oblique", "p2": "oblique", "cm": "centred", "c2mm": "centred"}
# Conventional coordinates of the primitive vectors of a centred cell, one a column.
_PRIMITIVE = np.array([[0.5, 0.5], [-0.5, 0.5]])


def lattice_of(plane_group: str) -> str:
    """Return the least symmetric lattice that a plane group fits, a name of `data_gen.lattices.LATTICES`."""
    if plane_group in _LATTICE_OF_SYSTEM:
        return _LATTICE_OF_SYSTEM[plane_group]
    return {"3": "hexagonal", "6": "hexagonal", "4": "square"}.get(plane_group[1], "rectangular")


@functools.cache
def operations(plane_group: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the operations x → Rx + t of a plane group on fractional coordinates.

    Args:
        plane_group: a name of `PLANE_GROUPS`, in the short Hermann-Mauguin notation of the International Tables.

    Returns:
        R with shape `(operation, 2, 2)`, int64, and t with shape `(operation, 2)`, float64, in the primitive basis of
        `lattice_of`, the identity first.

    Raises:
        ValueError: if there is no such plane group.
    """
    if plane_group not in _SPACE_GROUPS:
        raise ValueError(f"`plane_group` must be one of {', '.join(PLANE_GROUPS)}, got {plane_group!r}.")
    all_operations = list(gemmi.SpaceGroup(_SPACE_GROUPS[plane_group]).operations())
    rotations = np.array([operation.rot for operation in all_operations]) // gemmi.Op.DEN
    translations = np.array([operation.tran for operation in all_operations]) / gemmi.Op.DEN
    rotations, translations = rotations[:, :2, :2], translations[:, :2]
    if lattice_of(plane_group) == "centred":
        rotations = np.rint(np.linalg.inv(_PRIMITIVE) @ rotations @ _PRIMITIVE).astype(np.int64)
        translations = translations @ np.linalg.inv(_PRIMITIVE).T
    translations = translations % 1.0
    _, first = np.unique(np.hstack([rotations.reshape(-1, 4), translations]), axis=0, return_index=True)
    return rotations[np.sort(first)], translations[np.sort(first)]


def point_group(plane_group: str) -> np.ndarray:
    """Return the rotation parts R of a plane group, each once, shape `(operation, 2, 2)`, the identity first."""
    rotations = operations(plane_group)[0]
    _, first = np.unique(rotations.reshape(-1, 4), axis=0, return_index=True)
    return rotations[np.sort(first)]


def grid_point_group(plane_group: str) -> np.ndarray:
    """Return those rotation parts of a plane group that a cell still has once it is made of pixels.

    Pixels are parallelograms along the lattice vectors. Threefold and sixfold operations do not map one onto another,
    and so a cell on the hexagonal lattice has those to the error of the grid only.

    Args:
        plane_group: a name of `PLANE_GROUPS`.

    Returns:
        R that take lattice vectors to lattice vectors or their opposites, `(operation, 2, 2)`, the identity first.

    Raises:
        ValueError: if there is no such plane group.
    """
    rotations = point_group(plane_group)
    return rotations[np.abs(rotations).sum(axis=(1, 2)) == 2]


def symmetrise(coefficients: np.ndarray, plane_group: str) -> np.ndarray:
    """Return the Fourier sum averaged over the operations of a plane group.

    The sum is f(x) = Σ c_n exp(2πi n·x). Under x → Rx + t the term of n becomes the term of Rᵀn with the phase
    exp(2πi n·t).

    Args:
        coefficients: c_n with shape `(2m + 1, 2m + 1)`, complex, n from -m to m along each axis.
        plane_group: a name of `PLANE_GROUPS`.

    Returns:
        Coefficients of the averaged sum, shape `(4m + 1, 4m + 1)`, n from -2m to 2m (a hexagonal operation takes
        (m, m) as far as 2m).

    Raises:
        ValueError: if there is no such plane group.
    """
    rotations, translations = operations(plane_group)
    cutoff = len(coefficients) // 2
    axis = np.arange(-cutoff, cutoff + 1)
    n = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    images = np.einsum("oij,ni->onj", rotations, n) + 2 * cutoff
    phases = np.exp(2j * np.pi * translations @ n.T)
    averaged = np.zeros((4 * cutoff + 1,) * 2, dtype=np.complex128)
    np.add.at(averaged, (images[..., 0], images[..., 1]), phases * coefficients.reshape(-1) / len(rotations))
    return averaged
